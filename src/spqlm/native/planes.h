// How codes of a few bits in groups lie in memory, which is described in spqlm/numerics/packing.py: a row has a
// plane of four bits of every code, one of two and one of one, as far as the bits of a code are 4 + 2 + 1.
#pragma once

#include <type_traits>

#include "matrix.h"

// Columns that are laid out together, and looked at in one go.
constexpr int64_t BLOCK = 128;

static inline int64_t block_count_of(int64_t columns) { return (columns + BLOCK - 1) / BLOCK; }

// Of the columns of a block, codes as bytes stand in the order of these runs: first the even columns of a
// run, then the odd ones.
constexpr int64_t RUN = 32;

// What a stored code is more than what it stands for.
static constexpr int offset_of(int bits) { return 1 << (bits - 1); }

// Where a block of a row has its part of the planes, and the codes' bits of each from where on. `columns` of
// the row, BLOCK divides `first`.
template <int Bits>
struct Planes {
  static constexpr bool four = Bits & 4, two = Bits & 2, one = Bits & 1;
  static constexpr int shift_two = Bits & 4, shift_one = Bits & 6;
  const char* row;
  int64_t columns, first;

  const char* fours() const { return row + first / 2; }
  const char* twos() const { return row + columns * shift_two / 8 + first / 4; }
  const char* ones() const { return row + columns * shift_one / 8 + first / 8; }
};

// function(a number that is known when this is compiled).
template <class Function>
static inline auto with_bits(int bits, const Function& function) {
  switch (bits) {
    case 2: return function(std::integral_constant<int, 2>());
    case 3: return function(std::integral_constant<int, 3>());
    case 4: return function(std::integral_constant<int, 4>());
    case 5: return function(std::integral_constant<int, 5>());
    case 6: return function(std::integral_constant<int, 6>());
    case 7: return function(std::integral_constant<int, 7>());
  }
  __builtin_trap();  // `known` has refused others
}

// How codes of a few bits in groups lie in memory, which is described in spqlm/numerics/packing.py: a row has a
// plane of four bits of every code, one of two and one of one, as far as the bits of a code are 4 + 2 + 1.
#pragma once

#include <algorithm>
#include <type_traits>

#include "matrix.h"

// Columns that are laid out together, and looked at in one go.
constexpr int64_t BLOCK = 128;

static inline int64_t block_count_of(int64_t columns) { return (columns + BLOCK - 1) / BLOCK; }

// Of the columns of a block, codes as bytes stand in the order of these runs: first the even columns of a
// run, then the odd ones.
constexpr int64_t RUN = 32;

// What codes that are not evenly spaced stand for, each 64 more than it is, so that all are positive
// bytes of seven bits. From 2 bits on; mirrored by spqlm/numerics/nonlinear.py.
constexpr int LOG_LEVEL_OFFSET = 6;
alignas(64) constexpr uint8_t LEVELS[][32] = {
    {0, 44, 72, 109},
    {0, 23, 40, 54, 65, 78, 93, 114},
    {0, 13, 25, 34, 42, 49, 56, 61, 66, 71, 77, 83, 90, 98, 108, 120},
    {0, 8, 15, 21, 27, 32, 37, 41, 45, 48, 51, 54, 56, 59, 61, 63,
     65, 67, 69, 71, 73, 76, 79, 82, 85, 89, 94, 99, 104, 110, 117, 124},
};
static constexpr const uint8_t* levels_of(int coding) { return LEVELS[bits_of(coding) - FEWEST_BITS]; }

// What a byte that is made of a stored code is more than what it stands for: a power of two.
static constexpr int log_offset_of(int coding) {
  return is_nonlinear(coding) ? LOG_LEVEL_OFFSET : bits_of(coding) - 1;
}
static constexpr int offset_of(int coding) { return 1 << log_offset_of(coding); }

// Where a block of a row has its part of the planes, and the codes' bits of each from where on. `columns` of
// the row, BLOCK divides `first`.
template <int Coding>
struct Planes {
  static constexpr bool four = Coding & 4, two = Coding & 2, one = Coding & 1;
  static constexpr int shift_two = Coding & 4, shift_one = Coding & 6;
  const char* row;
  int64_t columns, first;

  const char* fours() const { return row + first / 2; }
  const char* twos() const { return row + columns * shift_two / 8 + first / 4; }
  const char* ones() const { return row + columns * shift_one / 8 + first / 8; }
};

// function(a coding that is known when this is compiled).
template <class Function>
static inline auto with_coding(int coding, const Function& function) {
  switch (coding) {
    case 2: return function(std::integral_constant<int, 2>());
    case 3: return function(std::integral_constant<int, 3>());
    case 4: return function(std::integral_constant<int, 4>());
    case 5: return function(std::integral_constant<int, 5>());
    case 6: return function(std::integral_constant<int, 6>());
    case 7: return function(std::integral_constant<int, 7>());
    case NONLINEAR + 2: return function(std::integral_constant<int, NONLINEAR + 2>());
    case NONLINEAR + 3: return function(std::integral_constant<int, NONLINEAR + 3>());
    case NONLINEAR + 4: return function(std::integral_constant<int, NONLINEAR + 4>());
    case NONLINEAR + 5: return function(std::integral_constant<int, NONLINEAR + 5>());
  }
  __builtin_trap();  // `known` has refused others
}

// What a block of a row's codes stand for, with their signs, in the order of RUN.
template <int Coding>
static inline void expand_plainly(const Planes<Coding>& planes, int8_t* to) {
  using P = Planes<Coding>;
  const int64_t here = std::min(planes.columns - planes.first, BLOCK);
  uint8_t even[BLOCK / 2] = {}, odd[BLOCK / 2] = {};
  if constexpr (P::four) {
    const uint8_t* p = (const uint8_t*)planes.fours();
    for (int64_t i = 0; i < here / 2; i++) {
      even[i] = p[i] & 15;
      odd[i] = p[i] >> 4;
    }
  }
  if constexpr (P::two) {
    const uint8_t* p = (const uint8_t*)planes.twos();
    for (int64_t half = 0, quarter = here / 4; half < 2; half++)
      for (int64_t i = 0; i < quarter; i++) {
        even[half * quarter + i] |= (uint8_t)((p[i] >> 2 * half & 3) << P::shift_two);
        odd[half * quarter + i] |= (uint8_t)((p[i] >> (4 + 2 * half) & 3) << P::shift_two);
      }
  }
  if constexpr (P::one) {
    const uint8_t* p = (const uint8_t*)planes.ones();
    for (int64_t i = 0; i < here / 2; i++) {
      even[i] |= (uint8_t)((p[i / 8] >> i % 8 & 1) << P::shift_one);
      odd[i] |= (uint8_t)((p[here / 16 + i / 8] >> i % 8 & 1) << P::shift_one);
    }
  }
  for (int64_t k = 0; k < BLOCK / 2; k++) {
    int8_t* const run = to + 2 * k / RUN * RUN + k % (RUN / 2);
    const auto level = [](uint8_t code) {
      if constexpr (is_nonlinear(Coding)) code = levels_of(Coding)[code];
      return (int8_t)(code - offset_of(Coding));
    };
    run[0] = level(even[k]);
    run[RUN / 2] = level(odd[k]);
  }
}

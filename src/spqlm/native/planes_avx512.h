// Codes of a few bits in vectors of bytes; included below the target of the file that uses it.
#pragma once

#include "lanes.h"
#include "planes.h"

namespace {

// A block's codes as they are stored, without a sign: a byte for every even column, and for every odd one.
struct Block {
  __m512i even, odd;
};

// Lanes of 32 bits, the first of which are `low` and the others `high`.
inline __m512i low_then_high(int64_t lanes, int low, int high) {
  return _mm512_mask_mov_epi32(_mm512_set1_epi32(high), mask_of(lanes), _mm512_set1_epi32(low));
}

// `from` where there are `bits`, `to` elsewhere.
inline __m512i with_bits(__m512i to, __m512i from, int bits) {
  return _mm512_ternarylogic_epi32(to, from, _mm512_set1_epi8((char)bits), 0xd8);
}

// Of the columns of a block, how many a row has: all, half of them, or any number.
enum Extent : int64_t { WHOLE_BLOCK = BLOCK, HALF_BLOCK = BLOCK / 2, PART_OF_BLOCK = 0 };

// use(the extent of a block that has `here` columns, as a constant).
template <class Use>
inline auto with_extent(int64_t here, const Use& use) {
  if (here >= WHOLE_BLOCK) return use(std::integral_constant<Extent, WHOLE_BLOCK>());
  if (here == HALF_BLOCK) return use(std::integral_constant<Extent, HALF_BLOCK>());
  return use(std::integral_constant<Extent, PART_OF_BLOCK>());
}

// Half a byte for every column of a block that has `here` of them.
template <Extent E>
inline __m512i load_fours(const char* p, int64_t here) {
  if constexpr (E == WHOLE_BLOCK) return _mm512_loadu_si512(p);
  if constexpr (E == HALF_BLOCK) return _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)p));
  return _mm512_maskz_loadu_epi8(mask_of<__mmask64>(here / 2), p);
}

// A quarter of a byte for every column, and the same bytes again behind them.
template <Extent E>
inline __m512i load_twos(const char* p, int64_t here) {
  if constexpr (E == WHOLE_BLOCK) return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p));
  if constexpr (E == HALF_BLOCK) return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
  const int64_t bytes = here / 4;
  const __mmask64 first = mask_of<__mmask64>(bytes), both = mask_of<__mmask64>(2 * bytes);
  // Where the second half would begin: as a number, since that may lie before all that there is.
  const void* const second = (const void*)((uintptr_t)p - (uintptr_t)bytes);
  return _mm512_mask_loadu_epi8(_mm512_maskz_loadu_epi8(first, p), both & ~first, second);
}

// A bit for every even column, and for every odd one.
struct Bits {
  uint64_t even, odd;
};

template <Extent E>
inline Bits load_ones(const char* p, int64_t here) {
  if constexpr (E == PART_OF_BLOCK) {
    const auto load = [](const char* p, int64_t bytes) {
      return (uint64_t)_mm_cvtsi128_si64(_mm_maskz_loadu_epi8(mask_of(bytes), p));
    };
    return {load(p, here / 16), load(p + here / 16, here / 16)};
  } else {
    std::conditional_t<E == WHOLE_BLOCK, uint64_t, uint32_t> bits[2];
    memcpy(bits, p, sizeof bits);
    return {bits[0], bits[1]};
  }
}

// What the planes of four and of two bits hold; there is anything in other bits, and where a row has no column.
template <int Coding, Extent E>
inline Block load_upper(const Planes<Coding>& planes, int64_t here) {
  using P = Planes<Coding>;
  if constexpr (E != PART_OF_BLOCK) here = E;
  Block block = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  if constexpr (P::four) {
    block.even = load_fours<E>(planes.fours(), here);
    block.odd = _mm512_srli_epi16(block.even, 4);
  }
  if constexpr (P::two) {
    // Each byte has codes of the first and of the second half of either side. 16 divides a block's columns, so
    // four divide its quarter.
    const __m512i twice = load_twos<E>(planes.twos(), here);
    const auto up = [&](int low, int high) { return _mm512_sllv_epi32(twice, low_then_high(here / 16, low, high)); };
    const auto down = [&](int low, int high) { return _mm512_srlv_epi32(twice, low_then_high(here / 16, low, high)); };
    if constexpr (P::four)
      block = {with_bits(block.even, up(4, 2), 48), with_bits(block.odd, down(0, 2), 48)};
    else
      block = {down(0, 2), down(4, 6)};
  }
  return block;
}

// The last block of a row may have fewer columns, `here` of them; where they would be, there is anything.
template <int Coding, Extent E>
inline Block load_block(const Planes<Coding>& planes, int64_t here) {
  using P = Planes<Coding>;
  if constexpr (E != PART_OF_BLOCK) here = E;
  Block block = load_upper<Coding, E>(planes, here);
  const __m512i upper = _mm512_set1_epi8(bits_of(Coding) & 6 ? (1 << (bits_of(Coding) & 6)) - 1 : 0);
  block = {_mm512_and_si512(block.even, upper), _mm512_and_si512(block.odd, upper)};
  if constexpr (P::one) {
    const Bits ones = load_ones<E>(planes.ones(), here);
    const __m512i bit = _mm512_set1_epi8(1 << P::shift_one);
    block.even = _mm512_mask_add_epi8(block.even, ones.even, block.even, bit);
    block.odd = _mm512_mask_add_epi8(block.odd, ones.odd, block.odd, bit);
  }
  return block;
}

// Bytes of codes become those of their levels.
template <int Coding>
inline __m512i levels_at(__m512i codes) {
  const uint8_t* const levels = levels_of(Coding);
  const auto half = [&](int which) {
    return _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)levels + which));
  };
  const __m512i low = _mm512_shuffle_epi8(half(0), codes);
  if constexpr (bits_of(Coding) < 5) return low;
  const __mmask64 upper = _mm512_test_epi8_mask(codes, _mm512_set1_epi8(16));
  return _mm512_mask_shuffle_epi8(low, upper, half(1), codes);
}

template <int Coding>
inline Block load_levels(const char* row, int64_t columns, int64_t first) {
  const int64_t here = columns - first;
  const Block block = with_extent(here, [&](auto extent) {
    return load_block<Coding, extent>({row, columns, first}, here);
  });
  if constexpr (!is_nonlinear(Coding)) return block;
  return {levels_at<Coding>(block.even), levels_at<Coding>(block.odd)};
}

// What codes of a block of `high` rows stand for, with their signs, [high, BLOCK], in the order of RUN.
template <int Coding>
void expand_rows(const Matrix& w, int64_t row, int64_t high, int64_t first, int8_t* to) {
  const __m512i offset = _mm512_set1_epi8(offset_of(Coding));
  const __m512i lower = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i upper = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  const int64_t stride = row_bytes(w);
  const char* from = (const char*)w.weight + row * stride;
  for (int64_t r = 0; r < high; r++, from += stride, to += BLOCK) {
    const Block block = load_levels<Coding>(from, w.columns, first);
    const __m512i even = _mm512_sub_epi8(block.even, offset), odd = _mm512_sub_epi8(block.odd, offset);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(even, lower, odd));
    _mm512_storeu_si512(to + BLOCK / 2, _mm512_permutex2var_epi64(even, upper, odd));
  }
}

}  // namespace

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

// to | (from & bits).
inline __m512i or_bits(__m512i to, __m512i from, __m512i bits) {
  return _mm512_ternarylogic_epi32(to, from, bits, 0xf8);
}

// Up to 64 bits.
inline __mmask64 load_bits(const char* p, int64_t bytes) {
  return (__mmask64)_mm_cvtsi128_si64(_mm_maskz_loadu_epi8(mask_of(bytes), p));
}

// The last block of a row may have fewer columns, `here` of them; where they would be, there is anything.
template <int Coding, bool Whole>
inline Block load_block(const Planes<Coding>& planes, int64_t here) {
  using P = Planes<Coding>;
  if constexpr (Whole) here = BLOCK;
  Block block = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  if constexpr (P::four) {
    const __m512i both = Whole ? _mm512_loadu_si512(planes.fours())
                               : _mm512_maskz_loadu_epi8(mask_of<__mmask64>(here / 2), planes.fours());
    const __m512i low = _mm512_set1_epi8(15);
    block = {_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16(both, 4), low)};
  }
  if constexpr (P::two) {
    // Each byte has codes of the first and of the second half of either side. 16 divides a block's columns, so
    // four divide its quarter.
    const int64_t quarter = here / 4;
    const char* p = planes.twos();
    __m512i twice;
    if constexpr (Whole) {
      twice = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p));
    } else {
      const __mmask64 first = mask_of<__mmask64>(quarter), both = mask_of<__mmask64>(2 * quarter);
      twice = _mm512_maskz_loadu_epi8(first, p);
      // Where the second half would begin: as a number, since that may lie before all that there is.
      twice = _mm512_mask_loadu_epi8(twice, both & ~first, (const void*)((uintptr_t)p - (uintptr_t)quarter));
    }
    const __m512i bits = _mm512_set1_epi8(3 << P::shift_two);
    const auto up = [&](int low, int high) { return _mm512_sllv_epi32(twice, low_then_high(quarter / 4, low, high)); };
    const auto down = [&](int low, int high) { return _mm512_srlv_epi32(twice, low_then_high(quarter / 4, low, high)); };
    block.even = or_bits(block.even, P::four ? up(4, 2) : down(0, 2), bits);
    block.odd = or_bits(block.odd, P::four ? down(0, 2) : down(4, 6), bits);
  }
  if constexpr (P::one) {
    const char* p = planes.ones();
    __mmask64 even, odd;
    if constexpr (Whole) {
      memcpy(&even, p, sizeof even);
      memcpy(&odd, p + sizeof even, sizeof odd);
    } else {
      even = load_bits(p, here / 16);
      odd = load_bits(p + here / 16, here / 16);
    }
    const __m512i bit = _mm512_set1_epi8(1 << P::shift_one);
    block.even = _mm512_mask_add_epi8(block.even, even, block.even, bit);
    block.odd = _mm512_mask_add_epi8(block.odd, odd, block.odd, bit);
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

template <int Coding, bool Whole>
inline Block load_levels(const Planes<Coding>& planes, int64_t here) {
  const Block block = load_block<Coding, Whole>(planes, here);
  if constexpr (!is_nonlinear(Coding)) return block;
  return {levels_at<Coding>(block.even), levels_at<Coding>(block.odd)};
}

template <int Coding>
inline Block load_levels(const char* row, int64_t columns, int64_t first) {
  const Planes<Coding> planes = {row, columns, first};
  if (columns - first >= BLOCK) return load_levels<Coding, true>(planes, BLOCK);
  return load_levels<Coding, false>(planes, columns - first);
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

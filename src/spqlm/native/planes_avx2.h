// Codes of a few bits in vectors of bytes, for AVX2; included below the target of the file that uses it.
#pragma once

#include "planes.h"

namespace {

// Columns whose codes are looked at in one go, and a byte for every even one of them, and for every odd one.
constexpr int64_t HALF = BLOCK / 2;

struct Half {
  __m256i even, odd;
};

// Lanes of 32 bits: those of the first 16 bytes, and the others.
inline __m256i low_then_high(int low, int high) {
  return _mm256_set_epi32(high, high, high, high, low, low, low, low);
}

// 32 bytes with `bit` wherever a bit of four bytes is set.
inline __m256i spread(const char* p, int bit) {
  int32_t bits;
  memcpy(&bits, p, sizeof bits);
  const __m256i places = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  const __m256i each = _mm256_set1_epi64x((int64_t)0x8040201008040201);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), places);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, each), each), _mm256_set1_epi8((char)bit));
}

// Bytes of codes become those of their levels.
template <int Coding>
inline __m256i levels_at(__m256i codes) {
  if constexpr (!is_nonlinear(Coding)) return codes;
  const uint8_t* const levels = levels_of(Coding);
  const auto half = [&](int which) {
    return _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)levels + which));
  };
  const __m256i low = _mm256_shuffle_epi8(half(0), codes);
  if constexpr (bits_of(Coding) < 5) return low;
  const __m256i upper = _mm256_cmpgt_epi8(codes, _mm256_set1_epi8(15));
  return _mm256_blendv_epi8(low, _mm256_shuffle_epi8(half(1), codes), upper);
}

// Codes as they are stored, or their levels, without a sign. The block has BLOCK columns, and this is their
// first or second half, or it has HALF, and this is the first.
template <int Coding>
inline Half load_half(const Planes<Coding>& planes, int64_t columns, int64_t which) {
  using P = Planes<Coding>;
  const bool whole = columns == BLOCK;
  Half codes = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  if constexpr (P::four) {
    const __m256i both = _mm256_loadu_si256((const __m256i*)planes.fours() + which);
    codes.even = _mm256_and_si256(both, _mm256_set1_epi8(15));
    codes.odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
  }
  if constexpr (P::two) {
    // A byte has codes of the first and of the second half of all columns.
    const __m256i four = whole ? _mm256_loadu_si256((const __m256i*)planes.twos())
                               : _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)planes.twos()));
    const int low = whole ? 2 * (int)which : 0, high = whole ? low : 2;
    const auto put = [](__m256i& codes, __m256i two) {
      codes = _mm256_or_si256(codes, _mm256_and_si256(two, _mm256_set1_epi8(3 << P::shift_two)));
    };
    if constexpr (P::four) {
      put(codes.even, _mm256_sllv_epi32(four, low_then_high(4 - low, 4 - high)));
      put(codes.odd, _mm256_srlv_epi32(four, low_then_high(low, high)));
    } else {
      put(codes.even, _mm256_srlv_epi32(four, low_then_high(low, high)));
      put(codes.odd, _mm256_srlv_epi32(four, low_then_high(4 + low, 4 + high)));
    }
  }
  if constexpr (P::one) {
    const char* const ones = planes.ones() + 4 * which;
    codes.even = _mm256_or_si256(codes.even, spread(ones, 1 << P::shift_one));
    codes.odd = _mm256_or_si256(codes.odd, spread(ones + columns / 16, 1 << P::shift_one));
  }
  return {levels_at<Coding>(codes.even), levels_at<Coding>(codes.odd)};
}

}  // namespace

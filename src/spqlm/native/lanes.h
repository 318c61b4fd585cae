// Masks and sums of vectors; included below the target of the file that uses it.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

// The lanes of a vector that hold one of `count` numbers, from the first on: a bit for each.
template <class Mask = __mmask16>
inline Mask mask_of(int64_t count) {
  constexpr int64_t lanes = 8 * sizeof(Mask);
  if (count >= lanes) return (Mask)~(Mask)0;
  return count > 0 ? (Mask)(((Mask)1 << count) - 1) : (Mask)0;
}

// To nearest, for processors without an instruction for it.
inline __m256i bfloat16_of(__m512 numbers) {
  const __m512i bits = _mm512_castps_si512(numbers);
  const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(bits, up), 16));
}

// Neighbours of both, added up.
inline __m512 pairs_added(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}

// The sum of each of four vectors.
inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512d left = _mm512_castps_pd(pairs_added(a, b)), right = _mm512_castps_pd(pairs_added(c, d));
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(left, right)),
                                   _mm512_castpd_ps(_mm512_unpackhi_pd(left, right)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

}  // namespace

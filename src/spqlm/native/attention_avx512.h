// Vector code that attention and its gradient share; included below the target of the file that uses it.
#pragma once

#include "transpose.h"

namespace {

// Vectors of a block: keys, and for the gradient queries, too.
constexpr int64_t WIDE = 64, VECTORS = WIDE / 16;
// exp(x) = 2^(x / ln 2).
constexpr float PER_LN_2 = 1.44269504f;

// 2^x for x <= 0, to 3e-6: a polynomial on [0, 1) through the exponent's whole numbers.
inline __m512 exp2_of(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.3534167e-2f);
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.2011464e-2f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.4144275e-1f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.9300383e-1f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0000026f));
  return _mm512_scalef_ps(y, whole);
}

// `high` vectors as [width / 2 pairs of their numbers, WIDE], zeros beyond the last.
void pack_across(const uint16_t* vectors, int64_t stride, int64_t high, int64_t width, uint32_t* to) {
  for (int64_t at = 0; at < WIDE; at += SIDE)
    for (int64_t pair = 0; pair < width / 2; pair += SIDE)
      transpose((const uint32_t*)(vectors + at * stride) + pair, stride / 2, high - at,
                to + pair * WIDE + at, WIDE);
}

// `high` vectors as [WIDE / 2 pairs of vectors, width], zeros beyond the last.
void pack_along(const uint16_t* vectors, int64_t stride, int64_t high, int64_t width, uint32_t* to) {
  for (int64_t at = 0; at < WIDE; at += 2)
    for (int64_t k = 0; k < width; k += 16) {
      const uint16_t* from = vectors + at * stride + k;
      const __mmask16 even = at < high ? 0xffff : 0, odd = at + 1 < high ? 0xffff : 0;
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(even, from));
      const __m512i upper = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd, from + stride));
      _mm512_storeu_si512(to + at / 2 * width + k, _mm512_or_si512(low, _mm512_slli_epi32(upper, 16)));
    }
}

inline __m512bh pair_of(const uint16_t* numbers, int64_t pair) {
  int both;
  __builtin_memcpy(&both, numbers + 2 * pair, sizeof both);
  return (__m512bh)_mm512_set1_epi32(both);
}

}  // namespace

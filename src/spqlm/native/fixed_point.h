// Inputs in fixed point; included below the target of the file that uses it.
#pragma once

#include <algorithm>

#include "lanes.h"
#include "pairs.h"

namespace {

inline int64_t exponent_of(float value) { return (int64_t)(bits_from_float(value) >> 23 & 0xff); }

// 16 of `columns` numbers from k on; zeros beyond the last.
inline __m512 load16(const float* x, int64_t columns, int64_t k) {
  return _mm512_maskz_loadu_ps(mask_of(columns - k), x + k);
}

// Up to BLOCK numbers, zeros beyond the last, in 16 bits; returns what they are multiples of.
inline float fixed_point(const float* x, int64_t columns, uint16_t* numbers) {
  __m512 largest = _mm512_setzero_ps();
  for (int64_t k = 0; k < BLOCK; k += 16)
    largest = _mm512_max_ps(largest, _mm512_abs_ps(load16(x, columns, k)));
  const float most = _mm512_reduce_max_ps(largest);
  // Below 2^15 of these units; what is smaller than all numbers that matter becomes zero, what is
  // not finite makes sums that are not either.
  const int64_t exponent = std::min<int64_t>(std::max<int64_t>(exponent_of(most), 30), 254);
  const float scale = float_from_bits((uint32_t)(exponent - 14) << 23);
  const float inverse = float_from_bits((uint32_t)(268 - exponent) << 23);
  __m512 bad = _mm512_setzero_ps();
  for (int64_t k = 0; k < BLOCK; k += 16) {
    const __m512 values = load16(x, columns, k);
    bad = _mm512_fmadd_ps(values, _mm512_setzero_ps(), bad);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(values, _mm512_set1_ps(inverse)));
    _mm256_storeu_si256((__m256i*)(numbers + k), _mm512_cvtsepi32_epi16(whole));
  }
  return scale + _mm512_reduce_add_ps(bad);
}

}  // namespace

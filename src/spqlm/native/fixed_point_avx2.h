// Inputs in fixed point, for AVX2; included below the target of the file that uses it.
#pragma once

#include <algorithm>

#include "planes.h"
#include "sums.h"

namespace {

// Up to BLOCK numbers, zeros beyond the last, in 16 bits; returns what they are multiples of. As fixed_point.h.
inline float fixed_point(const float* x, int64_t columns, int16_t* numbers) {
  alignas(32) float padded[BLOCK];
  if (columns < BLOCK) {
    std::fill(std::copy(x, x + columns, padded), padded + BLOCK, 0.0f);
    x = padded;
  }
  __m256 largest = _mm256_setzero_ps(), nothing = _mm256_setzero_ps();
  for (int64_t k = 0; k < BLOCK; k += 8) {
    const __m256 some = _mm256_loadu_ps(x + k);
    largest = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), some), largest);
    nothing = _mm256_fmadd_ps(some, _mm256_setzero_ps(), nothing);
  }
  // Below 2^15 of these units; what is smaller than all numbers that matter becomes zero, what is not finite makes
  // sums that are not either.
  const auto exponent_of = [](float value) { return (int64_t)(bits_from_float(value) >> 23 & 0xff); };
  const int64_t exponent = std::min<int64_t>(std::max<int64_t>(exponent_of(largest_in(largest)), 30), 254);
  const __m256 inverse = _mm256_set1_ps(float_from_bits((uint32_t)(268 - exponent) << 23));
  for (int64_t k = 0; k < BLOCK; k += 16) {
    const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k), inverse));
    const __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k + 8), inverse));
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
    _mm256_storeu_si256((__m256i*)(numbers + k), both);
  }
  float wrong = 0, parts[8];
  _mm256_storeu_ps(parts, nothing);
  for (float part : parts) wrong += part;
  return float_from_bits((uint32_t)(exponent - 14) << 23) + wrong;
}

}  // namespace

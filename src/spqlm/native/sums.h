// Sums of vectors, and the largest in one; included below the target of the file that uses it.
#pragma once

#include <immintrin.h>

#include <algorithm>

namespace {

inline float largest_in(__m256 v) {
  float held[8];
  _mm256_storeu_ps(held, v);
  return *std::max_element(held, held + 8);
}

inline float sum_of(__m256 a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// The sum of each of four vectors.
inline __m128 sums_of(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

}  // namespace

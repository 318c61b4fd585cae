// Vector code that products of many inputs share; included below the target of the file that uses it.
#pragma once

#include "lanes.h"

namespace {

// What is transposed at a time: 16 rows of 16 pairs of columns.
constexpr int64_t SIDE = 16;

// to[k][r] = from[r][k] for 16 x 16 numbers, of which `rows` rows and `columns` columns exist and the
// others are zero.
void transpose(const uint32_t* from, int64_t stride, int64_t rows, uint32_t* to, int64_t to_stride,
               int64_t columns = SIDE) {
  __m512i a[SIDE], b[SIDE];
  const __mmask16 there = mask_of(columns);
  for (int64_t r = 0; r < SIDE; r++)
    a[r] = _mm512_maskz_loadu_epi32(r < rows ? there : 0, from + r * stride);
  for (int64_t r = 0; r < SIDE; r += 2) {
    b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
  }
  for (int64_t r = 0; r < SIDE; r += 4)
    for (int64_t h = 0; h < 2; h++) {
      a[r + 2 * h] = _mm512_unpacklo_epi64(b[r + h], b[r + 2 + h]);
      a[r + 2 * h + 1] = _mm512_unpackhi_epi64(b[r + h], b[r + 2 + h]);
    }
  // Each 128-bit lane of a[4 i + j] now holds column 4 lane + j of the rows from 4 i on.
  for (int64_t j = 0; j < 4; j++) {
    const __m512i even_low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);
    const __m512i even_high = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
    _mm512_storeu_si512(to + j * to_stride, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    _mm512_storeu_si512(to + (4 + j) * to_stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_si512(to + (8 + j) * to_stride, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    _mm512_storeu_si512(to + (12 + j) * to_stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}

}  // namespace

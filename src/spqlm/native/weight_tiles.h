// Weights as tiles (tiles.h); included below the target of the file that uses it.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "parallel.h"
#include "planes_avx512.h"
#include "tiles.h"

namespace {

// Bytes of a row that are asked for before their turn: 16 rows are more than prefetchers follow.
constexpr int64_t AHEAD = 512;

// 16 rows of 64 bytes, of which `high` rows and `bytes` bytes exist, transposed: held[q] has bytes 4 q to
// 4 q + 3 of each. Rows lie `stride` bytes apart; that and `bytes` are multiples of 4.
inline void transposed_bytes(const char* from, int64_t stride, int64_t high, int64_t bytes,
                             uint32_t* held) {
  for (int64_t r = 0; r < high; r++) _mm_prefetch(from + r * stride + AHEAD, _MM_HINT_T0);
  transpose((const uint32_t*)from, stride / 4, high, held, SIDE, bytes / 4);
}

// Some rows of a matrix, and some of their columns: all but the last part of them a multiple of 128.
struct Part {
  const Matrix& w;
  int64_t first, high, begin, end;
};

// Codes of int8 are bfloat16 numbers as they are; scales multiply the sums.
inline void pack_int8(const Part& part, uint32_t* tiles) {
  const Matrix& w = part.w;
  const char* codes = (const char*)w.weight + part.first * w.columns;
  alignas(64) uint32_t held[TILE];
  for (int64_t k = part.begin; k < part.end; k += 64, tiles += 2 * TILE) {
    transposed_bytes(codes + k, w.columns, part.high, part.end - k, held);
    const int64_t pairs = std::min<int64_t>(32, (part.end - k) / 2);
    for (int64_t pair = 0; pair < pairs; pair++) {
      __m512i four = _mm512_load_si512(held + pair / 2 * SIDE);
      if (pair % 2 == 0) four = _mm512_slli_epi32(four, 16);
      const __m512i odd = _mm512_srai_epi32(four, 24);
      const __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(four, 8), 24);
      // Whole numbers below 256 end within the upper half of a float.
      const __m512i high_half = _mm512_castps_si512(_mm512_cvtepi32_ps(odd));
      const __m512i low_half = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(even)), 16);
      _mm512_storeu_si512(tiles + pair * SIDE, _mm512_or_si512(high_half, low_half));
    }
  }
}

// Scales of a group for 16 rows.
inline __m512 scales_of(const Part& part, int64_t group) {
  float scales[SIDE] = {};
  for (int64_t r = 0; r < part.high; r++)
    scales[r] = read_float(part.w.scale, part.w.scale_type, (part.first + r) * part.w.groups + group);
  return _mm512_loadu_ps(scales);
}

// Codes in groups of a multiple of 32 columns: a lane is a row, so its scale is one number.
inline void pack_grouped(const Part& part, uint32_t* tiles) {
  const Matrix& w = part.w;
  const int64_t size = w.columns / w.groups, stride = row_bytes(w);
  // Two vectors of bfloat16 side by side become one of pairs.
  alignas(64) uint16_t places[32];
  for (int i = 0; i < 32; i++) places[i] = (uint16_t)(i % 2 * 16 + i / 2);
  const __m512i side_by_side = _mm512_load_si512(places);
  alignas(64) int8_t codes[SIDE * BLOCK];
  alignas(64) uint32_t held[TILE];
  __m512 scales = _mm512_setzero_ps();
  for (int64_t first = part.begin; first < part.end; first += BLOCK) {
    const char* next = (const char*)w.weight + part.first * stride + first * bits_of(w.coding) / 8 + AHEAD;
    for (int64_t r = 0; r < part.high; r++) _mm_prefetch(next + r * stride, _MM_HINT_T0);
    with_coding(w.coding, [&](auto coding) { expand_rows<coding>(w, part.first, part.high, first, codes); });
    const int64_t last = std::min(part.end, first + BLOCK);
    for (int64_t k = first; k < last; k += RUN, tiles += TILE) {
      // Four even columns of each row, and then four odd ones.
      if ((k - first) % 64 == 0)
        transpose((const uint32_t*)(codes + k - first), BLOCK / 4, part.high, held, SIDE);
      if (k % size == 0 || k == part.begin) scales = scales_of(part, k / size);
      const uint32_t* const here = held + (k - first) % 64 / 4 * SIDE;
      for (int64_t pair = 0; pair < RUN / 2; pair++) {
        const __m512i left = _mm512_set1_epi32(24 - (int)pair % 4 * 8);
        const auto numbers = [&](const uint32_t* four) {
          const __m512i code = _mm512_srai_epi32(_mm512_sllv_epi32(_mm512_load_si512(four), left), 24);
          return _mm512_mul_ps(_mm512_cvtepi32_ps(code), scales);
        };
        const __m512 even = numbers(here + pair / 4 * SIDE), odd = numbers(here + (4 + pair / 4) * SIDE);
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
        _mm512_storeu_si512(tiles + pair * SIDE, _mm512_permutexvar_epi16(side_by_side, both));
      }
    }
  }
}

inline bool groups_of_lanes(const Matrix& w) {
  return w.format == GROUPED && w.columns / w.groups % 32 == 0;
}

// Whether packing some columns costs no more than their share of a row.
inline bool divisible(const Matrix& w) {
  return w.format == INT8 || w.format == DENSE_BFLOAT16 || groups_of_lanes(w);
}

// Up to 16 rows as tiles, one for 32 columns. What is in int8 is without its scale; rows that do not
// exist are zero.
inline void pack_tiles(const Part& part, uint32_t* tiles) {
  const Matrix& w = part.w;
  if (w.format == INT8) return pack_int8(part, tiles);
  if (groups_of_lanes(w)) return pack_grouped(part, tiles);
  const uint16_t* rows = (const uint16_t*)w.weight + part.first * w.columns;
  if (w.format != DENSE_BFLOAT16) {
    rows = (uint16_t*)room_for(Purpose::PANEL_ROWS, SIDE * w.columns * sizeof(uint16_t));
    kernels().dequantize(w, part.first, part.first + part.high, (void*)rows, BFLOAT16);
  }
  for (int64_t k = part.begin; k < part.end; k += 32, tiles += TILE)
    transpose((const uint32_t*)(rows + k), w.columns / 2, part.high, tiles, SIDE);
}

}  // namespace

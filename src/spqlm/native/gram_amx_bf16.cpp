// Sums of outer products of bfloat16 vectors, for processors with AMX.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)

#include <algorithm>

#include "target.h"

TARGET_BEGIN(AVX512 ",avx512bf16,amx-tile,amx-bf16")

#include "gram.h"
#include "parallel.h"
#include "tiles.h"

namespace {

// Vectors that are summed before the sums go to memory, and their tiles for 16 columns.
constexpr int64_t DEPTH = 512, STRIDE = DEPTH / 32 * TILE;

// x [16] as far as there are `count` vectors, times their factor.
inline __m512i scaled(const uint16_t* x, const float* by, int64_t vector, int64_t count,
                      int64_t columns) {
  if (vector >= count) return _mm512_setzero_si512();
  const __m512i wide =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(x + vector * columns)));
  const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  const __m512 product = _mm512_mul_ps(value, _mm512_set1_ps(by[vector]));
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(product));
}

// 16 columns of up to DEPTH vectors, as right and as left tiles, with zeros behind the last vector.
void pack(const uint16_t* x, const float* by, int64_t count, int64_t columns, uint32_t* right,
          uint32_t* left) {
  for (int64_t t = 0; t < count; t += 32) {
    uint32_t* tile = right + t / 32 * TILE;
    for (int64_t pair = 0; pair < SIDE; pair++) {
      const __m512i low = scaled(x, by, t + 2 * pair, count, columns);
      const __m512i high = scaled(x, by, t + 2 * pair + 1, count, columns);
      _mm512_storeu_si512(tile + pair * SIDE, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
    transpose(tile, SIDE, SIDE, left + t / 32 * TILE, SIDE);
  }
}

}  // namespace

void gram_amx_bf16(const uint16_t* x, const float* by, int64_t count, int64_t columns, float* total,
                   int32_t threads) {
  if (columns % SQUARE) return gram_avx512_bf16(x, by, count, columns, total, threads);
  const int64_t groups = columns / SIDE, squares = columns / SQUARE;
  const int64_t bytes = 2 * groups * STRIDE * (int64_t)sizeof(uint32_t);
  uint32_t *right = (uint32_t*)room_for(Purpose::GRAM, bytes), *left = right + groups * STRIDE;
  for (int64_t t = 0; t < count; t += DEPTH) {
    const int64_t some = std::min(count - t, DEPTH);
    in_parallel(threads, groups, some * columns, [&](int64_t group) {
      pack(x + t * columns + group * SIDE, by + t, some, columns, right + group * STRIDE,
           left + group * STRIDE);
    });
    in_parallel(threads, squares, some * columns * columns / 2, [&](int64_t above) {
      const Tiles tiles;
      for (int64_t beside = above; beside < squares; beside++)
        square({left + 2 * above * STRIDE, STRIDE}, {right + 2 * beside * STRIDE, STRIDE},
               (some + 31) / 32, true, total + above * SQUARE * columns + beside * SQUARE, columns);
    });
  }
}

TARGET_END
#endif

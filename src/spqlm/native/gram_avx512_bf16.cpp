// Sums of outer products of bfloat16 vectors, for processors with AVX-512 BF16.
#if defined(__x86_64__) && defined(__GNUC__)

#include <vector>

#include "gram.h"
#include "parallel.h"
#include "target.h"

TARGET_BEGIN(AVX512 ",avx512bf16")

#include "lanes.h"

namespace {

// Columns of a panel, rows of a tile: 8 x 3 vectors of sums leave registers for what they multiply.
constexpr int64_t WIDE = 48, HIGH = 8, VECTORS = WIDE / 16;
// Vectors that are summed before the sums go to memory; a panel of them fits in the second cache.
constexpr int64_t DEPTH = 512, PAIRS = DEPTH / 2;
constexpr int64_t PANEL = PAIRS * WIDE;

inline __m256i scaled(const uint16_t* x, __mmask16 mask, float by) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x));
  const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  return (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(value, _mm512_set1_ps(by)));
}

// Columns of one panel: two vectors' numbers side by side, zeros beyond the last vector and column.
void pack(const uint16_t* x, const float* by, int64_t count, int64_t columns, int64_t panel,
          uint32_t* to) {
  for (int64_t pair = 0; pair < (count + 1) / 2; pair++) {
    const int64_t t = 2 * pair;
    for (int64_t k = 0; k < WIDE; k += 16) {
      const int64_t column = panel * WIDE + k;
      const __mmask16 mask = mask_of(columns - column);
      const uint16_t* first = x + t * columns + column;
      const __m512i low = _mm512_cvtepu16_epi32(scaled(first, mask, by[t]));
      __m512i high = _mm512_setzero_si512();
      if (t + 1 < count) high = _mm512_cvtepu16_epi32(scaled(first + columns, mask, by[t + 1]));
      _mm512_storeu_si512(to + pair * WIDE + k, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

// total [HIGH rows, WIDE columns], as far as they exist, += left^T right.
void tile(const uint32_t* left, const uint32_t* right, int64_t pairs, float* total, int64_t stride,
          int64_t high, int64_t wide) {
  __m512 sums[HIGH][VECTORS];
  for (int64_t r = 0; r < HIGH; r++)
    for (int64_t v = 0; v < VECTORS; v++) sums[r][v] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < pairs; pair++) {
    __m512bh numbers[VECTORS];
    for (int64_t v = 0; v < VECTORS; v++)
      numbers[v] = (__m512bh)_mm512_loadu_si512(right + pair * WIDE + 16 * v);
    for (int64_t r = 0; r < HIGH; r++) {
      const __m512bh number = (__m512bh)_mm512_set1_epi32((int)left[pair * WIDE + r]);
      for (int64_t v = 0; v < VECTORS; v++)
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], number, numbers[v]);
    }
  }
  for (int64_t r = 0; r < high; r++)
    for (int64_t v = 0; v < VECTORS; v++) {
      const __mmask16 mask = mask_of(wide - 16 * v);
      float* to = total + r * stride + 16 * v;
      _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sums[r][v]));
    }
}

}  // namespace

void gram_avx512_bf16(const uint16_t* x, const float* by, int64_t count, int64_t columns,
                      float* total, int32_t threads) {
  const int64_t panels = (columns + WIDE - 1) / WIDE;
  std::vector<uint32_t> packed(panels * PANEL);
  for (int64_t t = 0; t < count; t += DEPTH) {
    const int64_t some = count - t < DEPTH ? count - t : DEPTH;
    in_parallel(threads, panels, some * columns, [&](int64_t panel) {
      pack(x + t * columns, by + t, some, columns, panel, packed.data() + panel * PANEL);
    });
    in_parallel(threads, panels, some * columns * columns / 2, [&](int64_t above) {
      for (int64_t panel = above; panel < panels; panel++)
        for (int64_t r = 0; r < WIDE; r += HIGH) {
          const int64_t row = above * WIDE + r, column = panel * WIDE;
          if (row >= columns) break;
          const int64_t high = columns - row < HIGH ? columns - row : HIGH;
          tile(packed.data() + above * PANEL + r, packed.data() + panel * PANEL, (some + 1) / 2,
               total + row * columns + column, columns, high, columns - column);
        }
    });
  }
}

TARGET_END
#endif

// Few inputs times weights in int8, for processors with AVX2: codes widened to 16 bits times inputs in fixed point, two
// columns to a product.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "pairs.h"
#include "target.h"

TARGET_BEGIN("avx2,fma,f16c")

#include "fixed_point_avx2.h"

namespace {

constexpr int64_t STEP = 16;  // columns of a vector

// A block of all inputs stands together; behind its numbers are its units, a float for each input.
struct Arranged {
  char* data;
  int64_t count;

  char* block(int64_t index) const { return data + index * (int64_t)(BLOCK * sizeof(int16_t) + sizeof(float)) * count; }
  int16_t* numbers(int64_t index, int64_t m) const { return (int16_t*)block(index) + m * BLOCK; }
  char* unit(int64_t index, int64_t m) const { return (char*)numbers(index, count) + m * (int64_t)sizeof(float); }
};
static_assert(sizeof(float) <= sizeof(uint16_t) * BESIDE);

// The codes of a vector of columns, zeros beyond the last.
inline __m256i load_codes(const char* p, int64_t columns) {
  alignas(16) char last[STEP] = {};
  if (columns < STEP) {
    memcpy(last, p, (size_t)columns);
    p = last;
  }
  return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
}

// R rows times the M inputs from `begin` on. Sums of a block are whole numbers: at most 2^29.
template <int R, int M>
void tile(const Matrix& w, const Arranged& x, int64_t begin, int64_t row, float* y, int64_t y_stride) {
  const char* base = (const char*)w.weight + row * w.columns;
  __m256 total[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) total[r][m] = _mm256_setzero_ps();
  for (int64_t block = 0; block < block_count_of(w.columns); block++) {
    const int16_t* inputs = x.numbers(block, begin);
    const int64_t first = block * BLOCK, here = std::min(w.columns - first, BLOCK);
    // The next rows, in the order of memory: another one costs half of the bandwidth.
    for (int64_t line = 0; R > 1 && line < R * BLOCK; line += 64)
      _mm_prefetch(base + R * (w.columns + first) + line, _MM_HINT_T0);
    __m256i sums[R][M];
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) sums[r][m] = _mm256_setzero_si256();
    const auto step = [&](int64_t k, int64_t columns) {
      __m256i codes[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) codes[r] = load_codes(base + r * w.columns + first + k, columns);
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) {
        const __m256i input = _mm256_loadu_si256((const __m256i*)(inputs + m * BLOCK + k));
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sums[r][m] = _mm256_add_epi32(sums[r][m], _mm256_madd_epi16(codes[r], input));
      }
    };
    int64_t k = 0;
    for (; k + STEP <= here; k += STEP) step(k, STEP);
    if (k < here) step(k, here - k);
    for (int m = 0; m < M; m++) {
      float unit;
      memcpy(&unit, x.unit(block, begin + m), sizeof unit);
      for (int r = 0; r < R; r++)
        total[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[r][m]), _mm256_set1_ps(unit), total[r][m]);
    }
  }
  for (int r = 0; r < R; r++) {
    const float scale = row_scale(w, row + r);
    const float bias = w.bias ? read_float(w.bias, w.bias_type, row + r) : 0.0f;
    for (int m = 0; m < M; m++)
      y[m * y_stride + row + r] = sum_of(total[r][m]) * scale + bias;
  }
}

// As many rows at a time as there are registers for sums and totals.
template <int M>
void rows(const Matrix& w, const Arranged& x, int64_t begin, int64_t row, int64_t high, float* y, int64_t y_stride) {
  constexpr int R = M == 1 ? 4 : 2;
  int64_t r = 0;
  for (; r + R <= high; r += R) tile<R, M>(w, x, begin, row + r, y, y_stride);
  for (; r < high; r++) tile<1, M>(w, x, begin, row + r, y, y_stride);
}

void product(const Matrix& w, const uint16_t* arranged, int64_t count, int64_t first, int64_t last, float* y,
             int64_t y_stride) {
  const Arranged x = {(char*)arranged, count};
  for (int64_t row = first; row < last; row += 4) {
    const int64_t high = std::min<int64_t>(last - row, 4);
    int64_t m = 0;
    for (; m + 4 <= count; m += 4) rows<4>(w, x, m, row, high, y + m * y_stride, y_stride);
    for (; m + 2 <= count; m += 2) rows<2>(w, x, m, row, high, y + m * y_stride, y_stride);
    if (m < count) rows<1>(w, x, m, row, high, y + m * y_stride, y_stride);
  }
}

void arrange(const float* x, int64_t count, int64_t columns, uint16_t* arranged) {
  const Arranged to = {(char*)arranged, count};
  for (int64_t block = 0; block < block_count_of(columns); block++)
    for (int64_t m = 0; m < count; m++) {
      const int64_t first = block * BLOCK;
      const float unit = fixed_point(x + m * columns + first, columns - first, to.numbers(block, m));
      memcpy(to.unit(block, m), &unit, sizeof unit);
    }
}

}  // namespace

const Pairs pairs_int8_avx2 = {arrange, product};

TARGET_END
#endif

// Few inputs times weights in int8 or bfloat16, for processors with AVX-512 BF16 and VNNI: the same
// walk over a matrix, with another product of 32 columns at a time.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "target.h"

TARGET_BEGIN(AVX512 ",avx512bf16,avx512vnni")

#include "fixed_point.h"

namespace {

constexpr int64_t STEP = 32;  // columns of a vector

// int8 codes and inputs in fixed point. Sums of a block are whole numbers: at most 2^29.
struct Int8 {
  static constexpr int bytes = 1;
  using Sum = __m512i;
  static Sum zero() { return _mm512_setzero_si512(); }
  static __m512i load(const char* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
  }
  static __m512i load(const char* p, __mmask32 mask) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, p));
  }
  static Sum dot(Sum sum, __m512i weights, __m512i x) {
    return _mm512_dpwssd_epi32(sum, weights, x);
  }
  static __m512 add(__m512 total, Sum sum, float scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale), total);
  }

  static float arrange(const float* x, int64_t columns, uint16_t* numbers) {
    return fixed_point(x, columns, numbers);
  }
};

struct Bfloat16 {
  static constexpr int bytes = 2;
  using Sum = __m512;
  static Sum zero() { return _mm512_setzero_ps(); }
  static __m512i load(const char* p) { return _mm512_loadu_si512(p); }
  static __m512i load(const char* p, __mmask32 mask) { return _mm512_maskz_loadu_epi16(mask, p); }
  static Sum dot(Sum sum, __m512i weights, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)x);
  }
  static __m512 add(__m512 total, Sum sum, float) { return _mm512_add_ps(total, sum); }

  static float arrange(const float* x, int64_t columns, uint16_t* numbers) {
    for (int64_t k = 0; k < BLOCK; k += STEP)
      _mm512_storeu_si512(numbers + k, (__m512i)_mm512_cvtne2ps_pbh(load16(x, columns, k + 16),
                                                                    load16(x, columns, k)));
    return 1.0f;
  }
};

// A block of all inputs stands together: rows at distances of a large power of two would evict each
// other from the cache. Behind its numbers are its scales.
inline uint16_t* block_of(uint16_t* arranged, int64_t block, int64_t count) {
  return arranged + block * (BLOCK + 2) * count;
}

template <class W>
void arrange(const float* x, int64_t count, int64_t columns, uint16_t* arranged) {
  for (int64_t block = 0; block < block_count_of(columns); block++) {
    uint16_t* room = block_of(arranged, block, count);
    for (int64_t m = 0; m < count; m++) {
      const float scale = W::arrange(x + m * columns + block * BLOCK, columns - block * BLOCK,
                                     room + m * BLOCK);
      memcpy(room + count * BLOCK + 2 * m, &scale, sizeof scale);
    }
  }
}

// R rows times the M inputs from `begin` on.
template <class W, int R, int M>
void tile(const Matrix& w, const uint16_t* x, int64_t count, int64_t begin, int64_t row, float* y,
          int64_t y_stride) {
  const int64_t stride = w.columns * W::bytes;
  const char* base = (const char*)w.weight + row * stride;
  __m512 total[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) total[r][m] = _mm512_setzero_ps();
  for (int64_t block = 0; block < block_count_of(w.columns); block++) {
    const uint16_t* room = block_of((uint16_t*)x, block, count);
    const uint16_t* inputs = room + begin * BLOCK;
    const char* p = base + block * BLOCK * W::bytes;
    const int64_t columns = std::min(w.columns - block * BLOCK, BLOCK);
    typename W::Sum sums[R][M];
    for (int r = 0; r < R; r++) {
      // The next rows, in the order of memory: another one costs half of the bandwidth.
      for (int64_t line = 0; R > 1 && line < BLOCK * W::bytes; line += 64)
        _mm_prefetch(base + R * stride + (block * R + r) * BLOCK * W::bytes + line, _MM_HINT_T0);
      for (int m = 0; m < M; m++) sums[r][m] = W::zero();
    }
    const auto step = [&](int64_t k, const auto&... mask) {
      __m512i weights[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) weights[r] = W::load(p + r * stride + k * W::bytes, mask...);
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) {
        const __m512i input = _mm512_loadu_si512(inputs + m * BLOCK + k);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sums[r][m] = W::dot(sums[r][m], weights[r], input);
      }
    };
    int64_t k = 0;
    for (; k + STEP <= columns; k += STEP) step(k);
    if (k < columns) step(k, mask_of<__mmask32>(columns - k));
    for (int m = 0; m < M; m++) {
      float scale;
      memcpy(&scale, room + count * BLOCK + 2 * (begin + m), sizeof scale);
      for (int r = 0; r < R; r++) total[r][m] = W::add(total[r][m], sums[r][m], scale);
    }
  }
  for (int r = 0; r < R; r++) {
    const float scale = row_scale(w, row + r);
    const float bias = w.bias ? read_float(w.bias, w.bias_type, row + r) : 0.0f;
    for (int m = 0; m < M; m++)
      y[(begin + m) * y_stride + row + r] = _mm512_reduce_add_ps(total[r][m]) * scale + bias;
  }
}

// One input takes one row at a time, which reads memory in order; more share what is read, as many
// rows as leave registers for the rest (a sum takes two accumulators).
template <class W, int M>
void rows(const Matrix& w, const uint16_t* x, int64_t count, int64_t begin, int64_t row,
          int64_t high, float* y, int64_t y_stride) {
  constexpr int R = M == 1 ? 1 : 8 / M < 4 ? 8 / M : 4;
  int64_t r = 0;
  for (; r + R <= high; r += R) tile<W, R, M>(w, x, count, begin, row + r, y, y_stride);
  for (; r < high; r++) tile<W, 1, M>(w, x, count, begin, row + r, y, y_stride);
}

template <class W>
void product(const Matrix& w, const uint16_t* x, int64_t count, int64_t first, int64_t last,
             float* y, int64_t y_stride) {
  for (int64_t row = first; row < last; row += 4) {
    const int64_t high = std::min<int64_t>(last - row, 4);
    int64_t m = 0;
    for (; m + 4 <= count; m += 4) rows<W, 4>(w, x, count, m, row, high, y, y_stride);
    for (; m + 2 <= count; m += 2) rows<W, 2>(w, x, count, m, row, high, y, y_stride);
    if (m < count) rows<W, 1>(w, x, count, m, row, high, y, y_stride);
  }
}

}  // namespace

const Pairs pairs_int8 = {arrange<Int8>, product<Int8>};
const Pairs pairs_bfloat16 = {arrange<Bfloat16>, product<Bfloat16>};

TARGET_END
#endif

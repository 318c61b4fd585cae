// 4-bit codes times bfloat16 inputs, two columns at a time, for processors with AVX-512 BF16 and VBMI.
#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,fma,f16c")
#endif

#include "pairs.h"

namespace {

// Where column k of input m is. Of all inputs the same 32 columns stand together: rows at distances
// of a large power of two would evict each other from the cache.
inline int64_t place(int64_t m, int64_t k, int64_t count) {
  return k / 32 * 32 * count + 32 * m + k % 32;
}

inline __m512bh load_pairs(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }

template <int R, int M>
void finish(const Matrix& w, int64_t row, __m512 (&acc)[R][M], float* y, int64_t y_stride) {
  for (int r = 0; r < R; r++) {
    const float bias = w.bias ? read_float(w.bias, w.bias_type, row + r) : 0.0f;
    for (int m = 0; m < M; m++)
      y[m * y_stride + row + r] = _mm512_reduce_add_ps(acc[r][m]) + bias;
  }
}

// -8 to 7 in bfloat16, twice: the lookup reads five bits, and the fifth belongs to another code.
inline __m512i code_values() {
  const __m512i codes = _mm512_set_epi32(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  const __m256i half = (__m256i)_mm512_cvtneps_pbh(_mm512_cvtepi32_ps(codes));
  return _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1);
}

// Where the first four codes of a 64-bit lane start, in bits.
inline __m512i code_shifts() { return _mm512_set1_epi64(0x000c000800040000); }

// Which scale of 128 columns each sum of eight columns takes.
inline __m512i scale_index(int64_t size) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const int shift = size >= 128 ? 4 : __builtin_ctz((unsigned)size) - 3;
  return _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(shift));
}

// The scales of the 128 columns from k on, one for each of the sixteen sums of eight columns.
inline __m512 load_scales(const Matrix& w, int64_t row, int64_t k, int64_t size, __m512i index) {
  const int64_t first = k / size, here = size < 128 ? 128 / size : 1;
  const int64_t left = w.groups - first < here ? w.groups - first : here;
  const __mmask8 mask = (__mmask8)((1u << left) - 1);
  const char* p = (const char*)w.scale + (row * w.groups + first) * (w.scale_type ? 2 : 4);
  __m256 scales;
  if (w.scale_type == FLOAT32) {
    scales = _mm256_maskz_loadu_ps(mask, p);
  } else {
    const __m128i bits = _mm_maskz_loadu_epi16(mask, p);
    scales = w.scale_type == FLOAT16
                 ? _mm256_cvtph_ps(bits)
                 : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  return _mm512_permutexvar_ps(index, _mm512_castps256_ps512(scales));
}

// 64 bytes are 128 codes. Of each 64-bit lane's sixteen codes, the i-th of four vectors takes four,
// to look their values up in a table; `arrange` puts the inputs into the same order.
template <int R, int M>
void packed(const Matrix& w, const uint16_t* x, int64_t count, int64_t row, float* y,
            int64_t y_stride) {
  const int64_t stride = row_bytes(w);
  const int64_t size = w.columns / w.groups;
  const char* base = (const char*)w.weight + row * stride;
  const __m512i table = code_values(), shift = code_shifts();
  const __m512i index = scale_index(size);
  __m512 acc[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) acc[r][m] = _mm512_setzero_ps();
  for (int64_t k = 0; k < w.columns; k += 128) {
    const int64_t bytes = (w.columns - k) / 2;
    const __mmask64 mask = bytes >= 64 ? ~0ull : (1ull << bytes) - 1;
    __m512i codes[R];
    __m512 sums[R][M];
    for (int r = 0; r < R; r++) {
      const char* p = base + r * stride + k / 2;
      // The next rows, in the order of memory: another one costs half of the bandwidth.
      _mm_prefetch(base + R * stride + k / 2 * R + 64 * r, _MM_HINT_T0);
      codes[r] = _mm512_maskz_loadu_epi8(mask, p);
      for (int m = 0; m < M; m++) sums[r][m] = _mm512_setzero_ps();
    }
    for (int i = 0; i < 4; i++) {
      __m512bh weights[R];
      for (int r = 0; r < R; r++)
        weights[r] = (__m512bh)_mm512_permutexvar_epi16(
            _mm512_multishift_epi64_epi8(_mm512_add_epi8(shift, _mm512_set1_epi8((char)(16 * i))), codes[r]), table);
      for (int m = 0; m < M; m++) {
        const __m512bh input = load_pairs(x + place(m, k + 32 * i, count));
        for (int r = 0; r < R; r++) sums[r][m] = _mm512_dpbf16_ps(sums[r][m], weights[r], input);
      }
    }
    for (int r = 0; r < R; r++) {
      const __m512 scales = load_scales(w, row + r, k, size, index);
      for (int m = 0; m < M; m++) acc[r][m] = _mm512_fmadd_ps(sums[r][m], scales, acc[r][m]);
    }
  }
  finish<R, M>(w, row, acc, y, y_stride);
}

// As many rows at a time as leave registers for the rest (a sum takes two accumulators) and, of rows
// whose distance is a power of two, fit into a cache.
template <int M>
void rows(const Matrix& w, const uint16_t* x, int64_t count, int64_t row, int64_t high, float* y,
          int64_t y_stride) {
  constexpr int R = 2;
  int64_t r = 0;
  for (; r + R <= high; r += R) packed<R, M>(w, x, count, row + r, y, y_stride);
  for (; r < high; r++) packed<1, M>(w, x, count, row + r, y, y_stride);
}

void product(const Matrix& w, const uint16_t* x, int64_t count, int64_t first, int64_t last,
             float* y, int64_t y_stride) {
  for (int64_t row = first; row < last; row += 4) {
    const int64_t high = last - row < 4 ? last - row : 4;
    int64_t m = 0;
    for (; m + 4 <= count; m += 4)
      rows<4>(w, x + place(m, 0, count), count, row, high, y + m * y_stride, y_stride);
    for (; m + 2 <= count; m += 2)
      rows<2>(w, x + place(m, 0, count), count, row, high, y + m * y_stride, y_stride);
    if (m < count)
      rows<1>(w, x + place(m, 0, count), count, row, high, y + m * y_stride, y_stride);
  }
}

inline __m256i load_bfloat16(const float* x, int64_t columns, int64_t k) {
  const int64_t left = columns - k;
  const __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
  return (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + k));
}

void arrange(const float* x, int64_t count, int64_t columns, uint16_t* pairs) {
  const int64_t padded = padded_columns(columns);
  for (int64_t m = 0; m < count; m++) {
    const float* from = x + m * columns;
    for (int64_t k = 0; k < padded; k += 16) {
      const __m256i sixteen = load_bfloat16(from, columns, k);
      // One 64-bit lane of codes takes four of its columns to each of the four vectors of `packed`.
      alignas(32) uint64_t fours[4];
      _mm256_store_si256((__m256i*)fours, sixteen);
      for (int i = 0; i < 4; i++)
        memcpy(pairs + place(m, k / 128 * 128 + 32 * i, count) + k % 128 / 4, fours + i, 8);
    }
  }
}

}  // namespace

const Pairs pairs_int4 = {arrange, product, sparse_avx512_bf16};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

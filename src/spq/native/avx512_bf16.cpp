// 4-bit codes times bfloat16 inputs, two columns at a time, for processors with AVX-512 BF16 and VBMI.
#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <algorithm>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,fma,f16c")
#endif

#include "pairs.h"

namespace {

// A block of all inputs stands together: rows at distances of a large power of two would evict each
// other from the cache. Within it, four times 32 columns of every input, then the starts of each.
inline uint16_t* block_of(const uint16_t* x, int64_t block, int64_t count) {
  return (uint16_t*)x + block * (BLOCK + BEHIND) * count;
}

inline int64_t quarter_of(int64_t m, int64_t i, int64_t count) { return 32 * (i * count + m); }

inline int64_t starts_of(int64_t m, int64_t count) { return BLOCK * count + BEHIND * m; }

inline __m512bh load_pairs(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }

// A stored code of c, which stands for c - 8, is read as 128 + c: bfloat16 has it in its lowest bits.
constexpr float EXCESS = 136.0f;

// The i-th code of every sixteen bits, in excess.
inline __m512bh weights_of(__m512i codes, int i) {
  const __m512i moved = i ? _mm512_srli_epi16(codes, 4 * i) : codes;
  constexpr int and_or = 0xea;
  return (__m512bh)_mm512_ternarylogic_epi32(moved, _mm512_set1_epi16(0x000f),
                                             _mm512_set1_epi16(0x4300), and_or);
}

// Which of a block's scales each sum of eight columns takes.
inline __m512i scale_index(int64_t size) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const int shift = size >= BLOCK ? 4 : __builtin_ctz((unsigned)size) - 3;
  return _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(shift));
}

// A row's scales from group `first` on, as many as `mask` says, one for each sum of eight columns.
inline __m512 load_scales(const Matrix& w, int64_t row, int64_t first, __mmask8 mask,
                          __m512i index) {
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

inline __m256 halves_added(__m512 v) {
  return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

// The sums of four vectors.
inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m256 ab = _mm256_hadd_ps(halves_added(a), halves_added(b));
  const __m256 cd = _mm256_hadd_ps(halves_added(c), halves_added(d));
  const __m256 all = _mm256_hadd_ps(ab, cd);
  return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

template <int R, int M>
void finish(const Matrix& w, int64_t row, __m512 (&acc)[R][M], float* y, int64_t y_stride) {
  for (int m = 0; m < M; m++) {
    float* out = y + m * y_stride + row;
    if constexpr (R == 4)
      _mm_storeu_ps(out, sums_of(acc[0][m], acc[1][m], acc[2][m], acc[3][m]));
    else
      for (int r = 0; r < R; r++) out[r] = _mm512_reduce_add_ps(acc[r][m]);
    for (int r = 0; w.bias && r < R; r++) out[r] += read_float(w.bias, w.bias_type, row + r);
  }
}

// R rows times the M inputs from `begin` on. 64 bytes are 128 codes, four to sixteen bits: `arrange`
// puts the inputs into the order in which these come.
template <int R, int M>
void packed(const Matrix& w, const uint16_t* x, int64_t count, int64_t begin, int64_t row, float* y,
            int64_t y_stride) {
  const int64_t stride = row_bytes(w), size = w.columns / w.groups;
  const char* base = (const char*)w.weight + row * stride;
  const __m512i index = scale_index(size);
  const int64_t here = size < BLOCK ? BLOCK / size : 1;
  // Narrow rows come round before memory has answered.
  const int64_t ahead = std::max<int64_t>(R * stride, 2048);
  int64_t group = 0, within = 0;
  __m512 acc[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) acc[r][m] = _mm512_setzero_ps();
  for (int64_t block = 0; block < block_count_of(w.columns); block++) {
    const int64_t bytes = (w.columns - block * BLOCK) / 2;
    const __mmask64 mask = bytes >= 64 ? ~0ull : (1ull << bytes) - 1;
    const uint16_t* inputs = block_of(x, block, count);
    __m512i codes[R];
    __m512 sums[R][M];
    for (int r = 0; r < R; r++) {
      // The next rows, in the order of memory: another one costs half of the bandwidth.
      _mm_prefetch(base + ahead + (block * R + r) * 64, _MM_HINT_T0);
      codes[r] = _mm512_maskz_loadu_epi8(mask, base + r * stride + block * 64);
      for (int m = 0; m < M; m++) sums[r][m] = _mm512_loadu_ps(inputs + starts_of(begin + m, count));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      __m512bh weights[R];
      for (int r = 0; r < R; r++) weights[r] = weights_of(codes[r], i);
      for (int m = 0; m < M; m++) {
        const __m512bh input = load_pairs(inputs + quarter_of(begin + m, i, count));
        for (int r = 0; r < R; r++) sums[r][m] = _mm512_dpbf16_ps(sums[r][m], weights[r], input);
      }
    }
    const int64_t left = std::min(w.groups - group, here);
    for (int r = 0; r < R; r++) {
      const __m512 scales = load_scales(w, row + r, group, (__mmask8)((1u << left) - 1), index);
      for (int m = 0; m < M; m++) acc[r][m] = _mm512_fmadd_ps(sums[r][m], scales, acc[r][m]);
    }
    within += BLOCK;
    if (within >= size) group += here, within = 0;
  }
  finish<R, M>(w, row, acc, y, y_stride);
}

// As many rows at a time as leave registers for the rest (a sum takes two accumulators).
template <int M>
void rows(const Matrix& w, const uint16_t* x, int64_t count, int64_t begin, int64_t row,
          int64_t high, float* y, int64_t y_stride) {
  constexpr int R = M == 1 ? 4 : 2;
  int64_t r = 0;
  for (; r + R <= high; r += R) packed<R, M>(w, x, count, begin, row + r, y, y_stride);
  for (; r < high; r++) packed<1, M>(w, x, count, begin, row + r, y, y_stride);
}

void product(const Matrix& w, const uint16_t* x, int64_t count, int64_t first, int64_t last,
             float* y, int64_t y_stride) {
  for (int64_t row = first; row < last; row += 4) {
    const int64_t high = std::min<int64_t>(last - row, 4);
    int64_t m = 0;
    for (; m + 4 <= count; m += 4) rows<4>(w, x, count, m, row, high, y + m * y_stride, y_stride);
    for (; m + 2 <= count; m += 2) rows<2>(w, x, count, m, row, high, y + m * y_stride, y_stride);
    if (m < count) rows<1>(w, x, count, m, row, high, y + m * y_stride, y_stride);
  }
}

inline __m512i load_bfloat16(const float* x, int64_t columns, int64_t k) {
  __m256i half[2];
  for (int i = 0; i < 2; i++) {
    const int64_t left = columns - k - 16 * i;
    const __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
    half[i] = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + k + 16 * i));
  }
  return _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
}

// The i-th of four vectors takes the i-th column of every four, as `weights_of` does.
void arrange(const float* x, int64_t count, int64_t columns, uint16_t* arranged) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  for (int64_t block = 0; block < block_count_of(columns); block++) {
    uint16_t* room = block_of(arranged, block, count);
    for (int64_t m = 0; m < count; m++) {
      for (int64_t k = 0; k < BLOCK; k += 32) {
        const __m512i some = load_bfloat16(x + m * columns, columns, block * BLOCK + k);
        for (int i = 0; i < 4; i++)
          _mm_storeu_si128((__m128i*)(room + quarter_of(m, i, count) + k / 4),
                           _mm512_cvtepi64_epi16(_mm512_srli_epi64(some, 16 * i)));
      }
      __m512 sum = _mm512_setzero_ps();
      for (int i = 0; i < 4; i++)
        sum = _mm512_dpbf16_ps(sum, ones, load_pairs(room + quarter_of(m, i, count)));
      _mm512_storeu_ps(room + starts_of(m, count), _mm512_mul_ps(sum, _mm512_set1_ps(-EXCESS)));
    }
  }
}

}  // namespace

const Pairs pairs_int4 = {arrange, product};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

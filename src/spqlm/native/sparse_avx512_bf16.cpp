// Sparse 4-bit codes times some inputs, for processors with AVX-512 BF16, VBMI and VBMI2.
#if defined(__x86_64__) && defined(__GNUC__)

#include "target.h"

TARGET_BEGIN(AVX512 ",avx512bf16,avx512vbmi,avx512vbmi2,f16c,popcnt")

#include "lanes.h"
#include "pairs.h"
#include "sparse_impl.h"
#include "written.h"

namespace {

// Sixteen codes as numbers in bfloat16, in order.
inline __m256i in_bfloat16(const char* p) {
  // Where the four codes of each 64-bit lane start, in bits.
  const __m256i shifts = _mm256_set_epi64x(0x003c003800340030, 0x002c002800240020,
                                           0x001c001800140010, 0x000c000800040000);
  const __m256i values = _mm256_set_epi64x(0x40e040c040a04080, 0x404040003f800000,
                                           0xbf80c000c040c080, 0xc0a0c0c0c0e0c100);
  int64_t codes;
  memcpy(&codes, p, sizeof codes);
  const __m256i lanes = _mm256_set1_epi64x(codes);
  return _mm256_permutexvar_epi16(_mm256_multishift_epi64_epi8(shifts, lanes), values);
}

// Up to sixteen numbers of a float type.
template <FloatType S>
inline __m512 load_sixteen(__mmask16 mask, const char* p) {
  if constexpr (S == FLOAT32) {
    return _mm512_maskz_loadu_ps(mask, p);
  } else if constexpr (S == FLOAT16) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
  } else {
    static_assert(S == BFLOAT16);
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
}

// Sixteen columns at a time: the first eight and the last eight in turn, so that codes only need to be
// repeated and shifted.
struct Sixteen {
  using F = __m512;
  static constexpr int width = 16;
  static F zero() { return _mm512_setzero_ps(); }
  static F set(float value) { return _mm512_set1_ps(value); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static F codes(const char* p) {
    int64_t all;
    memcpy(&all, p, sizeof all);
    const __m512i shifts =
        _mm512_set_epi32(28, 28, 24, 24, 20, 20, 16, 16, 12, 12, 8, 8, 4, 4, 0, 0);
    const __m512 values = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi64(all), shifts), values);
  }
};

// Groups of eight columns, in order.
struct Eight {
  using F = __m256;
  static constexpr int width = 8;
  static F zero() { return _mm256_setzero_ps(); }
  static F set(float value) { return _mm256_set1_ps(value); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static float sum(F a) { return _mm512_reduce_add_ps(_mm512_zextps256_ps512(a)); }
  static F codes(const char* p) {
    int32_t all;
    memcpy(&all, p, sizeof all);
    const __m256i shifts = _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    const __m256i some = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(all), shifts),
                                          _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(some, _mm256_set1_epi32(8)));
  }
};

// 4-bit codes times inputs that `group_inputs` brought into the order of `Sixteen`.
struct Interleaved {
  static constexpr int most = 16;

  static int64_t set_bits(const uint8_t* mask, int64_t bits, int64_t step, uint16_t* place) {
    const __m512i first = _mm512_cvtepu8_epi16(_mm256_set_epi64x(
        0x1f1e1d1c1b1a1918, 0x1716151413121110, 0x0f0e0d0c0b0a0908, 0x0706050403020100));
    __m512i places = _mm512_mullo_epi16(first, _mm512_set1_epi16((int16_t)step));
    const __m512i further = _mm512_set1_epi16((int16_t)(32 * step));
    uint16_t* next = place;
    for (int64_t base = 0; base < bits; base += 32) {
      const uint32_t word = bits_from<uint32_t>(mask, bits, base);
      _mm512_storeu_si512(next, _mm512_maskz_compress_epi16(word, places));
      places = _mm512_add_epi16(places, further);
      next += __builtin_popcount(word);
    }
    return next - place;
  }

  static void floats(const void* data, FloatType type, int64_t first, int64_t count, float* out) {
    switch (type) {
      case FLOAT32: return floats<FLOAT32>(data, first, count, out);
      case BFLOAT16: return floats<BFLOAT16>(data, first, count, out);
      case FLOAT16: return floats<FLOAT16>(data, first, count, out);
    }
    __builtin_trap();
  }

  template <FloatType S>
  static void floats(const void* data, int64_t first, int64_t count, float* out) {
    constexpr int64_t bytes = element_size(S);
    const char* p = (const char*)data + first * bytes;
    for (int64_t i = 0; i < count; i += 16)
      _mm512_storeu_ps(out + i, load_sixteen<S>(mask_of(count - i), p + i * bytes));
  }

  template <int M>
  static void tile(const Matrix& w, const Kept& kept, const float* x, float* sums) {
    switch (w.group_size) {
      case 8: return zeros<Eight, 8, M>(kept, x, sums);
      case 16: return zeros<Sixteen, 16, M>(kept, x, sums);
      case 32: return zeros<Sixteen, 32, M>(kept, x, sums);
      case 64: return zeros<Sixteen, 64, M>(kept, x, sums);
    }
    __builtin_trap();
  }

  template <class V, int G, int M>
  static void zeros(const Kept& kept, const float* x, float* sums) {
    return kept.zero ? run<V, G, M, true>(kept, x, sums) : run<V, G, M, false>(kept, x, sums);
  }

  // As many groups side by side as keep enough sums apart: one would wait for itself.
  template <class V, int G, int M, bool Z>
  static void run(const Kept& kept, const float* x, float* sums) {
    constexpr int U = M < 4 ? 4 / M : 1;
    typename V::F acc[U][M];
    for (int u = 0; u < U; u++)
      for (int m = 0; m < M; m++) acc[u][m] = V::zero();
    int64_t i = 0;
    for (; i + U <= kept.count; i += U) {
      _mm_prefetch(kept.codes + i * (G / 2) + 2048, _MM_HINT_T0);
      for (int u = 0; u < U; u++) group<V, G, M, Z>(kept, i + u, x, acc[u]);
    }
    for (; i < kept.count; i++) group<V, G, M, Z>(kept, i, x, acc[0]);
    for (int m = 0; m < M; m++) {
      for (int u = 1; u < U; u++) acc[0][m] = V::add(acc[0][m], acc[u][m]);
      sums[m] += V::sum(acc[0][m]);
    }
  }

  template <class V, int G, int M, bool Z>
  static inline void group(const Kept& kept, int64_t i, const float* x, typename V::F (&acc)[M]) {
    const float* input = (const float*)((const char*)x + UNIT * (int64_t)kept.place[i]);
    const typename V::F scale = V::set(kept.scale[i]);
#pragma GCC unroll 8
    for (int k = 0; k < G; k += V::width) {
      const typename V::F codes = V::codes(kept.codes + i * (G / 2) + k / 2);
      const typename V::F weights =
          Z ? V::fma(codes, scale, V::set(kept.zero[i])) : V::mul(codes, scale);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) acc[m] = V::fma(weights, V::load(input + m * G + k), acc[m]);
    }
  }
};

}  // namespace

void sparse_avx512_bf16(const Matrix& w, const float* x, int64_t count, int64_t first, int64_t last,
                        float* y, int64_t y_stride, float* carried) {
  sparse_product<Interleaved>(w, x, count, first, last, y, y_stride, carried);
}

void write_out_avx512_bf16(const Matrix& w, int64_t first, int64_t last, char* out) {
  const int64_t parts = w.group_size / Sixteen::width, bytes = 2 * w.group_size;
  Room room;
  for (int64_t row = first; row < last; row++, out += 2 * w.columns) {
    memset(out, 0, 2 * w.columns);
    const auto place = [&](const Kept& kept, int64_t base) {
      const char* codes = kept.codes;
      for (int64_t i = 0; i < kept.count; i++) {
        const __m512 scale = _mm512_set1_ps(kept.scale[i]);
        const __m512 zero = _mm512_set1_ps(kept.zero ? kept.zero[i] : 0.0f);
        char* to = out + base * bytes + UNIT * (int64_t)kept.place[i];
        for (int64_t p = 0; p < parts; p++, codes += Sixteen::width / 2, to += 2 * Sixteen::width) {
          const __m512i wide = _mm512_cvtepu16_epi32(in_bfloat16(codes));
          const __m512 code = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
          const __m256bh weights = _mm512_cvtneps_pbh(_mm512_fmadd_ps(code, scale, zero));
          _mm256_storeu_si256((__m256i*)to, (__m256i)weights);
        }
      }
    };
    for_kept<Interleaved>(w, row, kept_before(w, row), kept_before(w, row + 1),
                          kept_before(w, last), bytes, room, place);
  }
}

TARGET_END
#endif

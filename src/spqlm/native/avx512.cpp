// Kernels for processors with AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "target.h"

TARGET_BEGIN(AVX512)

#include "kernels_impl.h"
#include "planes_avx512.h"

namespace {

struct Avx512 {
  using F = __m512;
  static constexpr int width = 16;
  static constexpr int tile = 16;  // accumulators; the other half of the registers is for inputs

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float value) { return _mm512_set1_ps(value); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static void sums(F a, F b, F c, F d, float* out) {
    _mm_storeu_ps(out, sums_of(a, b, c, d));
  }
  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_int8(const char* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
  }
  static F load_bfloat16(const char* p) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
  static F load_float16(const char* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  }

  template <int Coding>
  static void expand(const Matrix& w, int64_t row, int64_t high, int64_t first, int8_t* to) {
    expand_rows<Coding>(w, row, high, first, to);
  }
  // Sixteen codes in order.
  static F load_int4(const char* p) {
    const __m512i bytes = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i*)p));
    const __m512i eight = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i shifts =
        _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
    const __m512i nibbles = _mm512_srlv_epi32(_mm512_permutexvar_epi32(eight, bytes), shifts);
    const F values = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
    return _mm512_permutexvar_ps(nibbles, values);  // reads the low four bits alone
  }
  static const Kernels& narrower() { return kernels_avx2; }
  static void deinterleave(const float* p, F& even, F& odd) {
    const __m512i evens =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const F low = load(p), high = load(p + 16);
    even = _mm512_permutex2var_ps(low, evens, high);
    odd = _mm512_permutex2var_ps(low, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), high);
  }
  static void interleave(F even, F odd, F& low, F& high) {
    const __m512i first =
        _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    low = _mm512_permutex2var_ps(even, first, odd);
    high = _mm512_permutex2var_ps(even, _mm512_add_epi32(first, _mm512_set1_epi32(8)), odd);
  }

  template <FloatType S>
  static void store(char* p, F a) {
    if constexpr (S == FLOAT32) {
      _mm512_storeu_ps((float*)p, a);
    } else if constexpr (S == FLOAT16) {
      _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    } else {
      static_assert(S == BFLOAT16);
      _mm256_storeu_si256((__m256i*)p, bfloat16_of(a));
    }
  }
};

}  // namespace

const Kernels kernels_avx512 = make_kernels<Avx512>();

TARGET_END
#endif

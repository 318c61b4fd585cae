// Kernels for processors with AVX2, FMA and F16C.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "target.h"

TARGET_BEGIN("avx2,fma,f16c")

#include "kernels_impl.h"
#include "planes_avx2.h"
#include "sums.h"

namespace {

// A block of a row that has BLOCK or HALF columns, as `expand_plainly`.
template <int Coding>
void expand_block(const Planes<Coding>& planes, int64_t columns, int8_t* to) {
  const __m256i offset = _mm256_set1_epi8(offset_of(Coding));
  for (int64_t half = 0; half < columns / HALF; half++) {
    const Half codes = load_half<Coding>(planes, columns, half);
    const __m256i even = _mm256_sub_epi8(codes.even, offset), odd = _mm256_sub_epi8(codes.odd, offset);
    _mm256_storeu_si256((__m256i*)to + 2 * half, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256((__m256i*)to + 2 * half + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
}

struct Avx2 {
  using F = __m256;
  static constexpr int width = 8;
  static constexpr int tile = 8;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float value) { return _mm256_set1_ps(value); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(F a) { return sum_of(a); }
  static void sums(F a, F b, F c, F d, float* out) { _mm_storeu_ps(out, sums_of(a, b, c, d)); }
  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load_int8(const char* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  }
  static F load_bfloat16(const char* p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  }
  static F load_float16(const char* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  }

  template <int Coding>
  static void expand(const Matrix& w, int64_t row, int64_t high, int64_t first, int8_t* to) {
    const char* p = (const char*)w.weight + row * row_bytes(w);
    const int64_t here = w.columns - first;
    for (int64_t r = 0; r < high; r++, p += row_bytes(w), to += BLOCK) {
      const Planes<Coding> planes = {p, w.columns, first};
      if (here >= BLOCK)
        expand_block<Coding>(planes, BLOCK, to);
      else if (here == HALF)
        expand_block<Coding>(planes, HALF, to);
      else
        expand_plainly<Coding>(planes, to);
    }
  }
  // Eight codes in order.
  static F load_int4(const char* p) {
    int32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    const __m256i shifts = _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    const __m256i nibbles = _mm256_srlv_epi32(_mm256_set1_epi32(bytes), shifts);
    const __m256i low = _mm256_and_si256(nibbles, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(low, _mm256_set1_epi32(8)));
  }
  static void deinterleave(const float* p, F& even, F& odd) {
    const F low = load(p), high = load(p + 8);
    const F a = _mm256_permute2f128_ps(low, high, 0x20);  // columns 0-3 and 8-11
    const F b = _mm256_permute2f128_ps(low, high, 0x31);  // columns 4-7 and 12-15
    even = _mm256_shuffle_ps(a, b, 0x88);
    odd = _mm256_shuffle_ps(a, b, 0xdd);
  }
  static void interleave(F even, F odd, F& low, F& high) {
    const F a = _mm256_unpacklo_ps(even, odd), b = _mm256_unpackhi_ps(even, odd);
    low = _mm256_permute2f128_ps(a, b, 0x20);
    high = _mm256_permute2f128_ps(a, b, 0x31);
  }

  template <FloatType S>
  static void store(char* p, F a) {
    if constexpr (S == FLOAT32) {
      _mm256_storeu_ps((float*)p, a);
    } else if constexpr (S == FLOAT16) {
      _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    } else {
      static_assert(S == BFLOAT16);
      const __m256i bits = _mm256_castps_si256(a);
      const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
      const __m256i up = _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff));
      const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, up), 16);
      const __m256i packed = _mm256_packus_epi32(rounded, rounded);
      const __m256i joined = _mm256_permute4x64_epi64(packed, 0xd8);
      _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(joined));
    }
  }
};

}  // namespace

const Kernels kernels_avx2 = make_kernels<Avx2>();

TARGET_END
#endif

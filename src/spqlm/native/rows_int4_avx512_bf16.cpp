// Few inputs times 4-bit codes, for processors with AVX-512 VNNI: bytes of codes times bytes of inputs in
// fixed point, eight columns to a sum.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "target.h"

TARGET_BEGIN(AVX512 ",avx512vnni,f16c")

#include "fixed_point.h"
#include "sums.h"

namespace {

// What of an input's bytes a vector of codes meets. Codes of two columns share a byte.
enum Part { EVEN_UPPER, EVEN_LOWER, ODD_UPPER, ODD_LOWER };
constexpr int64_t PARTS = 4, PART_BYTES = 64;

// All inputs: of one block, each part of all of them, and then what the sums of each start with, int32 [16];
// behind all blocks, what the numbers of a block are multiples of, float32 [blocks, count]. Blocks stand
// together because rows at distances of a large power of two would evict each other from the cache.
struct Arranged {
  char* data;
  int64_t count;
  int64_t columns;

  char* block(int64_t index) const { return data + index * (PARTS + 1) * PART_BYTES * count; }
  char* part(int64_t index, int64_t m, int which) const {
    return block(index) + PART_BYTES * (which * count + m);
  }
  char* start(int64_t index, int64_t m) const { return part(index, m, PARTS); }
  float* units(int64_t index) const {
    return (float*)block(block_count_of(columns)) + index * count;
  }
};
static_assert((PARTS + 1) * PART_BYTES + sizeof(float) <= sizeof(uint16_t) * (BLOCK + BESIDE));

// Which of a block's scales each sum of eight columns takes.
inline __m512i scale_index(int64_t size) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const int shift = size >= BLOCK ? 4 : __builtin_ctz((unsigned)size) - 3;
  return _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(shift));
}

// Up to eight numbers of a float type.
inline __m256 load_eight(FloatType type, __mmask8 mask, const char* p) {
  switch (type) {
    case FLOAT32: return _mm256_maskz_loadu_ps(mask, p);
    case BFLOAT16: {
      const __m256i wide = _mm256_cvtepu16_epi32(_mm_maskz_loadu_epi16(mask, p));
      return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    case FLOAT16: return _mm256_cvtph_ps(_mm_maskz_loadu_epi16(mask, p));
  }
  __builtin_trap();
}

// A row's scales from group `first` on, as many as `mask` says, one for each sum of eight columns.
inline __m512 load_scales(const Matrix& w, int64_t row, int64_t first, __mmask8 mask,
                          __m512i index) {
  const char* p = (const char*)w.scale + (row * w.groups + first) * element_size(w.scale_type);
  const __m256 scales = load_eight(w.scale_type, mask, p);
  return _mm512_permutexvar_ps(index, _mm512_castps256_ps512(scales));
}

inline __m256 halves_added(__m512 v) {
  return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

template <int R, int M>
void finish(const Matrix& w, int64_t row, __m512 (&acc)[R][M], float* y, int64_t y_stride) {
  for (int m = 0; m < M; m++) {
    float* out = y + m * y_stride + row;
    if constexpr (R == 4)
      _mm_storeu_ps(out, sums_of(halves_added(acc[0][m]), halves_added(acc[1][m]),
                                 halves_added(acc[2][m]), halves_added(acc[3][m])));
    else
      for (int r = 0; r < R; r++) out[r] = _mm512_reduce_add_ps(acc[r][m]);
    for (int r = 0; w.bias && r < R; r++) out[r] += read_float(w.bias, w.bias_type, row + r);
  }
}

// R rows times the M inputs from `begin` on. Stored codes are 0 to 15 and stand for 8 less, which is in the
// starts.
template <int R, int M>
void packed(const Matrix& w, const Arranged& x, int64_t begin, int64_t row, float* y, int64_t y_stride) {
  const int64_t stride = row_bytes(w), size = w.columns / w.groups;
  const char* base = (const char*)w.weight + row * stride;
  const __m512i index = scale_index(size), low = _mm512_set1_epi8(15);
  const int64_t here = size < BLOCK ? BLOCK / size : 1;
  // Narrow rows come round before memory has answered.
  const int64_t ahead = std::max<int64_t>(R * stride, 2048);
  int64_t group = 0, within = 0;
  __m512 acc[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) acc[r][m] = _mm512_setzero_ps();
  for (int64_t block = 0; block < block_count_of(w.columns); block++) {
    const __mmask64 mask = mask_of<__mmask64>((w.columns - block * BLOCK) / 2);
    const __mmask8 scale_mask = mask_of<__mmask8>(std::min(w.groups - group, here));
    __m512i even[R], odd[R];
    __m512 scales[R];
    for (int r = 0; r < R; r++) {
      // The next rows, in the order of memory: another one costs half of the bandwidth.
      _mm_prefetch(base + ahead + (block * R + r) * 64, _MM_HINT_T0);
      const __m512i both = _mm512_maskz_loadu_epi8(mask, base + r * stride + block * 64);
      even[r] = _mm512_and_si512(both, low);
      odd[r] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      scales[r] = load_scales(w, row + r, group, scale_mask, index);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
      const auto part = [&](int which) { return _mm512_loadu_si512(x.part(block, begin + m, which)); };
      const __m512i start = _mm512_loadu_si512(x.start(block, begin + m));
      const __m512 unit = _mm512_set1_ps(x.units(block)[begin + m]);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        __m512i upper = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even[r], part(EVEN_UPPER));
        __m512i lower = _mm512_dpbusd_epi32(start, part(EVEN_LOWER), even[r]);
        upper = _mm512_dpbusd_epi32(upper, odd[r], part(ODD_UPPER));
        lower = _mm512_dpbusd_epi32(lower, part(ODD_LOWER), odd[r]);
        const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(upper, 8), lower);
        const __m512 scale = _mm512_mul_ps(scales[r], unit);
        acc[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, acc[r][m]);
      }
    }
    within += BLOCK;
    if (within >= size) group += here, within = 0;
  }
  finish<R, M>(w, row, acc, y, y_stride);
}

// As many rows at a time as leave registers for the rest (a sum takes two accumulators).
template <int M>
void rows(const Matrix& w, const Arranged& x, int64_t begin, int64_t row, int64_t high, float* y,
          int64_t y_stride) {
  constexpr int R = M == 1 ? 4 : 2;
  int64_t r = 0;
  for (; r + R <= high; r += R) packed<R, M>(w, x, begin, row + r, y, y_stride);
  for (; r < high; r++) packed<1, M>(w, x, begin, row + r, y, y_stride);
}

void product(const Matrix& w, const uint16_t* arranged, int64_t count, int64_t first, int64_t last,
             float* y, int64_t y_stride) {
  const Arranged x = {(char*)arranged, count, w.columns};
  for (int64_t row = first; row < last; row += 4) {
    const int64_t high = std::min<int64_t>(last - row, 4);
    int64_t m = 0;
    for (; m + 4 <= count; m += 4) rows<4>(w, x, m, row, high, y + m * y_stride, y_stride);
    for (; m + 2 <= count; m += 2) rows<2>(w, x, m, row, high, y + m * y_stride, y_stride);
    if (m < count) rows<1>(w, x, m, row, high, y + m * y_stride, y_stride);
  }
}

// A block of one input, in 16 bits each.
void arrange_block(const uint16_t* numbers, const Arranged& to, int64_t block, int64_t m) {
  for (int64_t k = 0; k < BLOCK; k += 32) {
    // Of an even and an odd column in 32 bits, the bytes from the lowest on.
    const __m512i two = _mm512_loadu_si512(numbers + k);
    constexpr Part order[PARTS] = {EVEN_LOWER, EVEN_UPPER, ODD_LOWER, ODD_UPPER};
    for (int byte = 0; byte < PARTS; byte++)
      _mm_storeu_si128((__m128i*)(to.part(block, m, order[byte]) + k / 2),
                       _mm512_cvtepi32_epi8(_mm512_srli_epi32(two, 8 * byte)));
    __m512i sums = _mm512_dpwssd_epi32(_mm512_setzero_si512(), two, _mm512_set1_epi16(-8));
    sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_CDAB));
    sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_BADC));
    _mm_storeu_si128((__m128i*)(to.start(block, m) + k / 2),
                     _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, sums)));
  }
}

void arrange(const float* x, int64_t count, int64_t columns, uint16_t* arranged) {
  const Arranged to = {(char*)arranged, count, columns};
  alignas(64) uint16_t numbers[BLOCK];
  for (int64_t block = 0; block < block_count_of(columns); block++)
    for (int64_t m = 0; m < count; m++) {
      const int64_t first = block * BLOCK;
      to.units(block)[m] = fixed_point(x + m * columns + first, columns - first, numbers);
      arrange_block(numbers, to, block, m);
    }
}

}  // namespace

const Pairs pairs_int4 = {arrange, product};

TARGET_END
#endif

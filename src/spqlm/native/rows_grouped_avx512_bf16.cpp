// Few inputs times codes in groups, for processors with AVX-512 VNNI and VBMI: bytes of codes times bytes of inputs in
// fixed point, eight columns to a sum.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "target.h"

TARGET_BEGIN(AVX512 ",avx512vnni,avx512vbmi,f16c")

#include "factors.h"
#include "fixed_point.h"
#include "planes_vbmi.h"

namespace {

// What of an input's bytes a vector of codes meets.
enum Part { EVEN_UPPER, EVEN_LOWER, ODD_UPPER, ODD_LOWER };
constexpr int64_t PARTS = 4, PART_BYTES = 64;

// All inputs: of one block, each part of all of them, and then minus the sums of eight columns, int32 [16];
// behind all blocks, what the numbers of a block are multiples of, float32 [count, blocks]. Blocks stand
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
  float* units(int64_t m) const {
    const int64_t blocks = block_count_of(columns);
    return (float*)block(blocks) + m * blocks;
  }
};
static_assert((PARTS + 1) * PART_BYTES + sizeof(float) <= sizeof(uint16_t) * (BLOCK + BESIDE));

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

// R rows times the M inputs from `begin` on. What stored codes are more than they stand for is in the starts of
// the sums.
template <int Coding, int R, int M>
void tile(const Factors& factors, const Arranged& x, int64_t begin, int64_t row, float* y, int64_t y_stride) {
  const Matrix& w = factors.w;
  const int64_t stride = row_bytes(w);
  const char* base = (const char*)w.weight + row * stride;
  // The next rows, in the order of memory: another one costs half of the bandwidth. Narrow rows come round before
  // memory has answered.
  const char* next = base + std::max<int64_t>(R * stride, 2048);
  constexpr int64_t bytes = R * BLOCK * bits_of(Coding) / 8;
  factors.prefetch(row + R, R);
  __m512 acc[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) acc[r][m] = _mm512_setzero_ps();
  const auto add = [&](int64_t block, const Block (&codes)[R], const __m512 (&held)[R][M], __m512i number) {
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
      const auto part = [&](int which) { return _mm512_loadu_si512(x.part(block, begin + m, which)); };
      const __m512i start = _mm512_slli_epi32(_mm512_loadu_si512(x.start(block, begin + m)), log_offset_of(Coding));
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        __m512i upper = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[r].even, part(EVEN_UPPER));
        __m512i lower = _mm512_dpbusd_epi32(start, part(EVEN_LOWER), codes[r].even);
        upper = _mm512_dpbusd_epi32(upper, codes[r].odd, part(ODD_UPPER));
        lower = _mm512_dpbusd_epi32(lower, part(ODD_LOWER), codes[r].odd);
        const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(upper, 8), lower);
        const __m512 factor = _mm512_permutexvar_ps(number, held[r][m]);
        acc[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), factor, acc[r][m]);
      }
    }
  };
  const int64_t whole = w.columns / BLOCK;
  for (int64_t from = 0, to; from < factors.blocks; from = to) {
    to = std::min(from + factors.reach(from), factors.blocks);
    __m512 units[M], held[R][M];
    for (int m = 0; m < M; m++) units[m] = factors.units(x.units(begin + m), from);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const __m512 scales = factors.scales(row + r, from);
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) held[r][m] = _mm512_mul_ps(scales, units[m]);
    }
    __m512i number = factors.number_of;
    const auto step = [&](auto extent, int64_t block) {
      const int64_t first = block * BLOCK;
      Block codes[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++)
        codes[r] = load_values<Coding, extent>({base + r * stride, w.columns, first}, w.columns - first);
      add(block, codes, held, number);
    };
    int64_t block = from;
    for (; block < std::min(to, whole); block++, next += bytes) {
      for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(next + line, _MM_HINT_T0);
      step(std::integral_constant<Extent, WHOLE_BLOCK>(), block);
      number = _mm512_add_epi32(number, _mm512_set1_epi32((int)factors.per_block));
    }
    if (block < to) with_extent(w.columns % BLOCK, [&](auto extent) { step(extent, block); });
  }
  finish<R, M>(w, row, acc, y, y_stride);
}

// As many rows at a time as leave registers for the rest (a sum takes two accumulators).
template <int Coding, int M>
void rows(const Factors& factors, const Arranged& x, int64_t begin, int64_t row, int64_t high, float* y,
          int64_t y_stride) {
  constexpr int R = M == 1 ? 4 : 2;
  int64_t r = 0;
  for (; r + R <= high; r += R) tile<Coding, R, M>(factors, x, begin, row + r, y, y_stride);
  for (; r < high; r++) tile<Coding, 1, M>(factors, x, begin, row + r, y, y_stride);
}

template <int Coding>
void product_of(const Factors& factors, const Arranged& x, int64_t first, int64_t last, float* y,
                int64_t y_stride) {
  for (int64_t row = first; row < last; row += 4) {
    const int64_t high = std::min<int64_t>(last - row, 4);
    int64_t m = 0;
    for (; m + 4 <= x.count; m += 4) rows<Coding, 4>(factors, x, m, row, high, y + m * y_stride, y_stride);
    for (; m + 2 <= x.count; m += 2) rows<Coding, 2>(factors, x, m, row, high, y + m * y_stride, y_stride);
    if (m < x.count) rows<Coding, 1>(factors, x, m, row, high, y + m * y_stride, y_stride);
  }
}

void product(const Matrix& w, const uint16_t* arranged, int64_t count, int64_t first, int64_t last,
             float* y, int64_t y_stride) {
  const Arranged x = {(char*)arranged, count, w.columns};
  const Factors factors(w);
  with_coding(w.coding, [&](auto coding) { product_of<coding>(factors, x, first, last, y, y_stride); });
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
    __m512i sums = _mm512_dpwssd_epi32(_mm512_setzero_si512(), two, _mm512_set1_epi16(-1));
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
      to.units(m)[block] = fixed_point(x + m * columns + first, columns - first, numbers);
      arrange_block(numbers, to, block, m);
    }
}

}  // namespace

const Pairs pairs_grouped = {arrange, product};

TARGET_END
#endif

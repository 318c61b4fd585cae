// Few inputs times codes in groups, for processors with AVX2: codes widened to 16 bits times inputs in fixed point, two
// columns to a product, eight to a sum.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "pairs.h"
#include "target.h"

TARGET_BEGIN("avx2,fma,f16c")

#include "fixed_point_avx2.h"
#include "planes_avx2.h"

namespace {

// Columns of half a block that stand at a distance of four, as widened bytes do: those from this one on.
constexpr int64_t STRIDE = 4, ORDER[STRIDE] = {0, 2, 1, 3};
// Of an input's block: its numbers, and minus the sums of eight columns, int32.
constexpr int64_t NUMBERS = BLOCK * sizeof(int16_t), SUMS = BLOCK / 8 * sizeof(int32_t);

// All inputs, a block of all of them behind the other; behind all blocks, what the numbers of a block are multiples
// of, float32 [blocks, count].
struct Arranged {
  char* data;
  int64_t count;
  int64_t columns;

  char* numbers(int64_t block, int64_t m) const { return data + (block * count + m) * (NUMBERS + SUMS); }
  char* sums(int64_t block, int64_t m) const { return numbers(block, m) + NUMBERS; }
  float* unit(int64_t block, int64_t m) const { return (float*)numbers(block_count_of(columns), 0) + block * count + m; }
};
static_assert(NUMBERS + SUMS + sizeof(float) <= sizeof(uint16_t) * (BLOCK + BESIDE));

inline __m256i load(const char* p, int64_t vector = 0) { return _mm256_loadu_si256((const __m256i*)p + vector); }

// Eight numbers of a float type, zeros beyond the last.
inline __m256 load_numbers(FloatType type, const char* p, int64_t count) {
  alignas(32) char last[32] = {};
  if (count < 8) {
    memcpy(last, p, (size_t)(count * element_size(type)));
    p = last;
  }
  switch (type) {
    case FLOAT32: return _mm256_loadu_ps((const float*)p);
    case BFLOAT16: {
      const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
      return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    case FLOAT16: return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  }
  __builtin_trap();
}

// Scales of a row's groups as the sums of half a block need them, for so many blocks at a time.
constexpr int64_t TOGETHER = 16, MOST_SCALES = TOGETHER * BLOCK / 16;

struct Scales {
  const Matrix& w;
  const int64_t size = w.columns / w.groups;
  const int64_t per_half = size < HALF ? HALF / size : 1;
  // Which of the scales of half a block each sum takes.
  const __m256i number_of = _mm256_srl_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0),
                                             _mm_cvtsi32_si128(3 - __builtin_ctz((unsigned)per_half)));

  explicit Scales(const Matrix& w) : w(w) {}

  __m256 of_half(const float* held) const {
    if (per_half == 1) return _mm256_broadcast_ss(held);
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(held), number_of);
  }

  // `per_half` of them for each half of the blocks from this one on.
  void load(int64_t row, int64_t from, float* held) const {
    const int64_t first = from * BLOCK / size, columns = std::min(TOGETHER * BLOCK, w.columns - from * BLOCK);
    const int64_t bytes = element_size(w.scale_type);
    const char* p = (const char*)w.scale + (row * w.groups + first) * bytes;
    if (size <= HALF) {
      // Behind whole halves there may be scales of the next rows, which nothing takes.
      const int64_t count = columns / size;
      const int64_t known = columns % HALF ? count : w.rows * w.groups - (row * w.groups + first);
      for (int64_t i = 0; i < count; i += 8)
        _mm256_storeu_ps(held + i, load_numbers(w.scale_type, p + i * bytes, known - i));
      return;
    }
    int64_t until = size - from * BLOCK % size;
    for (int64_t k = 0; k < columns; until += size) {
      const float scale = read_float(p, w.scale_type, 0);
      p += bytes;
      for (; k < std::min(columns, until); k += HALF) *held++ = scale;
    }
  }
};

// Half a block of a row in 16 bits each, in the order of inputs: its codes as they are stored, or what they stand for.
struct Words {
  __m256i of[STRIDE];

  static Words stored(const Half& codes) {
    const __m256i lower = _mm256_set1_epi16(255);
    return {_mm256_and_si256(codes.even, lower), _mm256_srli_epi16(codes.even, 8), _mm256_and_si256(codes.odd, lower),
            _mm256_srli_epi16(codes.odd, 8)};
  }
  static Words signed_by(__m256i offset, const Half& codes) {
    const __m256i even = _mm256_sub_epi8(codes.even, offset), odd = _mm256_sub_epi8(codes.odd, offset);
    return {_mm256_srai_epi16(_mm256_slli_epi16(even, 8), 8), _mm256_srai_epi16(even, 8),
            _mm256_srai_epi16(_mm256_slli_epi16(odd, 8), 8), _mm256_srai_epi16(odd, 8)};
  }
};

// Half of a block of any number of columns.
template <int Coding, int64_t Columns>
inline Half load_any(const Planes<Coding>& planes, int64_t half) {
  if constexpr (Columns) return load_half<Coding>(planes, Columns, half);
  alignas(32) int8_t codes[BLOCK];
  expand_plainly<Coding>(planes, codes);
  const __m256i first = load((const char*)codes, 2 * half), second = load((const char*)codes, 2 * half + 1);
  const __m256i offset = _mm256_set1_epi8(offset_of(Coding));
  return {_mm256_add_epi8(_mm256_permute2x128_si256(first, second, 0x20), offset),
          _mm256_add_epi8(_mm256_permute2x128_si256(first, second, 0x31), offset)};
}

// R rows times the M inputs from `begin` on. For few inputs, what stored codes are more than they stand for is in the
// starts of the sums.
template <int Coding, int R, int M>
void tile(const Scales& scales, const Arranged& x, int64_t begin, int64_t row, float* y, int64_t y_stride) {
  constexpr bool from_stored = M < 4;
  const Matrix& w = scales.w;
  const int64_t stride = row_bytes(w), blocks = block_count_of(w.columns), whole = w.columns / BLOCK;
  const char* base = (const char*)w.weight + row * stride;
  // The next rows, in the order of memory: another one costs half of the bandwidth. Narrow rows come round before
  // memory has answered.
  const char* next = base + std::max<int64_t>(R * stride, 2048);
  constexpr int64_t bytes = R * BLOCK * bits_of(Coding) / 8;
  __m256 acc[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) acc[r][m] = _mm256_setzero_ps();
  alignas(32) float held[R][MOST_SCALES + 8];
  const auto step = [&](auto columns, int64_t block, int64_t place) {
    const char* inputs = x.numbers(block, begin);
    const float* units = x.unit(block, begin);
    const int64_t here = columns ? columns : w.columns - block * BLOCK;
#pragma GCC unroll 2
    for (int64_t half = 0; half * HALF < here; half++, place += scales.per_half) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const Planes<Coding> planes = {base + r * stride, w.columns, block * BLOCK};
        const Half found = load_any<Coding, columns>(planes, half);
        const Words codes = from_stored ? Words::stored(found)
                                        : Words::signed_by(_mm256_set1_epi8(offset_of(Coding)), found);
        const __m256 scale = scales.of_half(held[r] + place);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const char* p = inputs + m * (NUMBERS + SUMS);
          __m256i sum = _mm256_madd_epi16(codes.of[0], load(p, half * STRIDE));
          if (from_stored)
            sum = _mm256_add_epi32(sum, _mm256_slli_epi32(load(p + NUMBERS, half), log_offset_of(Coding)));
#pragma GCC unroll 4
          for (int64_t i = 1; i < STRIDE; i++)
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes.of[i], load(p, half * STRIDE + i)));
          const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(units[m]));
          acc[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), factor, acc[r][m]);
        }
      }
    }
  };
  for (int64_t from = 0; from < blocks; from += TOGETHER) {
    const int64_t to = std::min(from + TOGETHER, blocks);
    for (int r = 0; r < R; r++) scales.load(row + r, from, held[r]);
    int64_t place = 0;
    for (int64_t block = from; block < std::min(to, whole); block++, place += 2 * scales.per_half, next += bytes) {
      for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(next + line, _MM_HINT_T0);
      step(std::integral_constant<int64_t, BLOCK>(), block, place);
    }
    if (to > whole && w.columns % BLOCK == HALF)
      step(std::integral_constant<int64_t, HALF>(), whole, place);
    else if (to > whole)
      step(std::integral_constant<int64_t, 0>(), whole, place);
  }
  for (int m = 0; m < M; m++) {
    float* out = y + m * y_stride + row;
    for (int r = 0; r < R; r += 4) {
      const auto sum = [&](int i) { return r + i < R ? acc[r + i][m] : _mm256_setzero_ps(); };
      alignas(16) float four[4];
      _mm_store_ps(four, sums_of(sum(0), sum(1), sum(2), sum(3)));
      for (int i = 0; i < 4 && r + i < R; i++)
        out[r + i] = four[i] + (w.bias ? read_float(w.bias, w.bias_type, row + r + i) : 0.0f);
    }
  }
}

// As many rows at a time as there are registers for sums.
template <int Coding, int M>
void rows(const Scales& scales, const Arranged& x, int64_t begin, int64_t row, int64_t high, float* y,
          int64_t y_stride) {
  constexpr int R = M < 8 ? 4 / M : 1;
  int64_t r = 0;
  for (; r + R <= high; r += R) tile<Coding, R, M>(scales, x, begin, row + r, y, y_stride);
  for (; r < high; r++) tile<Coding, 1, M>(scales, x, begin, row + r, y, y_stride);
}

template <int Coding>
void product_of(const Matrix& w, const Arranged& x, int64_t first, int64_t last, float* y, int64_t y_stride) {
  const Scales scales(w);
  for (int64_t row = first; row < last; row += 4) {
    const int64_t high = std::min<int64_t>(last - row, 4);
    int64_t m = 0;
    for (; m + 8 <= x.count; m += 8) rows<Coding, 8>(scales, x, m, row, high, y + m * y_stride, y_stride);
    for (; m + 4 <= x.count; m += 4) rows<Coding, 4>(scales, x, m, row, high, y + m * y_stride, y_stride);
    for (; m + 2 <= x.count; m += 2) rows<Coding, 2>(scales, x, m, row, high, y + m * y_stride, y_stride);
    if (m < x.count) rows<Coding, 1>(scales, x, m, row, high, y + m * y_stride, y_stride);
  }
}

void product(const Matrix& w, const uint16_t* arranged, int64_t count, int64_t first, int64_t last, float* y,
             int64_t y_stride) {
  const Arranged x = {(char*)arranged, count, w.columns};
  with_coding(w.coding, [&](auto coding) { product_of<coding>(w, x, first, last, y, y_stride); });
}

void arrange(const float* x, int64_t count, int64_t columns, uint16_t* arranged) {
  const Arranged to = {(char*)arranged, count, columns};
  alignas(32) int16_t numbers[BLOCK], ordered[BLOCK];
  for (int64_t block = 0; block < block_count_of(columns); block++)
    for (int64_t m = 0; m < count; m++) {
      const int64_t first = block * BLOCK;
      *to.unit(block, m) = fixed_point(x + m * columns + first, columns - first, numbers);
      for (int64_t half = 0; half < BLOCK; half += HALF)
        for (int64_t i = 0; i < STRIDE; i++)
          for (int64_t j = 0; j < HALF / STRIDE; j++)
            ordered[half + i * HALF / STRIDE + j] = numbers[half + STRIDE * j + ORDER[i]];
      memcpy(to.numbers(block, m), ordered, NUMBERS);
      for (int64_t half = 0; half < BLOCK; half += HALF) {
        __m256i sum = _mm256_setzero_si256();
        for (int64_t i = 0; i < STRIDE; i++)
          sum = _mm256_add_epi32(sum, _mm256_madd_epi16(load((const char*)(ordered + half), i), _mm256_set1_epi16(-1)));
        _mm256_storeu_si256((__m256i*)(to.sums(block, m) + half / 8 * sizeof(int32_t)), sum);
      }
    }
}

}  // namespace

const Pairs pairs_grouped_avx2 = {arrange, product};

TARGET_END
#endif

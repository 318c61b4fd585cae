// Some inputs times a matrix, for processors with AMX: its tiles take 16 rows of the weight as they lie in
// memory, or as bytes where they are codes in groups, and 16 inputs at once.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)

#include <algorithm>

#include "target.h"
#include "written.h"

TARGET_BEGIN(AVX512 ",avx512bf16,amx-tile,amx-int8,amx-bf16")

#include "fixed_point.h"
#include "kernels.h"
#include "parallel.h"
#include "planes_avx512.h"
#include "tiles.h"

namespace {

// Columns of codes that a full tile takes; where groups or rows end there may be half of one.
constexpr int64_t FULL = 64, HALF = 32;

// Inputs that a tile holds of so many, how many tiles there are, and where each begins: all are as wide, so
// the last one may share inputs with the one before.
inline int64_t wide_of(int64_t count) { return std::min(count, SIDE); }
inline int64_t parts_of(int64_t count) { return (count + SIDE - 1) / SIDE; }
inline int64_t begin_of(int64_t part, int64_t count) { return std::min(part * SIDE, count - wide_of(count)); }

// Tiles of `high` rows of the weight and of `count` inputs: 0 and 1 hold sums, 2 a full tile of the
// weight, 3 and 4 the inputs for it, and 5, 6 and 7 the same for half a tile.
TileShapes shapes_of(int64_t high, int64_t count) {
  TileShapes shapes;
  const auto set = [&shapes](int tile, int64_t rows, int64_t bytes) {
    shapes.rows[tile] = (uint8_t)rows;
    shapes.bytes[tile] = (uint16_t)bytes;
  };
  for (int tile : {0, 1}) set(tile, high, 4 * count);
  set(2, high, FULL);
  for (int tile : {3, 4}) set(tile, FULL / 4, 4 * count);
  set(5, high, HALF);
  for (int tile : {6, 7}) set(tile, HALF / 4, 4 * count);
  return shapes;
}

// int8 codes enter as they are.
struct Int8 {
  static constexpr bool even_first = false;

  static int64_t group(const Matrix& w) { return w.columns; }

  static const char* codes(const Matrix& w, int64_t row, int64_t, int64_t k, char*, int64_t* stride) {
    *stride = w.columns;
    return (const char*)w.weight + row * w.columns + k;
  }

  // What a group's sums are multiplied by, beside what multiplies a whole row.
  static float scale(const Matrix&, int64_t, int64_t) { return 1.0f; }
};

// Codes in groups become bytes.
struct Grouped {
  static constexpr bool even_first = true;

  static int64_t group(const Matrix& w) { return w.columns / w.groups; }

  static const char* codes(const Matrix& w, int64_t row, int64_t high, int64_t k, char* room,
                           int64_t* stride) {
    *stride = BLOCK;
    with_coding(w.coding, [&](auto coding) { expand_rows<coding>(w, row, high, k, (int8_t*)room); });
    return room;
  }

  static float scale(const Matrix& w, int64_t row, int64_t index) {
    return read_float(w.scale, w.scale_type, row * w.groups + index);
  }
};

// Of a block of all inputs, from one of them on: the upper bytes of four columns of each, one four behind
// the other, the lower bytes alike, and the scales.
struct Bytes {
  const uint16_t* block;
  int64_t count;
  int64_t begin = 0;
  const char* upper(int64_t k) const { return (const char*)block + k * count + 4 * begin; }
  const char* lower(int64_t k) const { return upper(BLOCK + k); }
  const char* scales() const { return lower(BLOCK); }
};

inline const uint16_t* block_of(const uint16_t* arranged, int64_t block, int64_t count) {
  return arranged + block * (BLOCK + 2) * count;
}

template <class W>
void arrange(const float* x, int64_t count, int64_t columns, uint16_t* arranged) {
  alignas(64) uint16_t numbers[BLOCK];
  alignas(32) uint32_t upper[HALF / 4], lower[HALF / 4];
  alignas(64) uint16_t order[HALF];
  for (int i = 0; i < HALF; i++) order[i] = (uint16_t)(W::even_first ? 2 * i % HALF + 2 * i / HALF : i);
  const __m512i in_order = _mm512_load_si512(order);
  for (int64_t block = 0; block < block_count_of(columns); block++) {
    const Bytes to = {block_of(arranged, block, count), count};
    for (int64_t m = 0; m < count; m++) {
      const float scale =
          fixed_point(x + m * columns + block * BLOCK, columns - block * BLOCK, numbers);
      memcpy((char*)to.scales() + 4 * m, &scale, sizeof scale);
      for (int64_t k = 0; k < BLOCK; k += HALF) {
        const __m512i some = _mm512_permutexvar_epi16(in_order, _mm512_load_si512(numbers + k));
        _mm256_store_si256((__m256i*)lower, _mm512_cvtepi16_epi8(some));
        _mm256_store_si256((__m256i*)upper, _mm512_cvtepi16_epi8(_mm512_srli_epi16(some, 8)));
        for (int64_t four = 0; four < HALF / 4; four++) {
          memcpy((char*)to.upper(k + 4 * four) + 4 * m, upper + four, 4);
          memcpy((char*)to.lower(k + 4 * four) + 4 * m, lower + four, 4);
        }
      }
    }
  }
}

// The next rows, in the order of memory: 16 are more than the processor's prefetcher follows.
inline void prefetch(const char* next, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(next + line, _MM_HINT_T0);
}

// The whole numbers of up to 16 rows and inputs for the columns begin <= k < end of a block.
inline void multiply_tiles(const char* codes, int64_t stride, const Bytes& x, int64_t begin, int64_t end,
                           int32_t* upper, int32_t* lower) {
  const int64_t line = 4 * x.count;
  written(codes);
  _tile_zero(0);
  _tile_zero(1);
  int64_t k = begin;
  for (; k + FULL <= end; k += FULL) {
    _tile_loadd(2, codes + k, stride);
    _tile_loadd(3, x.upper(k), line);
    _tile_loadd(4, x.lower(k), line);
    _tile_dpbssd(0, 2, 3);
    _tile_dpbsud(1, 2, 4);
  }
  if (k < end) {
    _tile_loadd(5, codes + k, stride);
    _tile_loadd(6, x.upper(k), line);
    _tile_loadd(7, x.lower(k), line);
    _tile_dpbssd(0, 5, 6);
    _tile_dpbsud(1, 5, 7);
  }
  _tile_stored(0, upper, 64);
  _tile_stored(1, lower, 64);
  written(upper);
  written(lower);
}

// y[m][row + r] = totals[r][m] times the row's scale, plus its bias, for up to 16 inputs.
void write(const Matrix& w, const float* totals, int64_t count, int64_t row, int64_t high, float* y,
           int64_t y_stride) {
  alignas(64) uint32_t turned[TILE];
  alignas(64) float scale[SIDE] = {}, bias[SIDE] = {};
  for (int64_t r = 0; r < high; r++) {
    scale[r] = row_scale(w, row + r);
    if (w.bias) bias[r] = read_float(w.bias, w.bias_type, row + r);
  }
  transpose((const uint32_t*)totals, SIDE, high, turned, SIDE);
  for (int64_t m = 0; m < count; m++)
    _mm512_mask_storeu_ps(y + m * y_stride + row, mask_of(high),
                          _mm512_fmadd_ps(_mm512_load_ps((const float*)turned + m * SIDE),
                                          _mm512_load_ps(scale), _mm512_load_ps(bias)));
}

// Up to 16 rows of a block, and what the sums of a group are multiplied by.
struct Codes {
  const char* codes;
  int64_t stride, high;
  const float* scale;
};

// totals [high, 16 inputs] += those rows times the inputs, for the columns begin <= k < end of a block.
inline void add_tiles(const Codes& w, const Bytes& x, int64_t begin, int64_t end, float* totals) {
  alignas(64) int32_t upper[TILE], lower[TILE];
  multiply_tiles(w.codes, w.stride, x, begin, end, upper, lower);
  const __m512 scales = _mm512_maskz_loadu_ps(mask_of(wide_of(x.count)), x.scales());
  for (int64_t r = 0; r < w.high; r++) {
    const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(upper + r * SIDE), 8),
                                           _mm512_load_si512(lower + r * SIDE));
    const __m512 by = _mm512_mul_ps(scales, _mm512_set1_ps(w.scale[r]));
    float* total = totals + r * SIDE;
    _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), by, _mm512_load_ps(total)));
  }
}

// Up to 16 rows times all inputs.
template <class W>
void rows(const Matrix& w, const uint16_t* arranged, int64_t count, int64_t row, int64_t high, float* y,
          int64_t y_stride) {
  const int64_t wide = wide_of(count), parts = parts_of(count);
  const Tiles tiles(shapes_of(high, wide));
  alignas(64) char room[SIDE * BLOCK];
  alignas(64) float totals[MOST_INPUTS / SIDE][TILE];
  std::fill(totals[0], totals[parts], 0.0f);
  const int64_t bytes = row_bytes(w), group = W::group(w);
  for (int64_t block = 0; block < block_count_of(w.columns); block++) {
    const int64_t first = block * BLOCK, last = std::min(first + BLOCK, w.columns);
    const int64_t share = (last - first) * bytes / w.columns;
    prefetch((const char*)w.weight + (row + high) * bytes + first * bytes / w.columns * high, share * high);
    int64_t stride;
    const char* codes = W::codes(w, row, high, first, room, &stride);
    for (int64_t k = first, end; k < last; k = end) {
      const int64_t index = k / group;
      end = std::min(last, (index + 1) * group);
      alignas(64) float scale[SIDE];
      for (int64_t r = 0; r < high; r++) scale[r] = W::scale(w, row + r, index);
      for (int64_t part = 0; part < parts; part++) {
        const Bytes x = {block_of(arranged, block, count), count, begin_of(part, count)};
        add_tiles({codes, stride, high, scale}, x, k - first, end - first, totals[part]);
      }
    }
  }
  for (int64_t part = 0; part < parts; part++)
    write(w, totals[part], wide, row, high, y + begin_of(part, count) * y_stride, y_stride);
}

// Weights in bfloat16: inputs in pairs of columns.
void arrange_bfloat16(const float* x, int64_t count, int64_t columns, uint16_t* arranged) {
  alignas(64) uint32_t pairs[SIDE];
  for (int64_t k = 0; k < columns; k += 32)
    for (int64_t m = 0; m < count; m++) {
      const float* from = x + m * columns + k;
      _mm512_store_si512(pairs, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16),
                                                             _mm512_loadu_ps(from)));
      for (int64_t pair = 0; pair < SIDE; pair++)
        memcpy(arranged + k * count + 2 * (pair * count + m), pairs + pair, 4);
    }
}

// The same with weights in bfloat16: 0 to 3 hold sums, 4 the weight, 5 to 7 inputs.
TileShapes shapes_bfloat16(int64_t high, int64_t count) {
  TileShapes shapes;
  for (int tile = 0; tile < 8; tile++) {
    shapes.rows[tile] = (uint8_t)(tile < 5 ? high : SIDE);
    shapes.bytes[tile] = (uint16_t)(tile == 4 ? FULL : 4 * count);
  }
  return shapes;
}

// Weights in bfloat16, [high, columns], and what is needed after them or null, times P tiles of inputs.
template <int P>
void multiply_bfloat16(const Matrix& w, const char* weight, const char* next, const uint16_t* arranged,
                       int64_t count, int64_t row, int64_t high, float* y, int64_t y_stride) {
  const int64_t wide = wide_of(count);
  const Tiles tiles(shapes_bfloat16(high, wide));
  alignas(64) float totals[P][TILE];
  written(weight);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < w.columns; k += 32) {
    if (next) prefetch(next + 2 * k * high, 64 * high);
    _tile_loadd(4, weight + 2 * k, 2 * w.columns);
    const auto inputs = [&](int64_t part) { return arranged + k * count + 2 * begin_of(part, count); };
    _tile_loadd(5, inputs(0), 4 * count);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (P > 1) {
      _tile_loadd(6, inputs(1), 4 * count);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (P > 2) {
      _tile_loadd(7, inputs(2), 4 * count);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (P > 3) {
      _tile_loadd(5, inputs(3), 4 * count);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, totals[0], 64);
  if constexpr (P > 1) _tile_stored(1, totals[1], 64);
  if constexpr (P > 2) _tile_stored(2, totals[2], 64);
  if constexpr (P > 3) _tile_stored(3, totals[3], 64);
  written(totals);
  for (int64_t part = 0; part < P; part++)
    write(w, totals[part], wide, row, high, y + begin_of(part, count) * y_stride, y_stride);
}

decltype(&multiply_bfloat16<1>) multiply_bfloat16_for(int64_t count) {
  static_assert(MOST_INPUTS == 4 * SIDE);
  constexpr decltype(&multiply_bfloat16<1>) by_parts[] = {multiply_bfloat16<1>, multiply_bfloat16<2>,
                                                          multiply_bfloat16<3>, multiply_bfloat16<4>};
  return by_parts[parts_of(count) - 1];
}

void rows_bfloat16(const Matrix& w, const uint16_t* arranged, int64_t count, int64_t row, int64_t high,
                   float* y, int64_t y_stride) {
  const int64_t bytes = 2 * w.columns;
  const char* weight = (const char*)w.weight + row * bytes;
  multiply_bfloat16_for(count)(w, weight, weight + high * bytes, arranged, count, row, high, y, y_stride);
}

// Zeros are written out: for several inputs tiles make up for them.
void rows_sparse(const Matrix& w, const uint16_t* arranged, int64_t count, int64_t row, int64_t high,
                 float* y, int64_t y_stride) {
  char* room = (char*)room_for(Purpose::WRITTEN_OUT, 2 * SIDE * w.columns);
  if (w.format == SPARSE4 && w.group_size % 16 == 0) write_out_avx512_bf16(w, row, row + high, room);
  else kernels().dequantize(w, row, row + high, room, BFLOAT16);
  multiply_bfloat16_for(count)(w, room, nullptr, arranged, count, row, high, y, y_stride);
}

template <auto rows>
void product(const Matrix& w, const uint16_t* arranged, int64_t count, int64_t first, int64_t last,
             float* y, int64_t y_stride) {
  for (int64_t row = first; row < last; row += SIDE)
    rows(w, arranged, count, row, std::min(last - row, SIDE), y, y_stride);
}

}  // namespace

const Pairs tiles_int8 = {arrange<Int8>, product<rows<Int8>>};
const Pairs tiles_grouped = {arrange<Grouped>, product<rows<Grouped>>};
const Pairs tiles_bfloat16 = {arrange_bfloat16, product<rows_bfloat16>};
const Pairs tiles_sparse = {arrange_bfloat16, product<rows_sparse>};

TARGET_END
#endif

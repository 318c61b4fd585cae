// Some inputs times codes, for processors with AVX-512 BF16: codes of a few rows become bfloat16 in a cache, once
// for all inputs. From a handful of inputs on that is less work than to multiply bytes with each.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>
#include <array>
#include <utility>

#include "target.h"

TARGET_BEGIN(AVX512 ",avx512bf16,avx512vbmi,f16c")

#include "factors.h"
#include "fixed_point.h"
#include "look_up.h"
#include "parallel.h"

namespace {

// Rows of the weight that are multiplied at a time.
constexpr int64_t HIGH = 4;
// Of a block, each vector has every fourth column, from one of these on; lane l, columns 8 l to 8 l + 7.
constexpr int64_t VECTORS = 4, FIRST[VECTORS] = {0, 2, 1, 3};
// A block of a row: codes in bfloat16, without rounding, and their scales, a lane each.
struct Widened {
  __m512i codes[VECTORS];
  __m512 scales;
};

template <int Coding>
struct Grouped {
  static constexpr bool scaled = true;
  const Factors factors;
  const Numbers<Coding> numbers = Levels<Coding>().times(1.0f);

  explicit Grouped(const Matrix& w) : factors(w) {}

  void row(int64_t index, Widened* to) const {
    const Matrix& w = factors.w;
    const char* codes = (const char*)w.weight + index * row_bytes(w);
    for (int64_t from = 0, next; from < factors.blocks; from = next) {
      next = std::min(from + factors.reach(from), factors.blocks);
      const __m512 held = factors.scales(index, from);
      __m512i number = factors.number_of;
      for (int64_t block = from; block < next; block++, to += HIGH) {
        const int64_t first = block * BLOCK, here = w.columns - first;
        ask(codes + first * bits_of(Coding) / 8, BLOCK * bits_of(Coding) / 8);
        const Planes<Coding> planes = {codes, w.columns, first};
        const Block bytes = with_extent(here, [&](auto extent) { return load_loose<Coding, extent>(planes, here); });
        *to = {{numbers.look_up(bytes.even), numbers.look_up(_mm512_srli_epi16(bytes.even, 8)),
                numbers.look_up(bytes.odd), numbers.look_up(_mm512_srli_epi16(bytes.odd, 8))},
               _mm512_permutexvar_ps(number, held)};
        number = _mm512_add_epi32(number, _mm512_set1_epi32((int)factors.per_block));
      }
    }
  }
};

// One scale serves a whole row.
struct Int8 {
  static constexpr bool scaled = false;
  const Matrix& w;
  __m512i even, odd;

  explicit Int8(const Matrix& w) : w(w) {
    alignas(64) uint8_t places[2][64];
    for (int i = 0; i < 64; i++) places[0][i] = (uint8_t)(2 * i), places[1][i] = (uint8_t)(2 * i + 1);
    even = _mm512_load_si512(places[0]);
    odd = _mm512_load_si512(places[1]);
  }

  // Of four bytes, the one that is `Left` bits below the highest, as a float.
  template <int Left>
  static __m512i number(__m512i four) {
    const __m512i code = _mm512_srai_epi32(Left ? _mm512_slli_epi32(four, Left) : four, 24);
    return _mm512_castps_si512(_mm512_cvtepi32_ps(code));
  }

  // Whole numbers below 256 end within the upper half of a float.
  static __m512i halves(__m512i lower, __m512i upper) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(lower, 16), upper);
  }

  void row(int64_t index, Widened* to) const {
    const char* codes = (const char*)w.weight + index * w.columns;
    for (int64_t first = 0; first < w.columns; first += BLOCK, to += HIGH) {
      ask(codes + first, BLOCK);
      const auto load = [&](int64_t from) {
        return _mm512_maskz_loadu_epi8(mask_of<__mmask64>(w.columns - from), codes + from);
      };
      const __m512i front = load(first), back = load(first + BLOCK / 2);
      const __m512i evens = _mm512_permutex2var_epi8(front, even, back);
      const __m512i odds = _mm512_permutex2var_epi8(front, odd, back);
      to->codes[0] = halves(number<24>(evens), number<8>(evens));
      to->codes[1] = halves(number<16>(evens), number<0>(evens));
      to->codes[2] = halves(number<24>(odds), number<8>(odds));
      to->codes[3] = halves(number<16>(odds), number<0>(odds));
    }
  }
};

// Inputs by blocks of columns, and all of one block together: [blocks, count, BLOCK].
void arrange(const float* x, int64_t count, int64_t columns, uint16_t* arranged) {
  // Where the numbers of a vector are in two vectors of neighbours.
  alignas(64) uint16_t places[VECTORS][32] = {};
  for (int64_t v = 0; v < VECTORS; v++)
    for (int64_t i = 0; i < 16; i++) places[v][i] = (uint16_t)(4 * i + FIRST[v]);
  for (int64_t block = 0; block < block_count_of(columns); block++)
    for (int64_t m = 0; m < count; m++) {
      const float* from = x + m * columns + block * BLOCK;
      const auto load = [&](int64_t k) {
        const int64_t here = columns - block * BLOCK;
        return (__m512i)_mm512_cvtne2ps_pbh(load16(from, here, k + 16), load16(from, here, k));
      };
      const __m512i plain[VECTORS] = {load(0), load(32), load(64), load(96)};
      for (int64_t v = 0; v < VECTORS; v++) {
        const __m512i place = _mm512_load_si512(places[v]);
        const __m512i front = _mm512_permutex2var_epi16(plain[0], place, plain[1]);
        const __m512i back = _mm512_permutex2var_epi16(plain[2], place, plain[3]);
        _mm512_storeu_si512(arranged + (block * count + m) * BLOCK + 32 * v,
                            _mm512_inserti64x4(front, _mm512_castsi512_si256(back), 1));
      }
    }
}

// sums [M, HIGH]: rows [blocks, HIGH] times the M inputs from `x` on, of `count`.
template <bool Scaled, int M>
void tile(const Widened* rows, int64_t blocks, const uint16_t* x, int64_t count, __m128* sums) {
  __m512 whole[HIGH][M], part[HIGH][M];
  auto& added = Scaled ? part : whole;
  for (int r = 0; r < HIGH; r++)
    for (int m = 0; m < M; m++) whole[r][m] = _mm512_setzero_ps();
  for (int64_t block = 0; block < blocks; block++, rows += HIGH, x += count * BLOCK) {
    for (int r = 0; Scaled && r < HIGH; r++)
      for (int m = 0; m < M; m++) part[r][m] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; v++) {
      __m512bh codes[HIGH];
#pragma GCC unroll 4
      for (int r = 0; r < HIGH; r++) codes[r] = (__m512bh)rows[r].codes[v];
#pragma GCC unroll 6
      for (int m = 0; m < M; m++) {
        const __m512bh input = (__m512bh)_mm512_loadu_si512(x + m * BLOCK + 32 * v);
#pragma GCC unroll 4
        for (int r = 0; r < HIGH; r++) added[r][m] = _mm512_dpbf16_ps(added[r][m], codes[r], input);
      }
    }
    for (int r = 0; Scaled && r < HIGH; r++)
      for (int m = 0; m < M; m++) whole[r][m] = _mm512_fmadd_ps(part[r][m], rows[r].scales, whole[r][m]);
  }
  for (int m = 0; m < M; m++) sums[m] = sums_of(whole[0][m], whole[1][m], whole[2][m], whole[3][m]);
}

template <bool Scaled, int... M>
constexpr auto tiles_of(std::integer_sequence<int, M...>) {
  return std::array{tile<Scaled, M + 1>...};
}

// For as many inputs as leave registers for the rest.
template <bool Scaled>
constexpr auto tiles = tiles_of<Scaled>(std::make_integer_sequence<int, Scaled ? 3 : 6>());

template <class Rows>
void product_of(const Rows& codes, const Matrix& w, const uint16_t* x, int64_t count, int64_t first, int64_t last,
                float* y, int64_t y_stride) {
  constexpr auto& by_width = tiles<Rows::scaled>;
  constexpr int64_t most = by_width.size();
  const int64_t blocks = block_count_of(w.columns), parts = (count + most - 1) / most;
  Widened* rows = (Widened*)room_for(Purpose::PANEL_ROWS, blocks * HIGH * (int64_t)sizeof(Widened));
  for (int64_t row = first; row < last; row += HIGH) {
    const int64_t high = std::min(HIGH, last - row);
    float scale[HIGH], bias[HIGH];
    for (int64_t r = 0; r < HIGH; r++) {
      const int64_t here = row + std::min(r, high - 1);
      codes.row(here, rows + r);
      scale[r] = row_scale(w, here);
      bias[r] = w.bias ? read_float(w.bias, w.bias_type, here) : 0.0f;
    }
    // Of one width, as far as that can be.
    for (int64_t part = 0, begin = 0, end; part < parts; part++, begin = end) {
      end = count * (part + 1) / parts;
      __m128 sums[most];
      by_width[end - begin - 1](rows, blocks, x + begin * BLOCK, count, sums);
      for (int64_t m = begin; m < end; m++) {
        const __m128 sum = _mm_fmadd_ps(sums[m - begin], _mm_loadu_ps(scale), _mm_loadu_ps(bias));
        _mm_mask_storeu_ps(y + m * y_stride + row, mask_of<__mmask8>(high), sum);
      }
    }
  }
}

void product_int8(const Matrix& w, const uint16_t* x, int64_t count, int64_t first, int64_t last, float* y,
                  int64_t y_stride) {
  product_of(Int8(w), w, x, count, first, last, y, y_stride);
}

void product_grouped(const Matrix& w, const uint16_t* x, int64_t count, int64_t first, int64_t last, float* y,
                     int64_t y_stride) {
  with_coding(w.coding, [&](auto coding) {
    product_of(Grouped<coding>(w), w, x, count, first, last, y, y_stride);
  });
}

}  // namespace

const Pairs widened_int8 = {arrange, product_int8}, widened_grouped = {arrange, product_grouped};

TARGET_END
#endif

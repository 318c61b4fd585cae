// Many inputs in bfloat16 times a matrix of any format, for processors with AVX-512 BF16. Weights
// become bfloat16 a panel of rows at a time, and of codes a part of the columns, in a cache, and never in memory.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "many.h"
#include "parallel.h"
#include "target.h"
#include "written.h"

TARGET_BEGIN(AVX512 ",avx512bf16")

#include "transpose.h"

namespace {

// Outputs of a panel, inputs of a tile: 8 x 3 vectors of sums leave registers for what they multiply.
constexpr int64_t WIDE = 48, HIGH = 8, VECTORS = WIDE / 16;
// Inputs of more numbers are not near when the next panel of weights reads them: then several panels meet each while
// the first cache holds it, as far as there are enough panels for all threads.
constexpr int64_t NEAR = 1 << 22, MOST_PANELS = 4, SHARES = 4;
// Pairs of columns, and inputs, whose sums are added up before the next: the weights of a part of these panels and
// the sums fit in the second cache.
constexpr int64_t PAIRS = 512, TOGETHER = 512;

// sums [HIGH, WIDE] (+)= inputs [pairs, SIDE], of which HIGH count, times weights [pairs, WIDE].
void tile(const uint32_t* inputs, const uint32_t* weights, int64_t pairs, bool first, float* sums) {
  __m512 held[HIGH][VECTORS];
  for (int64_t r = 0; r < HIGH; r++)
    for (int64_t v = 0; v < VECTORS; v++)
      held[r][v] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * WIDE + 16 * v);
  for (int64_t pair = 0; pair < pairs; pair++) {
    __m512bh weight[VECTORS];
    for (int64_t v = 0; v < VECTORS; v++)
      weight[v] = (__m512bh)_mm512_loadu_si512(weights + pair * WIDE + 16 * v);
    for (int64_t r = 0; r < HIGH; r++) {
      const __m512bh input = (__m512bh)_mm512_set1_epi32((int)inputs[pair * SIDE + r]);
      for (int64_t v = 0; v < VECTORS; v++)
        held[r][v] = _mm512_dpbf16_ps(held[r][v], input, weight[v]);
    }
  }
  for (int64_t r = 0; r < HIGH; r++)
    for (int64_t v = 0; v < VECTORS; v++) _mm512_storeu_ps(sums + r * WIDE + 16 * v, held[r][v]);
}

// y = sums + bias, rounded, as far as there are outputs.
void write(const float* sums, const float* bias, int64_t wide, uint16_t* y) {
  for (int64_t v = 0; v < WIDE; v += 16) {
    const __m512 sum = _mm512_add_ps(_mm512_loadu_ps(sums + v), _mm512_loadu_ps(bias + v));
    _mm256_mask_storeu_epi16(y + v, mask_of(wide - v), (__m256i)_mm512_cvtneps_pbh(sum));
  }
}

// The weights of some panels, a part of the columns at a time.
class Panels {
 public:
  // Of `wide` outputs from `first` on.
  Panels(const Matrix& w, int64_t first, int64_t wide) : w(w), first(first), wide(wide) {
    if (writes_codes_avx512_bf16(w)) return;
    rows = room(w.columns);
    kernels().dequantize(w, first, first + wide, rows, BFLOAT16);
  }

  // The pairs from `begin` on, PAIRS or as many as there are, as [panels, PAIRS, WIDE].
  const uint32_t* part(int64_t begin) {
    const int64_t pairs = std::min(PAIRS, w.columns / 2 - begin);
    const uint16_t* from = rows + 2 * begin;
    int64_t stride = w.columns / 2;
    if (!rows) {
      uint16_t* const written = room(2 * PAIRS);
      write_codes_avx512_bf16(w, first, first + wide, 2 * begin, 2 * (begin + pairs), written);
      from = written;
      stride = pairs;
    }
    const int64_t tall = (wide + WIDE - 1) / WIDE * WIDE;
    uint32_t* const to = (uint32_t*)room_for(Purpose::PANEL, tall * PAIRS * (int64_t)sizeof(uint32_t));
    for (int64_t r = 0; r < tall; r += SIDE) {
      uint32_t* const panel = to + r / WIDE * PAIRS * WIDE + r % WIDE;
      for (int64_t pair = 0; pair < pairs; pair += SIDE)
        transpose((const uint32_t*)from + r * stride + pair, stride, wide - r, panel + pair * WIDE, WIDE);
    }
    return to;
  }

 private:
  const Matrix& w;
  const int64_t first, wide;
  uint16_t* rows = nullptr;  // with all columns, where a part would take as long

  uint16_t* room(int64_t columns) const {
    return (uint16_t*)room_for(Purpose::PANEL_ROWS, wide * columns * (int64_t)sizeof(uint16_t));
  }
};

}  // namespace

void linear_avx512_bf16(const Matrix& w, const uint16_t* x, int64_t count, uint16_t* y,
                        uint32_t* room, int32_t threads) {
  const int64_t pairs = w.columns / 2, tall = (count + SIDE - 1) / SIDE;
  in_parallel(threads, tall, count * w.columns, [&](int64_t group) {
    for (int64_t pair = 0; pair < pairs; pair += SIDE)
      transpose((const uint32_t*)(x + group * SIDE * w.columns) + pair, pairs, count - group * SIDE,
                room + (group * pairs + pair) * SIDE, SIDE);
  });
  const int64_t all = (w.rows + WIDE - 1) / WIDE;
  const int64_t most_panels = count * w.columns > NEAR ? MOST_PANELS : 1;
  const int64_t some = std::min(std::max<int64_t>(all / (SHARES * threads), 1), most_panels);
  in_parallel(threads, (all + some - 1) / some, count * w.rows * w.columns, [&](int64_t block) {
    const int64_t begin = block * some * WIDE, wide = std::min(some * WIDE, w.rows - begin);
    Panels weights(w, begin, wide);
    float bias[MOST_PANELS * WIDE] = {};
    for (int64_t r = 0; w.bias && r < wide; r++) bias[r] = read_float(w.bias, w.bias_type, begin + r);
    const int64_t most = std::min((count + HIGH - 1) / HIGH * HIGH, TOGETHER);
    float* sums = (float*)room_for(Purpose::PANEL_SUMS, some * most * WIDE * (int64_t)sizeof(float));
    for (int64_t m = 0; m < count; m += TOGETHER) {
      const int64_t end = std::min(count, m + TOGETHER);
      const auto sums_of = [&](int64_t i, int64_t panel) { return sums + (panel * most + i - m) * WIDE; };
      for (int64_t pair = 0; pair < pairs; pair += PAIRS) {
        const uint32_t* part = weights.part(pair);
        for (int64_t i = m; i < end; i += HIGH)
          for (int64_t panel = 0; panel * WIDE < wide; panel++)
            tile(room + (i / SIDE * pairs + pair) * SIDE + i % SIDE, part + panel * PAIRS * WIDE,
                 std::min(PAIRS, pairs - pair), pair == 0, sums_of(i, panel));
      }
      for (int64_t i = m; i < end; i++)
        for (int64_t panel = 0, r = 0; r < wide; panel++, r += WIDE)
          write(sums_of(i, panel), bias + r, wide - r, y + i * w.rows + begin + r);
    }
  });
}

TARGET_END
#endif

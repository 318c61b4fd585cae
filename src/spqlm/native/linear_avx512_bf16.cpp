// Many inputs in bfloat16 times a matrix of any format, for processors with AVX-512 BF16. Weights
// become bfloat16 a panel of rows at a time, in a cache, and never in memory.
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
// Inputs, and pairs of columns, whose sums are added up before the next: those of a panel of weights
// fit in the second cache.
constexpr int64_t TOGETHER = 256, PAIRS = 512;

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

// The weights of a panel as [pairs, WIDE].
const uint32_t* packed(const Matrix& w, int64_t first, int64_t wide) {
  const int64_t pairs = w.columns / 2;
  uint16_t* rows = (uint16_t*)room_for(Purpose::PANEL_ROWS, WIDE * w.columns * sizeof(uint16_t));
  uint32_t* panel = (uint32_t*)room_for(Purpose::PANEL, WIDE * pairs * sizeof(uint32_t));
  if (!write_codes_avx512_bf16(w, first, first + wide, (char*)rows))
    kernels().dequantize(w, first, first + wide, rows, BFLOAT16);
  for (int64_t r = 0; r < WIDE; r += SIDE)
    for (int64_t pair = 0; pair < pairs; pair += SIDE)
      transpose((const uint32_t*)(rows + r * w.columns) + pair, pairs, wide - r,
                panel + pair * WIDE + r, WIDE);
  return panel;
}

}  // namespace

void linear_avx512_bf16(const Matrix& w, const uint16_t* x, int64_t count, uint16_t* y,
                        uint32_t* room, int32_t threads) {
  const int64_t pairs = w.columns / 2, tall = (count + SIDE - 1) / SIDE;
  in_parallel(threads, tall, count * w.columns, [&](int64_t group) {
    for (int64_t pair = 0; pair < pairs; pair += SIDE)
      transpose((const uint32_t*)(x + group * SIDE * w.columns) + pair, pairs, count - group * SIDE,
                room + (group * pairs + pair) * SIDE, SIDE);
  });
  in_parallel(threads, (w.rows + WIDE - 1) / WIDE, count * w.rows * w.columns, [&](int64_t block) {
    const int64_t begin = block * WIDE, wide = std::min(WIDE, w.rows - begin);
    const uint32_t* panel = packed(w, begin, wide);
    float bias[WIDE] = {};
    for (int64_t r = 0; w.bias && r < wide; r++) bias[r] = read_float(w.bias, w.bias_type, begin + r);
    float* sums = (float*)room_for(Purpose::PANEL_SUMS, TOGETHER * WIDE * sizeof(float));
    for (int64_t m = 0; m < count; m += TOGETHER) {
      const int64_t end = std::min(count, m + TOGETHER);
      for (int64_t pair = 0; pair < pairs; pair += PAIRS)
        for (int64_t i = m; i < end; i += HIGH)
          tile(room + (i / SIDE * pairs + pair) * SIDE + i % SIDE, panel + pair * WIDE,
               std::min(PAIRS, pairs - pair), pair == 0, sums + (i - m) * WIDE);
      for (int64_t i = m; i < end; i++)
        write(sums + (i - m) * WIDE, bias, wide, y + i * w.rows + begin);
    }
  });
}

TARGET_END
#endif

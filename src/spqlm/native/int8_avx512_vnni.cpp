// Many inputs, each rounded to int8 at a scale of its own, times a matrix in int8, for processors with
// AVX-512 VNNI: an instruction multiplies 64 pairs and adds up fours. Sums are exact.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "many.h"
#include "parallel.h"
#include "target.h"

TARGET_BEGIN(AVX512 ",avx512vnni")

#include "transpose.h"

namespace {

// Outputs of a panel, inputs of a tile: 8 x 3 vectors of sums leave registers for what they multiply.
constexpr int64_t WIDE = 48, HIGH = 8, VECTORS = WIDE / 16;
// Inputs, and fours of columns, whose sums are added up before the next: those of a panel of weights fit
// in the second cache.
constexpr int64_t TOGETHER = 256, FOURS = 512;
// The instruction takes bytes without a sign on one side: weights are so much larger there. What that adds
// to a sum is taken off before it is begun; sums may wrap meanwhile.
constexpr int32_t ZERO = 128;

// y = sums * step * scales + biases, as far as there are outputs.
void write(const int32_t* sums, float step, const float* scales, const float* biases, int64_t wide,
           FloatType type, char* y) {
  for (int64_t n = 0; n < wide; n += 16) {
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + n));
    const __m512 found = _mm512_fmadd_ps(_mm512_mul_ps(sum, _mm512_set1_ps(step)), _mm512_loadu_ps(scales + n),
                                         _mm512_loadu_ps(biases + n));
    const __mmask16 there = mask_of(wide - n);
    switch (type) {
      case FLOAT32: _mm512_mask_storeu_ps((float*)y + n, there, found); break;
      case FLOAT16:
        _mm256_mask_storeu_epi16((uint16_t*)y + n, there, _mm512_cvtps_ph(found, _MM_FROUND_TO_NEAREST_INT));
        break;
      case BFLOAT16: _mm256_mask_storeu_epi16((uint16_t*)y + n, there, bfloat16_of(found)); break;
    }
  }
}

// Codes of one input [columns], and zeros behind, [padded]; their sum; the scale, NaN where a number is not
// finite.
float round_input(const float* x, int64_t columns, int64_t padded, int8_t* codes, int32_t& sum) {
  __m512 largest = _mm512_setzero_ps(), nothing = _mm512_setzero_ps();
  for (int64_t k = 0; k < columns; k += 16) {
    const __m512 some = _mm512_maskz_loadu_ps(mask_of(columns - k), x + k);
    largest = _mm512_max_ps(_mm512_abs_ps(some), largest);
    nothing = _mm512_fmadd_ps(some, _mm512_setzero_ps(), nothing);
  }
  const float step = step_of(_mm512_reduce_max_ps(largest));
  const __m512 by = _mm512_set1_ps(step);
  __m512i all = _mm512_setzero_si512();
  for (int64_t k = 0; k < padded; k += 16) {
    const __m512 some = _mm512_maskz_loadu_ps(mask_of(columns - k), x + k);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_div_ps(some, by));
    all = _mm512_add_epi32(all, whole);
    _mm_storeu_si128((__m128i*)(codes + k), _mm512_cvtsepi32_epi8(whole));
  }
  sum = _mm512_reduce_add_epi32(all);
  return step + _mm512_reduce_add_ps(nothing);
}

// The weights of a panel, none of them below zero, as [fours, WIDE].
const uint32_t* packed(const Matrix& w, int64_t first, int64_t wide, int64_t padded) {
  uint8_t* rows = (uint8_t*)room_for(Purpose::PANEL_ROWS, WIDE * padded);
  const __m512i zero = _mm512_set1_epi8((char)ZERO);
  for (int64_t r = 0; r < wide; r++)
    for (int64_t k = 0; k < padded; k += 64) {
      const int8_t* from = (const int8_t*)w.weight + (first + r) * w.columns + k;
      const __m512i codes = _mm512_maskz_loadu_epi8(mask_of<__mmask64>(w.columns - k), from);
      _mm512_storeu_si512(rows + r * padded + k, _mm512_xor_si512(codes, zero));
    }
  const int64_t fours = padded / 4;
  uint32_t* panel = (uint32_t*)room_for(Purpose::PANEL, WIDE * padded);
  for (int64_t r = 0; r < WIDE; r += SIDE)
    for (int64_t k = 0; k < fours; k += SIDE)
      transpose((const uint32_t*)(rows + std::min(r, wide) * padded) + k, fours, wide - r,
                panel + k * WIDE + r, WIDE);
  return panel;
}

// sums [HIGH, WIDE] += weights [fours, WIDE] times inputs [fours, SIDE], of which HIGH count.
void tile(const uint32_t* inputs, const uint32_t* weights, int64_t fours, int32_t* sums) {
  __m512i held[HIGH][VECTORS];
  for (int64_t r = 0; r < HIGH; r++)
    for (int64_t v = 0; v < VECTORS; v++) held[r][v] = _mm512_loadu_si512(sums + r * WIDE + 16 * v);
  for (int64_t k = 0; k < fours; k++) {
    __m512i weight[VECTORS];
    for (int64_t v = 0; v < VECTORS; v++) weight[v] = _mm512_loadu_si512(weights + k * WIDE + 16 * v);
    for (int64_t r = 0; r < HIGH; r++) {
      const __m512i input = _mm512_set1_epi32((int)inputs[k * SIDE + r]);
      for (int64_t v = 0; v < VECTORS; v++) held[r][v] = _mm512_dpbusd_epi32(held[r][v], weight[v], input);
    }
  }
  for (int64_t r = 0; r < HIGH; r++)
    for (int64_t v = 0; v < VECTORS; v++) _mm512_storeu_si512(sums + r * WIDE + 16 * v, held[r][v]);
}

}  // namespace

void linear_int8_avx512_vnni(const Matrix& w, const void* x, FloatType type, int64_t count, void* y,
                             void* codes, Rounded* rounded, int32_t threads) {
  const int64_t padded = rounded_up(w.columns, INT8_COLUMNS), fours = padded / 4, size = element_size(type);
  uint32_t* inputs = (uint32_t*)codes;
  static_assert(INT8_INPUTS % SIDE == 0 && INT8_COLUMNS % (4 * SIDE) == 0);
  in_parallel(threads, rounded_up(count, SIDE) / SIDE, count * w.columns, [&](int64_t group) {
    const int64_t first = group * SIDE, some = std::min(SIDE, count - first);
    float* input = (float*)room_for(Purpose::INPUT, w.columns * sizeof(float));
    int8_t* rows = (int8_t*)room_for(Purpose::PANEL_ROWS, SIDE * padded);
    for (int64_t r = 0; r < some; r++) {
      Rounded& row = rounded[first + r];
      convert((const char*)x + (first + r) * w.columns * size, type, w.columns, input, FLOAT32);
      row.step = round_input(input, w.columns, padded, rows + r * padded, row.sum);
    }
    std::fill(rounded + first + some, rounded + first + SIDE, Rounded{});
    for (int64_t k = 0; k < fours; k += SIDE)
      transpose((const uint32_t*)rows + k, fours, some, inputs + (first * fours + k * SIDE), SIDE);
  });
  in_parallel(threads, rounded_up(w.rows, WIDE) / WIDE, count * w.rows * w.columns, [&](int64_t block) {
    const int64_t begin = block * WIDE, wide = std::min(WIDE, w.rows - begin);
    const uint32_t* panel = packed(w, begin, wide, padded);
    float scales[WIDE] = {}, biases[WIDE] = {};
    for (int64_t n = 0; n < wide; n++) {
      scales[n] = row_scale(w, begin + n);
      if (w.bias) biases[n] = read_float(w.bias, w.bias_type, begin + n);
    }
    int32_t* sums = (int32_t*)room_for(Purpose::PANEL_SUMS, TOGETHER * WIDE * sizeof(int32_t));
    for (int64_t m = 0; m < count; m += TOGETHER) {
      const int64_t end = std::min(count, m + TOGETHER), rows = rounded_up(end - m, HIGH);
      for (int64_t i = 0; i < rows; i++)
        std::fill(sums + i * WIDE, sums + (i + 1) * WIDE, -ZERO * rounded[m + i].sum);
      for (int64_t k = 0; k < fours; k += FOURS)
        for (int64_t i = m; i < m + rows; i += HIGH)
          tile(inputs + (i / SIDE * fours + k) * SIDE + i % SIDE, panel + k * WIDE,
               std::min(FOURS, fours - k), sums + (i - m) * WIDE);
      for (int64_t i = m; i < end; i++) {
        char* const outputs = (char*)y + (i * w.rows + begin) * size;
        write(sums + (i - m) * WIDE, rounded[i].step, scales, biases, wide, type, outputs);
      }
    }
  });
}

TARGET_END
#endif

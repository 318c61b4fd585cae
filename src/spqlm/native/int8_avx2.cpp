// Many inputs, each rounded to int8 at a scale of its own, times a matrix in int8, for processors with
// AVX2: an instruction multiplies 16 pairs and adds neighbours. Sums are exact.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "many.h"
#include "parallel.h"
#include "target.h"

TARGET_BEGIN("avx2,fma,f16c")

#include "sums.h"

namespace {

// Numbers of a vector; inputs and outputs whose sums stay in registers; outputs of a panel, which fits
// in the second cache in 16 bits.
constexpr int64_t VECTOR = 16, HIGH = 4, WIDE = 2, OUTPUTS = 48;

// Codes of one input [columns] and zeros behind, up to a whole vector; its scale, NaN where a number is
// not finite.
float round_input(const float* x, int64_t columns, int16_t* codes) {
  __m256 largest = _mm256_setzero_ps(), nothing = _mm256_setzero_ps();
  const __m256 sign = _mm256_set1_ps(-0.0f);
  int64_t k = 0;
  for (; k + 8 <= columns; k += 8) {
    const __m256 some = _mm256_loadu_ps(x + k);
    largest = _mm256_max_ps(_mm256_andnot_ps(sign, some), largest);
    nothing = _mm256_fmadd_ps(some, _mm256_setzero_ps(), nothing);
  }
  float most = largest_in(largest), wrong = 0;
  for (int64_t i = k; i < columns; i++) {
    most = std::max(most, std::max(x[i], -x[i]));
    wrong += x[i] * 0;
  }
  float held[8];
  _mm256_storeu_ps(held, nothing);
  for (float part : held) wrong += part;
  const float step = step_of(most);
  const __m256 by = _mm256_set1_ps(step);
  for (int64_t i = 0; i < rounded_up(columns, VECTOR); i += 8) {
    float last[8] = {};
    if (i + 8 > columns) std::copy(x + std::min(i, columns), x + columns, last);
    const __m256 some = _mm256_loadu_ps(i + 8 > columns ? last : x + i);
    const __m256i whole = _mm256_cvtps_epi32(_mm256_div_ps(some, by));
    _mm_storeu_si128((__m128i*)(codes + i), _mm_packs_epi32(_mm256_castsi256_si128(whole),
                                                           _mm256_extracti128_si256(whole, 1)));
  }
  return step + wrong;
}

// A row of codes [columns] in 16 bits, and zeros behind.
void widen(const int8_t* codes, int64_t columns, int16_t* to) {
  int64_t k = 0;
  for (; k + VECTOR <= columns; k += VECTOR)
    _mm256_storeu_si256((__m256i*)(to + k),
                        _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(codes + k))));
  for (; k < rounded_up(columns, VECTOR); k++) to[k] = k < columns ? codes[k] : 0;
}

int32_t sum_of(__m256i v) {
  __m128i all = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  all = _mm_hadd_epi32(all, all);
  return _mm_cvtsi128_si32(_mm_hadd_epi32(all, all));
}

// sums [HIGH, OUTPUTS] of HIGH inputs and WIDE outputs, all of them [columns], a multiple of a vector.
void tile(const int16_t* x, const int16_t* w, int64_t columns, int32_t* sums) {
  __m256i held[HIGH][WIDE];
  for (auto& row : held)
    for (auto& sum : row) sum = _mm256_setzero_si256();
  for (int64_t k = 0; k < columns; k += VECTOR) {
    __m256i weights[WIDE];
    for (int64_t n = 0; n < WIDE; n++)
      weights[n] = _mm256_loadu_si256((const __m256i*)(w + n * columns + k));
    for (int64_t m = 0; m < HIGH; m++) {
      const __m256i input = _mm256_loadu_si256((const __m256i*)(x + m * columns + k));
      for (int64_t n = 0; n < WIDE; n++)
        held[m][n] = _mm256_add_epi32(held[m][n], _mm256_madd_epi16(input, weights[n]));
    }
  }
  for (int64_t m = 0; m < HIGH; m++)
    for (int64_t n = 0; n < WIDE; n++) sums[m * OUTPUTS + n] = sum_of(held[m][n]);
}

}  // namespace

void linear_int8_avx2(const Matrix& w, const void* x, FloatType type, int64_t count, void* y,
                      void* room, Rounded* rounded, int32_t threads) {
  int16_t* codes = (int16_t*)room;
  const int64_t columns = rounded_up(w.columns, VECTOR), size = element_size(type);
  in_parallel(threads, rounded_up(count, HIGH), count * w.columns, [&](int64_t m) {
    if (m >= count) {
      std::fill(codes + m * columns, codes + (m + 1) * columns, int16_t(0));
      return;
    }
    float* input = (float*)room_for(Purpose::INPUT, w.columns * sizeof(float));
    convert((const char*)x + m * w.columns * size, type, w.columns, input, FLOAT32);
    rounded[m].step = round_input(input, w.columns, codes + m * columns);
  });
  in_parallel(threads, rounded_up(w.rows, OUTPUTS) / OUTPUTS, count * w.rows * w.columns, [&](int64_t block) {
    const int64_t begin = block * OUTPUTS, wide = std::min(OUTPUTS, w.rows - begin);
    int16_t* panel = (int16_t*)room_for(Purpose::PANEL, OUTPUTS * columns * sizeof(int16_t));
    for (int64_t n = 0; n < rounded_up(wide, WIDE); n++)
      if (n < wide)
        widen((const int8_t*)w.weight + (begin + n) * w.columns, w.columns, panel + n * columns);
      else
        std::fill(panel + n * columns, panel + (n + 1) * columns, int16_t(0));
    float scales[OUTPUTS], biases[OUTPUTS] = {};
    for (int64_t n = 0; n < wide; n++) {
      scales[n] = row_scale(w, begin + n);
      if (w.bias) biases[n] = read_float(w.bias, w.bias_type, begin + n);
    }
    for (int64_t m = 0; m < count; m += HIGH) {
      int32_t sums[HIGH * OUTPUTS];
      float found[OUTPUTS];
      for (int64_t n = 0; n < wide; n += WIDE)
        tile(codes + m * columns, panel + n * columns, columns, sums + n);
      for (int64_t i = m; i < std::min(m + HIGH, count); i++) {
        for (int64_t n = 0; n < wide; n++)
          found[n] = (float)sums[(i - m) * OUTPUTS + n] * rounded[i].step * scales[n] + biases[n];
        convert(found, FLOAT32, wide, (char*)y + (i * w.rows + begin) * size, type);
      }
    }
  });
}

TARGET_END
#endif

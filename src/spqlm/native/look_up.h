// What codes stand for as numbers in bfloat16, by the codes; included below the target of the file that uses it.
#pragma once

#include "planes_vbmi.h"

namespace {

// Memory is asked for bytes so far behind those that are read.
constexpr int64_t AHEAD = 2048;

inline void ask(const char* p, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(p + AHEAD + line, _MM_HINT_T0);
}

// Tables of 32 numbers each, as many as the codes of a coding need.
template <int Coding>
constexpr int TABLES = bits_of(Coding) < 6 ? 1 : 1 << (bits_of(Coding) - 5);

template <int Coding>
struct Numbers {
  __m512i tables[TABLES<Coding>];

  // Of codes in the lowest bits of words, whatever is above them.
  __m512i look_up(__m512i words) const {
    constexpr int count = TABLES<Coding>;
    if constexpr (count == 1) return _mm512_permutexvar_epi16(words, tables[0]);
    const __m512i low = _mm512_permutex2var_epi16(tables[0], words, tables[1]);
    if constexpr (count == 2) return low;
    const __mmask32 upper = _mm512_test_epi16_mask(words, _mm512_set1_epi16(64));
    return _mm512_mask_blend_epi16(upper, low, _mm512_permutex2var_epi16(tables[count - 2], words, tables[count - 1]));
  }
};

// What codes stand for without a scale, again and again where they are few.
template <int Coding>
struct Levels {
  __m512 values[2 * TABLES<Coding>];

  Levels() {
    alignas(64) float sixteen[16];
    for (int part = 0; part < 2 * TABLES<Coding>; part++) {
      for (int i = 0; i < 16; i++) {
        const int code = (16 * part + i) & ((1 << bits_of(Coding)) - 1);
        sixteen[i] = (float)((is_nonlinear(Coding) ? levels_of(Coding)[code] : code) - offset_of(Coding));
      }
      values[part] = _mm512_load_ps(sixteen);
    }
  }

  // Levels are whole numbers of at most seven bits: times one, nothing is rounded.
  Numbers<Coding> times(float scale) const {
    Numbers<Coding> numbers;
    const __m512 scales = _mm512_set1_ps(scale);
    for (int table = 0; table < TABLES<Coding>; table++)
      numbers.tables[table] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(values[2 * table + 1], scales),
                                                           _mm512_mul_ps(values[2 * table], scales));
    return numbers;
  }
};

}  // namespace

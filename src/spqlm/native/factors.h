// Scales of groups, as vectors of codes need them; included below the target of the file that uses it.
#pragma once

#include <algorithm>

#include "planes_avx512.h"

namespace {

// Up to sixteen numbers of a float type.
inline __m512 load_numbers(FloatType type, __mmask16 mask, const char* p) {
  switch (type) {
    case FLOAT32: return _mm512_maskz_loadu_ps(mask, p);
    case BFLOAT16: {
      const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
      return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    case FLOAT16: return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
  }
  __builtin_trap();
}

// What sums of eight columns are multiplied by, for some blocks: sixteen numbers that are scales times units. Of
// groups smaller than a block each number is for one of them, else each is for one block of a group.
struct Factors {
  const Matrix& w;
  const int64_t blocks, per_group, per_block;  // blocks of a row, of a group, and groups of a block
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  // Which block each number is for; which number each sum of eight columns of the first block takes.
  const __m512i block_of, number_of;

  explicit Factors(const Matrix& w)
      : w(w), blocks(block_count_of(w.columns)), per_group(size() / BLOCK), per_block(per_group ? 1 : BLOCK / size()),
        block_of(_mm512_srl_epi32(lanes, shift(per_block))), number_of(_mm512_srl_epi32(lanes, shift(16 / per_block))) {}

  int64_t size() const { return w.columns / w.groups; }
  static __m128i shift(int64_t divisor) { return _mm_cvtsi32_si128(__builtin_ctz((unsigned)divisor)); }

  // How many blocks from this one on share what is loaded for it.
  int64_t reach(int64_t block) const {
    return per_group ? std::min<int64_t>(16, per_group - block % per_group) : 16 / per_block;
  }

  __m512 scales(int64_t row, int64_t block) const {
    const int64_t bytes = element_size(w.scale_type), group = per_group ? block / per_group : block * per_block;
    const char* p = (const char*)w.scale + (row * w.groups + group) * bytes;
    if (per_group) return _mm512_set1_ps(read_float(p, w.scale_type, 0));
    return load_numbers(w.scale_type, mask_of(w.groups - group), p);
  }

  void prefetch(int64_t row, int64_t high) const {
    const int64_t bytes = w.groups * element_size(w.scale_type);
    const char* p = (const char*)w.scale + row * bytes;
    for (int64_t line = 0; line < high * bytes; line += 64) _mm_prefetch(p + line, _MM_HINT_T0);
  }

  __m512 units(const float* units, int64_t block) const {
    return _mm512_permutexvar_ps(block_of, _mm512_maskz_loadu_ps(mask_of(blocks - block), units + block));
  }
};

}  // namespace

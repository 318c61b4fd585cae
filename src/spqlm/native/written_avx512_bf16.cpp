// Codes as numbers in bfloat16, for processors with AVX-512 BF16 and VBMI: each group of few bits has a table of what
// its codes stand for.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "target.h"
#include "written.h"

TARGET_BEGIN(AVX512 ",avx512bf16,avx512vbmi,f16c")

#include "look_up.h"

namespace {

// A row's columns 32 v and on, of a block: which byte of even and odd columns each stands in.
constexpr int64_t VECTORS = BLOCK / 32;

struct Places {
  __m512i of[VECTORS];

  Places() {
    alignas(64) uint8_t places[64];
    for (int v = 0; v < VECTORS; v++) {
      for (int i = 0; i < 64; i++) places[i] = (uint8_t)(i / 2 % 2 * 64 + 16 * v + i / 4);
      of[v] = _mm512_load_si512(places);
    }
  }
};

template <int Coding>
void write_row(const Matrix& w, const Levels<Coding>& levels, const Places& places, int64_t row, uint16_t* out) {
  const int64_t size = w.columns / w.groups;
  const char* codes = (const char*)w.weight + row * row_bytes(w);
  Numbers<Coding> numbers;
  for (int64_t first = 0; first < w.columns; first += BLOCK) {
    ask(codes + first * bits_of(Coding) / 8, BLOCK * bits_of(Coding) / 8);
    const Planes<Coding> planes = {codes, w.columns, first};
    const int64_t here = std::min(w.columns - first, BLOCK);
    const Block block = with_extent(here, [&](auto extent) { return load_loose<Coding, extent>(planes, here); });
    for (int64_t v = 0; 32 * v < here; v++) {
      const int64_t k = first + 32 * v;
      if (k % size == 0)
        numbers = levels.times(read_float(w.scale, w.scale_type, row * w.groups + k / size));
      const __m512i words = _mm512_permutex2var_epi8(block.even, places.of[v], block.odd);
      _mm512_storeu_si512(out + k, numbers.look_up(words));
    }
  }
}

void write_int8_row(const Matrix& w, int64_t row, uint16_t* out) {
  const __m512 scale = _mm512_set1_ps(row_scale(w, row));
  const char* codes = (const char*)w.weight + row * w.columns;
  for (int64_t k = 0; k < w.columns; k += 32) {
    const __mmask32 there = mask_of<__mmask32>(w.columns - k);
    if (k % 64 == 0) ask(codes + k, 64);
    const __m256i bytes = _mm256_maskz_loadu_epi8(there, codes + k);
    const auto numbers = [&](__m128i sixteen) {
      return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen)), scale);
    };
    const __m512 low = numbers(_mm256_castsi256_si128(bytes)), high = numbers(_mm256_extracti128_si256(bytes, 1));
    _mm512_mask_storeu_epi16(out + k, there, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

}  // namespace

bool write_codes_avx512_bf16(const Matrix& w, int64_t first, int64_t last, char* out) {
  const auto line = [&](int64_t row) { return (uint16_t*)out + (row - first) * w.columns; };
  if (w.format == INT8) {
    for (int64_t row = first; row < last; row++) write_int8_row(w, row, line(row));
    return true;
  }
  if (w.format != GROUPED || w.columns / w.groups % 32) return false;
  const Places places;
  with_coding(w.coding, [&](auto coding) {
    const Levels<coding> levels;
    for (int64_t row = first; row < last; row++)
      write_row<coding>(w, levels, places, row, line(row));
  });
  return true;
}

TARGET_END
#endif

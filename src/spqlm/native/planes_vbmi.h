// Codes of a few bits in vectors of bytes, where bits and bytes are found by permutations (AVX-512 VBMI); included
// below the target of the file that uses it.
#pragma once

#include "planes_avx512.h"

namespace {

// Of all bytes the one of their eight bits that `bits` has for them, as the bit 1 << shift; anything beside it.
inline __m512i spread(uint64_t bits, int shift) {
  alignas(64) static constexpr auto places = [] {
    struct { uint8_t at[64]; } found = {};
    for (int i = 0; i < 64; i++) found.at[i] = (uint8_t)i;
    return found;
  }();
  const __m512i from = _mm512_sub_epi8(_mm512_load_si512(places.at), _mm512_set1_epi8((char)shift));
  return _mm512_multishift_epi64_epi8(from, _mm512_set1_epi64((long long)bits));
}

// As load_block, for tables that repeat themselves: above the bits of a code there is anything.
template <int Coding, Extent E>
inline Block load_loose(const Planes<Coding>& planes, int64_t here) {
  using P = Planes<Coding>;
  if constexpr (E != PART_OF_BLOCK) here = E;
  const Block block = load_upper<Coding, E>(planes, here);
  if constexpr (!P::one) return block;
  const Bits ones = load_ones<E>(planes.ones(), here);
  constexpr int shift = P::shift_one;
  return {with_bits(block.even, spread(ones.even, shift), 1 << shift),
          with_bits(block.odd, spread(ones.odd, shift), 1 << shift)};
}

// The levels of a coding, again and again.
template <int Coding>
inline __m512i repeated_levels() {
  constexpr int bits = bits_of(Coding);
  const uint8_t* const levels = levels_of(Coding);
  if constexpr (bits == 5) return _mm512_broadcast_i64x4(_mm256_load_si256((const __m256i*)levels));
  if constexpr (bits == 4) return _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)levels));
  std::conditional_t<bits == 3, uint64_t, uint32_t> all;
  memcpy(&all, levels, sizeof all);
  return bits == 3 ? _mm512_set1_epi64((long long)all) : _mm512_set1_epi32((int)all);
}

// As load_levels of planes_avx512.h.
template <int Coding, Extent E>
inline Block load_values(const Planes<Coding>& planes, int64_t here) {
  if constexpr (!is_nonlinear(Coding)) {
    return load_block<Coding, E>(planes, here);
  } else {
    const Block codes = load_loose<Coding, E>(planes, here);
    const __m512i levels = repeated_levels<Coding>();
    return {_mm512_permutexvar_epi8(codes.even, levels), _mm512_permutexvar_epi8(codes.odd, levels)};
  }
}

}  // namespace

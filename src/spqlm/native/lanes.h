// Masks of vectors; included below the target of the file that uses it.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

// The lanes of a vector that hold one of `count` numbers, from the first on: a bit for each.
template <class Mask = __mmask16>
inline Mask mask_of(int64_t count) {
  constexpr int64_t lanes = 8 * sizeof(Mask);
  if (count >= lanes) return (Mask)~(Mask)0;
  return count > 0 ? (Mask)(((Mask)1 << count) - 1) : (Mask)0;
}

}  // namespace

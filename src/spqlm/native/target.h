// Which processors the functions between TARGET_BEGIN and TARGET_END are compiled for; headers of vector
// code are included in between.
#pragma once

#include <immintrin.h>

#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,fma"

#define AS_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET_BEGIN(features) \
  AS_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END AS_PRAGMA(clang attribute pop)
#else
#define TARGET_BEGIN(features) AS_PRAGMA(GCC target(features))
// GCC's lasts to the end of the file.
#define TARGET_END
#endif

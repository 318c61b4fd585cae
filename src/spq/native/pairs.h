// 4-bit codes times bfloat16 inputs, two columns at a time, where the processor can. (A row of int8
// weights gains nothing from it: it waits for memory either way.)
#pragma once

#include "matrix.h"

struct Pairs {
  // Inputs [count, columns] that are exact in bfloat16, in the order in which the product reads
  // them: pairs [count, padded_columns(columns)].
  void (*arrange)(const float* x, int64_t count, int64_t columns, uint16_t* pairs);

  // As Kernels::product, with inputs from `arrange`.
  void (*product)(const Matrix&, const uint16_t* pairs, int64_t count, int64_t first, int64_t last,
                  float* y, int64_t y_stride);
};

extern const Pairs pairs_avx512;

// Those of the chosen instruction set, if it has them and they can take this matrix; else null.
const Pairs* pairs_for(const Matrix& matrix);

static inline int64_t padded_columns(int64_t columns) { return (columns + 127) / 128 * 128; }

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

  // As Kernels::sparse, with x in bfloat16.
  void (*sparse)(const Matrix&, const void* x, int64_t count, int64_t first, int64_t last,
                 float* y, int64_t y_stride, float* carried);
};

void sparse_avx512_bf16(const Matrix&, const void* x, int64_t count, int64_t first, int64_t last,
                        float* y, int64_t y_stride, float* carried);

extern const Pairs pairs_avx512;

// Those of the chosen instruction set, if it has them and they can take this matrix; else null.
const Pairs* pairs_for(const Matrix& matrix);

static inline int64_t padded_columns(int64_t columns) { return (columns + 127) / 128 * 128; }

// Products that take two columns at a time, where the processor can, of inputs that were brought into
// a form of their own before. For inputs in bfloat16.
#pragma once

#include "planes.h"

struct Pairs {
  // Inputs [count, columns], rounded and in the order in which the product reads them:
  // arranged [count, arranged_size(columns)].
  void (*arrange)(const float* x, int64_t count, int64_t columns, uint16_t* arranged);

  // As Kernels::product, with inputs from `arrange`.
  void (*product)(const Matrix&, const uint16_t* arranged, int64_t count, int64_t first,
                  int64_t last, float* y, int64_t y_stride);
};

// Of int8 codes and codes in groups, with inputs in fixed point: 16 bits and a power of two for every BLOCK
// columns. What is at least 1/128 of its block's largest stays as it is in bfloat16, the rest is as near as
// 2^-15 of that.
extern const Pairs pairs_int8, pairs_grouped;

// The same, for processors with AVX2.
extern const Pairs pairs_int8_avx2, pairs_grouped_avx2;

// The same for several inputs: codes times scales, and inputs, are rounded to bfloat16.
extern const Pairs widened_int8, widened_grouped;

// Of weights in bfloat16, with inputs in bfloat16.
extern const Pairs pairs_bfloat16;

// The same for several inputs, with AMX: codes with inputs in fixed point. Widths are a multiple of 32, and so
// are groups.
extern const Pairs tiles_int8, tiles_grouped, tiles_bfloat16, tiles_sparse;

// Those of the chosen instruction set for so many inputs, at most MOST_INPUTS, if it has them and they
// can take this matrix; else null.
const Pairs* pairs_for(const Matrix& matrix, int64_t count);

// The same of one instruction set.
const Pairs* pairs_of_avx2(const Matrix& matrix, int64_t count);
const Pairs* pairs_of_avx512_bf16(const Matrix& matrix, int64_t count);
const Pairs* pairs_of_amx(const Matrix& matrix, int64_t count);

// Whether codes become bfloat16 first.
bool widened(const Pairs* pairs);

// Room for what goes with a block's numbers, beside them or behind all blocks.
constexpr int64_t BESIDE = 34;

static inline int64_t arranged_size(int64_t columns) {
  return block_count_of(columns) * (BLOCK + BESIDE);
}

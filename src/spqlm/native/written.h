// Weights as numbers in bfloat16.
#pragma once

#include "matrix.h"

// The rows first <= row < last, out [last - first, columns]; false, and nothing is written, where it is neither int8
// nor codes in groups of a multiple of 32 columns.
bool write_codes_avx512_bf16(const Matrix&, int64_t first, int64_t last, char* out);

// The same of sparse 4-bit codes in groups of 16 or more, zeros between them.
void write_out_avx512_bf16(const Matrix&, int64_t first, int64_t last, char* out);

// Weights as numbers in bfloat16.
#pragma once

#include "matrix.h"

// Whether a matrix is int8, or codes in groups of a multiple of 32 columns.
static inline bool writes_codes_avx512_bf16(const Matrix& w) {
  return w.format == INT8 || (w.format == GROUPED && w.columns / w.groups % 32 == 0);
}

// Of such a matrix the rows first <= row < last and the columns begin <= column < end, out [last - first,
// end - begin]. A multiple of 128 is the first column.
void write_codes_avx512_bf16(const Matrix&, int64_t first, int64_t last, int64_t begin, int64_t end, uint16_t* out);

// Rows of sparse 4-bit codes in groups of 16 or more, zeros between them, out [last - first, columns].
void write_out_avx512_bf16(const Matrix&, int64_t first, int64_t last, char* out);

// The arithmetic that is compiled once for every instruction set.
#pragma once

#include "columns.h"
#include "matrix.h"

struct Kernels {
  // y[m * y_stride + row] = matrix[row] · x[m] + bias[row], summed in float32, for the rows
  // first <= row < last and m < count; x is [count, columns].
  void (*product)(const Matrix&, const float* x, int64_t count, int64_t first, int64_t last,
                  float* y, int64_t y_stride);

  // The kept groups first <= k < last of a sparse matrix times x, which is [groups, count,
  // group_size] and count at most MOST_INPUTS. Rows that begin among those groups go to y, with
  // their bias; what belongs to a row that began before goes to carried [count]. Empty rows belong
  // to the group behind them, or to the last one.
  void (*sparse)(const Matrix&, const float* x, int64_t count, int64_t first, int64_t last,
                 float* y, int64_t y_stride, float* carried);

  // The rows first <= row < last as numbers of `type`, into out [last - first, columns].
  void (*dequantize)(const Matrix&, int64_t first, int64_t last, void* out, FloatType type);

  // Attention of `count` heads to the same keys and values: softmax(keys query) values. keys and
  // values are [length, width] of `type`; queries and out are [count, width]; scores is room for
  // [count, length].
  void (*attend)(const float* queries, int64_t count, const void* keys, const void* values,
                 FloatType type, int64_t length, int64_t width, float* scores, float* out);

  // gate = silu(gate) * up, [size].
  void (*gated)(float* gate, const float* up, int64_t size);

  // out = x / rms(x) * weight (RMSNorm, arXiv 1910.07467), [size].
  void (*normalize)(const float* x, const float* weight, float epsilon, int64_t size, float* out);

  // Columns of the rows from `first` on, COLUMN_ROWS at most, with room for column_room() floats.
  void (*round_columns)(const Columns&, int64_t first, float* room);
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

// The fastest set that this processor can run, or the one chosen by `spq_choose`.
const Kernels& kernels();

// `size` numbers of one float type as those of another.
void convert(const void* from, FloatType from_type, int64_t size, void* to, FloatType to_type);

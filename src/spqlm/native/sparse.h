// Products with a sparse matrix, cut into tasks.
//
// Rows keep different numbers of groups, so an even split of the rows is an uneven one of the work.
// Here the kept groups are split, which is the task-centric schedule of GQSA (arXiv 2412.17560) and
// the idea of Stream-K (arXiv 2301.03598): a task may begin and end inside a row. It writes the rows
// that begin in it; what it adds to a row that began before is carried, and added when all are done,
// in the order of the tasks. So the result does not depend on the threads.
#pragma once

#include "kernels.h"
#include "pairs.h"

// Mirrored by spqlm/native/sparse.py.
enum Schedule : int32_t { EVEN_GROUPS = 0, EVEN_ROWS = 1 };

static inline bool known(Schedule schedule) {
  switch (schedule) {
    case EVEN_GROUPS:
    case EVEN_ROWS: return true;
  }
  return false;
}

// Whether a product with so many inputs, which were of this type before they became float32, is cut into
// tasks. Where there are tiles for them, they take whole rows.
static inline bool in_tasks(const Matrix& matrix, FloatType type, int64_t count) {
  return is_sparse(matrix) && !(type == BFLOAT16 && pairs_for(matrix, count));
}

static inline int64_t kept_before(const Matrix& matrix, int64_t row) {
  int32_t kept;
  memcpy(&kept, matrix.offsets + sizeof kept * row, sizeof kept);
  return kept;
}

// The first row that begins at kept group `first` or later. The search starts around the row where
// it would be if all kept the same: there the offsets that are read are those needed next, while a
// search from the ends waits for memory at every step.
static inline int64_t row_from(const Matrix& matrix, int64_t first) {
  const int64_t rows = matrix.rows, kept = kept_before(matrix, rows);
  const int64_t guess = kept ? (int64_t)((double)first / (double)kept * (double)rows) : 0;
  int64_t low = guess, high = guess;
  for (int64_t far = 16; low > 0 && kept_before(matrix, low - 1) >= first; far *= 8)
    low = guess > far ? guess - far : 0;
  for (int64_t far = 16; high < rows && kept_before(matrix, high) < first; far *= 8)
    high = guess + far < rows ? guess + far : rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (kept_before(matrix, middle) < first) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Of the codes of a group.
static constexpr int64_t group_bytes(Format format, int64_t size) {
  switch (format) {
    case SPARSE8: return size;
    case SPARSE4: return size / 2;
    case DENSE_FLOAT32:
    case DENSE_BFLOAT16:
    case DENSE_FLOAT16:
    case INT8:
    case GROUPED: break;  // keep all groups
  }
  __builtin_trap();
}

static inline int64_t group_bytes(const Matrix& matrix) {
  return group_bytes(matrix.format, matrix.group_size);
}

// One product, y[m * y_stride + row] for `count` inputs, at most MOST_INPUTS.
struct SparseProduct {
  const Matrix* matrix;
  Schedule schedule;
  const float* x;  // as `group_inputs` leaves them
  int64_t count;
  float* y;
  int64_t y_stride;
  float* carried;  // room, [sparse_tasks, count]
};

// How the inputs of a product stand: `size` columns of one input, then the same columns of the next. Of
// every sixteen columns the first and the last eight may take turns: 0, 8, 1, 9 and so on.
struct Order {
  int64_t size;
  bool interleaved;
  bool operator==(const Order& other) const {
    return size == other.size && interleaved == other.interleaved;
  }
};

Order order_for(const Matrix& matrix, int64_t count);

// x [count, columns] in that order, which is what a product reads.
void group_inputs(const Matrix& matrix, const float* x, int64_t count, float* out);

// 4-bit codes, for processors with AVX-512 and VBMI2: as Kernels::sparse, but groups of 16 and more with
// interleaved inputs.
void sparse_avx512_bf16(const Matrix&, const float* x, int64_t count, int64_t first, int64_t last,
                        float* y, int64_t y_stride, float* carried);

// That one where the chosen instruction set has it and the matrix is for it; else null.
decltype(&sparse_avx512_bf16) interleaved_for(const Matrix& matrix);

int64_t sparse_tasks(const Matrix& matrix);

void run_task(const SparseProduct& product, int64_t task);

// After all tasks.
void settle(const SparseProduct& product);

// How a sparse product is cut into tasks, and put together again.
#include "sparse.h"

#include <algorithm>

namespace {

// Weight that a task reads.
constexpr int64_t TASK_BYTES = 1 << 15;

int64_t start(const SparseProduct& product, int64_t task) {
  const Matrix& matrix = *product.matrix;
  const int64_t tasks = sparse_tasks(matrix);
  switch (product.schedule) {
    case EVEN_GROUPS: return kept_before(matrix, matrix.rows) * task / tasks;
    case EVEN_ROWS: return kept_before(matrix, matrix.rows * task / tasks);
  }
  __builtin_trap();
}

}  // namespace

Order order_for(const Matrix& matrix, int64_t count) {
  // Of one input, groups of any size stand in order.
  const int64_t size = count == 1 ? matrix.columns : matrix.group_size;
  return {size, matrix.group_size > 8 && interleaved_for(matrix)};
}

void group_inputs(const Matrix& matrix, const float* x, int64_t count, float* out) {
  const Order order = order_for(matrix, count);
  for (int64_t m = 0; m < count; m++)
    for (int64_t k = 0; k < matrix.columns; k += order.size) {
      const float* from = x + m * matrix.columns + k;
      float* to = out + k * count + m * order.size;
      if (!order.interleaved) {
        std::copy(from, from + order.size, to);
        continue;
      }
      for (int64_t i = 0; i < order.size; i += 16)
        for (int64_t j = 0; j < 8; j++) {
          to[i + 2 * j] = from[i + j];
          to[i + 2 * j + 1] = from[i + 8 + j];
        }
    }
}

int64_t sparse_tasks(const Matrix& matrix) {
  const int64_t groups = std::max<int64_t>(1, TASK_BYTES / (group_bytes(matrix) + 2));
  return std::max<int64_t>(1, (kept_before(matrix, matrix.rows) + groups - 1) / groups);
}

void run_task(const SparseProduct& product, int64_t task) {
  const Matrix& matrix = *product.matrix;
  const int64_t first = start(product, task), last = start(product, task + 1);
  // Whoever reaches the end writes the empty rows there; of two tasks, only one may.
  if (first == last && kept_before(matrix, matrix.rows) > 0) return;
  float* carried = product.carried + task * product.count;
  const auto interleaved = interleaved_for(matrix);
  const auto run = interleaved ? interleaved : kernels().sparse;
  run(matrix, product.x, product.count, first, last, product.y, product.y_stride, carried);
}

void settle(const SparseProduct& product) {
  const Matrix& matrix = *product.matrix;
  const int64_t tasks = sparse_tasks(matrix);
  for (int64_t task = 1; task < tasks; task++) {
    const int64_t first = start(product, task), last = start(product, task + 1);
    const int64_t row = row_from(matrix, first);
    const bool inside = row == matrix.rows || kept_before(matrix, row) > first;
    if (first == last || !inside) continue;
    for (int64_t m = 0; m < product.count; m++)
      product.y[m * product.y_stride + row - 1] += product.carried[task * product.count + m];
  }
}

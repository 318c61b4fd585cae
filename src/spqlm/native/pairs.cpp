// Which kernel takes a matrix and some inputs two columns at a time.
#include "pairs.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace {

// Inputs from which on tiles are faster, measured by benchmarks/cpu_kernels.py.
constexpr int64_t TILES_INT8 = 5, TILES_GROUPED = 5, TILES_BFLOAT16 = 3, TILES_SPARSE = 9;

// The same for codes that become bfloat16 first.
constexpr int64_t WIDENED_INT8 = 10, WIDENED_GROUPED = 8;

// Whether a block is a number of groups or a group a number of blocks.
bool in_blocks(const Matrix& matrix) {
  const int64_t size = matrix.columns / matrix.groups;
  return size % BLOCK == 0 || (size % 16 == 0 && BLOCK % size == 0);
}

}  // namespace

const Pairs* pairs_of_avx2(const Matrix& matrix, int64_t) {
  if (matrix.format == INT8) return &pairs_int8_avx2;
  return matrix.format == GROUPED && in_blocks(matrix) ? &pairs_grouped_avx2 : nullptr;
}

const Pairs* pairs_of_avx512_bf16(const Matrix& matrix, int64_t count) {
  switch (matrix.format) {
    case INT8: return count < WIDENED_INT8 ? &pairs_int8 : &widened_int8;
    case GROUPED:
      if (!in_blocks(matrix)) return nullptr;
      return count < WIDENED_GROUPED ? &pairs_grouped : &widened_grouped;
    case DENSE_BFLOAT16: return &pairs_bfloat16;
    case DENSE_FLOAT32:
    case DENSE_FLOAT16:
    case SPARSE8:
    case SPARSE4: return nullptr;
  }
  __builtin_trap();
}

bool widened(const Pairs* pairs) { return pairs == &widened_int8 || pairs == &widened_grouped; }

#if defined(__linux__)
const Pairs* pairs_of_amx(const Matrix& matrix, int64_t count) {
  if (matrix.columns % 32) return pairs_of_avx512_bf16(matrix, count);
  switch (matrix.format) {
    case INT8:
      if (count >= TILES_INT8) return &tiles_int8;
      break;
    case GROUPED:
      if (count >= TILES_GROUPED && matrix.columns / matrix.groups % 32 == 0) return &tiles_grouped;
      break;
    case DENSE_BFLOAT16:
      if (count >= TILES_BFLOAT16) return &tiles_bfloat16;
      break;
    case SPARSE8:
    case SPARSE4:
      if (count >= TILES_SPARSE) return &tiles_sparse;
      break;
    case DENSE_FLOAT32:
    case DENSE_FLOAT16: break;
  }
  return pairs_of_avx512_bf16(matrix, count);
}
#endif

#else

bool widened(const Pairs*) { return false; }

#endif

// What Python calls: the choice of the instruction set, and one linear layer at a time.
#include <algorithm>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

#include "attention.h"
#include "columns.h"
#include "exported.h"
#include "gram.h"
#include "kernels.h"
#include "many.h"
#include "pairs.h"
#include "parallel.h"
#include "sparse.h"
#include "written.h"

namespace {

struct Set {
  const char* name;
  const Kernels* kernels;
  // What the processor must have besides what those need; null where that is all.
  bool (*runs_here)() = nullptr;
  // The kernels that take two columns at a time and can take this matrix and so many inputs, see pairs.h; null where
  // there are none.
  const Pairs* (*pairs)(const Matrix& matrix, int64_t count) = nullptr;
  // See many.h; null where PyTorch's own product of integers is as fast, or faster.
  decltype(&linear_int8_avx2) int8 = nullptr;
  // See sparse.h, written.h, many.h, gram.h and attention.h; null where there is none.
  decltype(&sparse_avx512_bf16) sparse = nullptr;
  decltype(&write_codes_avx512_bf16) write_codes = nullptr;
  decltype(&linear_avx512_bf16) many = nullptr;
  decltype(&gram_avx512_bf16) gram = nullptr;
  decltype(&attention_avx512_bf16) attention = nullptr;
  decltype(&attention_gradient_avx512_bf16) attention_gradient = nullptr;
};

#if defined(__x86_64__) && defined(__GNUC__)
// VNNI came later than AVX-512.
void linear_int8_avx512(const Matrix& matrix, const void* x, FloatType type, int64_t count, void* y, void* codes,
                        Rounded* rounded, int32_t threads) {
  const bool vnni = __builtin_cpu_supports("avx512vnni");
  (vnni ? linear_int8_avx512_vnni : linear_int8_avx2)(matrix, x, type, count, y, codes, rounded, threads);
}

bool bfloat16_runs_here() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni");
}

#if defined(__linux__)
bool tiles_run_here() { return bfloat16_runs_here() && amx_runs_here(); }
#endif
#endif

// From fastest to slowest.
const Set sets[] = {
#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__linux__)
    {"amx_bf16", &kernels_avx512, tiles_run_here, pairs_of_amx, nullptr, sparse_avx512_bf16, write_codes_avx512_bf16,
     linear_amx_bf16, gram_amx_bf16},
#endif
    {"avx512_bf16", &kernels_avx512, bfloat16_runs_here, pairs_of_avx512_bf16, linear_int8_avx512_vnni,
     sparse_avx512_bf16, write_codes_avx512_bf16, linear_avx512_bf16, gram_avx512_bf16, attention_avx512_bf16,
     attention_gradient_avx512_bf16},
    {"avx512", &kernels_avx512, nullptr, nullptr, linear_int8_avx512},
    {"avx2", &kernels_avx2, nullptr, pairs_of_avx2, linear_int8_avx2},
#endif
    {"portable", &kernels_portable},
};

#if defined(__x86_64__) && defined(__GNUC__)
// Clang 14 cannot be asked for it by name.
bool f16c_runs_here() {
  unsigned a, b, c = 0, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool runs_here(const Set& set) {
  if (set.kernels == &kernels_portable) return true;
#if defined(__x86_64__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !f16c_runs_here())
    return false;
  if (set.kernels == &kernels_avx2) return true;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return false;
  return !set.runs_here || set.runs_here();
#else
  return false;
#endif
}

const Set* fastest() {
  const Set* set = sets;
  while (!runs_here(*set)) set++;
  return set;
}

const Set* chosen = fastest();

// Inputs up to which codes that become bfloat16 first are preferred to products of many, for being faster or, of codes
// in groups, for rounding no weight.
int64_t most_widened(const Matrix& matrix) {
  return matrix.format == INT8 && matrix.columns >= 2048 ? 24 : 16;
}

// Outputs that are worked out at a time: those of all inputs fit on the stack.
constexpr int64_t ROWS = 32;

// Of the cache. What is read a vector at a time should not lie in two lines.
constexpr int64_t LINE_BYTES = 64;

template <class T>
T* room_of(Purpose purpose, int64_t count) {
  return (T*)room_for(purpose, count * sizeof(T));
}

// y [count, rows] of `type`.
void multiply_sparse(const Matrix& matrix, const float* input, int64_t count, void* y, FloatType type,
                     int32_t threads, Schedule schedule) {
  const int64_t columns = matrix.columns, rows = matrix.rows, tasks = sparse_tasks(matrix);
  const int64_t batch = std::min(count, MOST_INPUTS);
  float* x = room_of<float>(Purpose::SPARSE, batch * (columns + rows + tasks));
  float *sums = x + batch * columns, *carried = sums + batch * rows;
  for (int64_t m = 0; m < count; m += batch) {
    const int64_t some = std::min(count - m, batch);
    group_inputs(matrix, input + m * columns, some, x);
    const SparseProduct product = {&matrix, schedule, x, some, sums, rows, carried};
    const int64_t multiplications = some * kept_before(matrix, rows) * matrix.group_size;
    in_parallel(threads, tasks, multiplications, [&](int64_t task) { run_task(product, task); });
    settle(product);
    convert(sums, FLOAT32, some * rows, (char*)y + m * rows * element_size(type), type);
  }
}

// Inputs of one matrix, and the kernel that takes them where it is not one of `kernels()`.
struct Inputs {
  const float* plain;
  const Pairs* pairs;
  const uint16_t* arranged;  // by `pairs`
  int64_t count;
};

// Numbers that `arrange` has to leave room for.
int64_t arranged_room(const Matrix& matrix, int64_t count) { return count * arranged_size(matrix.columns); }

// From inputs that were of `input_type` before they became float32, with room for them if there are pairs.
Inputs arrange(const Matrix& matrix, const float* input, FloatType input_type, int64_t count, uint16_t* room) {
  const bool suits = input_type == BFLOAT16;
  const Pairs* pairs = suits ? pairs_for(matrix, std::min(count, MOST_INPUTS)) : nullptr;
  for (int64_t m = 0; pairs && m < count; m += MOST_INPUTS)
    pairs->arrange(input + m * matrix.columns, std::min(count - m, MOST_INPUTS), matrix.columns,
                   room + arranged_room(matrix, m));
  return {input, pairs, room, count};
}

// A block of the rows of y [count, rows] of `type`, for all inputs.
void multiply_block(const Matrix& matrix, const Inputs& inputs, int64_t block, void* y, FloatType type) {
  const int64_t rows = matrix.rows, first = block * ROWS, last = std::min(first + ROWS, rows);
  float sums[MOST_INPUTS * ROWS];
  // Where row 0 would be, which kernels count from: as a number, since it lies before the array.
  float* const from_row_0 = (float*)((uintptr_t)sums - first * sizeof(float));
  for (int64_t m = 0; m < inputs.count; m += MOST_INPUTS) {
    const int64_t some = std::min(inputs.count - m, MOST_INPUTS);
    if (inputs.pairs)
      inputs.pairs->product(matrix, inputs.arranged + arranged_room(matrix, m), some, first, last, from_row_0,
                            ROWS);
    else
      kernels().product(matrix, inputs.plain + m * matrix.columns, some, first, last, from_row_0, ROWS);
    for (int64_t i = 0; i < some; i++)
      convert(sums + i * ROWS, FLOAT32, last - first,
              (char*)y + ((m + i) * rows + first) * element_size(type), type);
  }
}

int64_t blocks_of(const Matrix& matrix) { return (matrix.rows + ROWS - 1) / ROWS; }

// The same for any matrix, from inputs that were of `input_type` before they became float32.
void multiply(const Matrix& matrix, const float* input, FloatType input_type, int64_t count, void* y,
              FloatType type, int32_t threads) {
  if (in_tasks(matrix, input_type, std::min(count, MOST_INPUTS)))
    return multiply_sparse(matrix, input, count, y, type, threads, EVEN_GROUPS);
  uint16_t* room = room_of<uint16_t>(Purpose::ARRANGED, arranged_room(matrix, count));
  const Inputs inputs = arrange(matrix, input, input_type, count, room);
  in_parallel(threads, blocks_of(matrix), count * matrix.rows * matrix.columns,
              [&](int64_t block) { multiply_block(matrix, inputs, block, y, type); });
}

}  // namespace

const Kernels& kernels() { return *chosen->kernels; }

void convert(const void* from, FloatType from_type, int64_t size, void* to, FloatType to_type) {
  kernels().dequantize(dense(from, from_type, 1, size), 0, 1, to, to_type);
}

void* room_for(Purpose purpose, int64_t bytes) {
  thread_local std::vector<char> rooms[(int)Purpose::COUNT];
  std::vector<char>& room = rooms[(int)purpose];
  if (room.size() < (size_t)bytes + LINE_BYTES) room.resize(bytes + LINE_BYTES);
  return (void*)(((uintptr_t)room.data() + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES);
}

const Pairs* pairs_for(const Matrix& matrix, int64_t count) {
  return chosen->pairs ? chosen->pairs(matrix, count) : nullptr;
}

decltype(&sparse_avx512_bf16) interleaved_for(const Matrix& matrix) {
  return matrix.format == SPARSE4 ? chosen->sparse : nullptr;
}

EXPORTED const char* spq_instruction_set() { return chosen->name; }

// Whether this processor and this build have the set of that name.
EXPORTED int spq_runs_here(const char* name) {
  for (const Set& set : sets)
    if (!strcmp(set.name, name)) return runs_here(set);
  return 0;
}

// 0 where this processor or this build lacks the set of that name; then nothing changes.
EXPORTED int spq_choose(const char* name) {
  for (const Set& set : sets)
    if (!strcmp(set.name, name) && runs_here(set)) {
      chosen = &set;
      return 1;
    }
  return 0;
}

// As spq_linear of one sparse matrix, with a choice of how the work is split.
EXPORTED Status spq_sparse_linear(const Matrix* matrix, const void* x, FloatType type, int64_t count,
                                  void* y, int32_t threads, Schedule schedule) {
  if (!known(*matrix) || !is_sparse(*matrix) || !known(type) || !known(schedule)) return REFUSED;
  float* input = room_of<float>(Purpose::INPUT, count * matrix->columns);
  convert(x, type, count * matrix->columns, input, FLOAT32);
  multiply_sparse(*matrix, input, count, y, type, threads, schedule);
  return DONE;
}

// y [count, rows of outer] = x [count, columns] times the matrix, transposed, plus its bias: outer,
// or inner and then outer where inner is not null. x and y are of `type`, sums in float32.
EXPORTED Status spq_linear(const Matrix* outer, const Matrix* inner, const void* x, FloatType type,
                           int64_t count, void* y, int32_t threads) {
  if (!known(*outer) || (inner && !known(*inner)) || !known(type)) return REFUSED;
  const int64_t size = count * (inner ? inner->columns : outer->columns);
  float* room = room_of<float>(Purpose::INPUT, size + (inner ? count * inner->rows : 0));
  const float* input = (const float*)x;
  if (type != FLOAT32 || (uintptr_t)x % sizeof(float)) {
    convert(x, type, size, room, FLOAT32);
    input = room;
  }
  if (inner) {
    multiply(*inner, input, type, count, room + size, FLOAT32, threads);
    input = room + size;
  }
  multiply(*outer, input, type, count, y, type, threads);
  return DONE;
}

// As spq_linear, of several matrices of one shape: the first counts[0] rows of x go through the first matrix,
// the next counts[1] through the second, and so on. Declines where groups of a matrix are left out, or shapes
// differ.
EXPORTED Status spq_linear_each(const Matrix* const* matrices, const int64_t* counts, int64_t size, const void* x,
                                FloatType type, void* y, int32_t threads) {
  if (!known(type)) return REFUSED;
  int64_t total = 0;
  for (int64_t i = 0; i < size; i++) {
    if (!known(*matrices[i])) return REFUSED;
    const bool alike = matrices[i]->columns == matrices[0]->columns && matrices[i]->rows == matrices[0]->rows;
    if (!alike || is_sparse(*matrices[i])) return DECLINED;
    total += counts[i];
  }
  if (!total) return DONE;
  const Matrix& shape = *matrices[0];
  float* input = room_of<float>(Purpose::INPUT, total * shape.columns);
  convert(x, type, total * shape.columns, input, FLOAT32);
  uint16_t* room = room_of<uint16_t>(Purpose::ARRANGED, arranged_room(shape, total));
  std::vector<Inputs> inputs(size);
  std::vector<char*> outputs(size);
  for (int64_t i = 0, before = 0; i < size; before += counts[i++]) {
    uint16_t* own = room + arranged_room(shape, before);
    inputs[i] = arrange(*matrices[i], input + before * shape.columns, type, counts[i], own);
    outputs[i] = (char*)y + before * shape.rows * element_size(type);
  }
  const int64_t blocks = blocks_of(shape);
  in_parallel(threads, size * blocks, total * shape.rows * shape.columns, [&](int64_t task) {
    const int64_t i = task / blocks;
    multiply_block(*matrices[i], inputs[i], task % blocks, outputs[i], type);
  });
  return DONE;
}

// The rows first <= row < last as numbers of `type`, out [last - first, columns].
EXPORTED Status spq_dequantize(const Matrix* matrix, int64_t first, int64_t last, void* out,
                               FloatType type, int32_t threads) {
  if (!known(*matrix) || !known(type)) return REFUSED;
  const int64_t bytes = matrix->columns * element_size(type), count = last - first;
  in_parallel(threads, (count + ROWS - 1) / ROWS, count * matrix->columns, [&](int64_t block) {
    const int64_t start = first + block * ROWS, end = std::min(start + ROWS, last);
    char* const rows = (char*)out + (start - first) * bytes;
    if (chosen->write_codes && type == BFLOAT16 && chosen->write_codes(*matrix, start, end, rows)) return;
    kernels().dequantize(*matrix, start, end, rows, type);
  });
  return DONE;
}

// See many.h. Declines where the chosen instruction set has no such kernel or the matrix does not suit it.
EXPORTED Status spq_many(const Matrix* matrix, const void* x, int64_t count, void* y, int32_t threads) {
  if (!known(*matrix)) return REFUSED;
  if (!chosen->many || matrix->columns % MANY_COLUMNS) return DECLINED;
  if (count <= most_widened(*matrix) && widened(pairs_for(*matrix, count)))
    return spq_linear(matrix, nullptr, x, BFLOAT16, count, y, threads);
  const int64_t inputs = (count + MANY_INPUTS - 1) / MANY_INPUTS * MANY_INPUTS;
  uint32_t* room = room_of<uint32_t>(Purpose::MANY, inputs * matrix->columns / 2);
  chosen->many(*matrix, (const uint16_t*)x, count, (uint16_t*)y, room, threads);
  return DONE;
}

// See many.h. Declines where the chosen instruction set has no such kernel or the matrix does not suit it.
EXPORTED Status spq_int8_inputs(const Matrix* matrix, const void* x, FloatType type, int64_t count, void* y,
                                int32_t threads) {
  if (!known(*matrix) || !known(type)) return REFUSED;
  const int64_t columns = (matrix->columns + INT8_COLUMNS - 1) / INT8_COLUMNS * INT8_COLUMNS;
  if (!chosen->int8 || matrix->format != INT8 || columns > INT8_MOST) return DECLINED;
  const int64_t inputs = (count + INT8_INPUTS - 1) / INT8_INPUTS * INT8_INPUTS;
  Rounded* rounded = room_of<Rounded>(Purpose::MANY, inputs + inputs * columns / 4);
  chosen->int8(*matrix, x, type, count, y, rounded + inputs, rounded, threads);
  return DONE;
}

// See gram.h. Declines where the chosen instruction set has no such kernel.
EXPORTED Status spq_gram(const void* x, const float* by, int64_t count, int64_t columns, float* total,
                         int32_t threads) {
  if (!chosen->gram) return DECLINED;
  chosen->gram((const uint16_t*)x, by, count, columns, total, threads);
  return DONE;
}

// See columns.h.
EXPORTED Status spq_round_columns(const Columns* columns, int32_t threads) {
  const int64_t parts = (columns->rows + COLUMN_ROWS - 1) / COLUMN_ROWS;
  const int64_t multiplications = columns->rows * columns->count * columns->count / 2;
  in_parallel(threads, parts, multiplications, [&](int64_t part) {
    float* room = room_of<float>(Purpose::COLUMNS, column_room(*columns));
    kernels().round_columns(*columns, part * COLUMN_ROWS, room);
  });
  return DONE;
}

// See attention.h. Declines where the chosen instruction set has no such kernel or the width of a head
// does not suit it.
EXPORTED Status spq_attention(const Attention* attention, int32_t threads) {
  if (!chosen->attention || attention->width % HEAD_STEP || attention->width > HEAD_MOST) return DECLINED;
  chosen->attention(*attention, threads);
  return DONE;
}

// See attention.h. Declines as `spq_attention` does.
EXPORTED Status spq_attention_gradient(const AttentionGradient* gradient, int32_t threads) {
  const int64_t width = gradient->attention.width;
  if (!chosen->attention_gradient || width % HEAD_STEP || width > HEAD_MOST) return DECLINED;
  chosen->attention_gradient(*gradient, threads);
  return DONE;
}

// out = x / rms(x) * weight for each of `count` rows; x and out are of `type`.
EXPORTED Status spq_normalize(const void* x, FloatType type, int64_t count, int64_t size,
                              const float* weight, float epsilon, void* out, int32_t threads) {
  if (!known(type)) return REFUSED;
  const int64_t bytes = size * element_size(type);
  in_parallel(threads, count, 4 * count * size, [&](int64_t row) {
    float* held = room_of<float>(Purpose::INPUT, size);
    convert((const char*)x + row * bytes, type, size, held, FLOAT32);
    kernels().normalize(held, weight, epsilon, size, held);
    convert(held, FLOAT32, size, (char*)out + row * bytes, type);
  });
  return DONE;
}

// out = silu(gate) * up, all of `type`.
EXPORTED Status spq_gated(const void* gate, const void* up, FloatType type, int64_t size, void* out,
                          int32_t threads) {
  if (!known(type)) return REFUSED;
  constexpr int64_t PIECE = 2048;
  const int64_t bytes = element_size(type);
  in_parallel(threads, (size + PIECE - 1) / PIECE, 16 * size, [&](int64_t piece) {
    const int64_t first = piece * PIECE, some = std::min(PIECE, size - first);
    float left[PIECE], right[PIECE];
    convert((const char*)gate + first * bytes, type, some, left, FLOAT32);
    convert((const char*)up + first * bytes, type, some, right, FLOAT32);
    kernels().gated(left, right, some);
    convert(left, FLOAT32, some, (char*)out + first * bytes, type);
  });
  return DONE;
}

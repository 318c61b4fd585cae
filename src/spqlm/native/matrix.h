// What a weight matrix looks like in memory, and its scalar arithmetic.
#pragma once

#include <cstdint>
#include <cstring>

// Switches over enums name every case and have no `default`, so that compilers point at those which a new
// value is missing from. What `known` accepts is all that gets as far as them.

// What numbers are stored in. Mirrored, as Format, by FORMATS in spqlm/native/__init__.py.
enum FloatType : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// How the numbers of a weight are stored.
enum Format : int32_t {
  DENSE_FLOAT32 = FLOAT32,
  DENSE_BFLOAT16 = BFLOAT16,
  DENSE_FLOAT16 = FLOAT16,
  INT8 = 3,
  GROUPED = 4,
  SPARSE8 = 5,
  SPARSE4 = 6
};

// Of a code in groups, evenly spaced or not, and what is added to the bits of one that is not.
constexpr int32_t FEWEST_BITS = 2, MOST_BITS = 7, MOST_BITS_NONLINEAR = 5, NONLINEAR = 8;

// A coding is the bits of a code, and NONLINEAR more where its values are not evenly spaced (planes.h).
static constexpr int bits_of(int coding) { return coding & (NONLINEAR - 1); }
static constexpr bool is_nonlinear(int coding) { return coding & NONLINEAR; }

// Row-major [rows, columns], dense or codes with scales. No pointer needs any alignment.
//
// The sparse formats keep whole groups of a row's columns, one behind the other over all rows, and
// read 0 elsewhere: numbers are scale * code + zero. Mirrored by spqlm/native/structures.py.
struct Matrix {
  const void* weight;  // grouped: see planes.h; sparse: the codes of the kept groups, [kept, group_size]
  const void* scale;   // int8: [rows] or [1]; grouped: [rows, groups]; sparse: [kept]
  const void* bias;    // [rows] or null
  int64_t rows;
  int64_t columns;
  int64_t groups;      // in a row; 0 where one scale serves the whole matrix
  Format format;
  FloatType scale_type;  // also of the zeros
  FloatType bias_type;
  int32_t coding;      // grouped: of a code, see bits_of
  int32_t group_size;  // what follows is there for sparse formats alone
  const void* zero = nullptr;        // [kept] or null
  const uint8_t* mask = nullptr;     // [rows, ceil(groups / 8)]: a bit for each group, lowest first
  const uint8_t* offsets = nullptr;  // int32 [rows + 1]: kept groups before each row
};

// Everything below has internal linkage: files compiled for different instruction sets must not
// share one copy.

// Numbers [rows, columns] of a float type, without scales or a bias.
static inline Matrix dense(const void* numbers, FloatType type, int64_t rows, int64_t columns) {
  return {numbers, nullptr, nullptr, rows, columns, 0, (Format)type, FLOAT32, FLOAT32, 0, 0};
}

// Bytes of a number.
static constexpr int64_t element_size(FloatType type) {
  switch (type) {
    case FLOAT32: return 4;
    case BFLOAT16:
    case FLOAT16: return 2;
  }
  __builtin_trap();
}

static inline bool is_sparse(const Matrix& matrix) {
  switch (matrix.format) {
    case SPARSE8:
    case SPARSE4: return true;
    case DENSE_FLOAT32:
    case DENSE_BFLOAT16:
    case DENSE_FLOAT16:
    case INT8:
    case GROUPED: return false;
  }
  __builtin_trap();
}

// Whether the kernels know a type; it may be any number that somebody passed.
static inline bool known(FloatType type) {
  switch (type) {
    case FLOAT32:
    case BFLOAT16:
    case FLOAT16: return true;
  }
  return false;
}

static inline bool known_coding(int32_t coding) {
  const int32_t most = is_nonlinear(coding) ? MOST_BITS_NONLINEAR : MOST_BITS;
  return coding >= 0 && coding < 2 * NONLINEAR && bits_of(coding) >= FEWEST_BITS && bits_of(coding) <= most;
}

// Whether the kernels know a matrix' format, the types of what goes with it, and the size of its groups.
static inline bool known(const Matrix& matrix) {
  if (matrix.bias && !known(matrix.bias_type)) return false;
  const int32_t size = matrix.group_size;
  switch (matrix.format) {
    case DENSE_FLOAT32:
    case DENSE_BFLOAT16:
    case DENSE_FLOAT16: return true;
    case INT8: return known(matrix.scale_type);
    case GROUPED:
      return known(matrix.scale_type) && matrix.groups > 0 && known_coding(matrix.coding) &&
             matrix.columns % (bits_of(matrix.coding) == 4 ? 2 : 16) == 0;
    case SPARSE8:
    case SPARSE4:
      return known(matrix.scale_type) && (size == 8 || size == 16 || size == 32 || size == 64);
  }
  return false;
}

static inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float from_bfloat16(uint16_t bits) { return float_from_bits((uint32_t)bits << 16); }

static inline float from_float16(uint16_t bits) {
  const uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
  const uint32_t rest = bits & 0x7fff;
  if (rest >= 0x7c00) return float_from_bits(sign | 0x7f800000 | (rest << 13));
  // 2^112 moves the exponent's bias from 15 to 127; subnormal numbers come out right too.
  return float_from_bits(sign | bits_from_float(float_from_bits(rest << 13) * 0x1p112f));
}

// To nearest, ties to even.
static inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_from_float(value);
  if (value != value) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline uint16_t to_float16(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
  const float magnitude = float_from_bits(bits & 0x7fffffff);
  if (value != value) return (uint16_t)(sign | 0x7e00);
  if (magnitude >= 65520.0f) return (uint16_t)(sign | 0x7c00);
  if (magnitude < 0x1p-14f) {
    // Adding 0.5 leaves the number of steps of 2^-24 in the last bits, rounded.
    return (uint16_t)(sign | (bits_from_float(magnitude + 0.5f) - bits_from_float(0.5f)));
  }
  const uint32_t rounded = (bits & 0x7fffffff) + 0xfff + ((bits >> 13) & 1);
  return (uint16_t)(sign | ((rounded - 0x38000000) >> 13));
}

// No switch, nor in row_scale, and no function for both sizes: with those, GCC rounds products and the biases
// behind them at other places, and products of 4-bit codes take 8 % longer. `known` has refused other types.
static inline float read_float(const void* data, FloatType type, int64_t index) {
  if (type == FLOAT32) {
    float value;
    memcpy(&value, (const char*)data + 4 * index, sizeof value);
    return value;
  }
  uint16_t bits;
  memcpy(&bits, (const char*)data + 2 * index, sizeof bits);
  return type == BFLOAT16 ? from_bfloat16(bits) : from_float16(bits);
}

template <class Number>
static inline void write(void* data, int64_t index, Number number) {
  memcpy((char*)data + sizeof number * index, &number, sizeof number);
}

static inline void write_float(void* data, FloatType type, int64_t index, float value) {
  switch (type) {
    case FLOAT32: return write(data, index, value);
    case BFLOAT16: return write(data, index, to_bfloat16(value));
    case FLOAT16: return write(data, index, to_float16(value));
  }
  __builtin_trap();
}

// Inputs that are multiplied at a time. Mirrored by spqlm/native/decoder.py.
constexpr int64_t MOST_INPUTS = 64;

// Bytes of a row where it is multiplied: rows of sparse matrices are written out in bfloat16.
static inline int64_t row_bytes(const Matrix& matrix) {
  switch (matrix.format) {
    case DENSE_FLOAT32: return 4 * matrix.columns;
    case INT8: return matrix.columns;
    case GROUPED: return matrix.columns * bits_of(matrix.coding) / 8;
    case DENSE_BFLOAT16:
    case DENSE_FLOAT16:
    case SPARSE8:
    case SPARSE4: return 2 * matrix.columns;
  }
  __builtin_trap();
}

// The scale that serves a whole row; 1 where there is none.
static inline float row_scale(const Matrix& matrix, int64_t row) {
  if (matrix.format != INT8) return 1.0f;
  return read_float(matrix.scale, matrix.scale_type, matrix.groups ? row : 0);
}

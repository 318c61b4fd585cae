// What a weight matrix looks like in memory, and its scalar arithmetic.
#pragma once

#include <cstdint>
#include <cstring>

// Mirrored by spq/native/__init__.py.
enum Format : int32_t {
  FLOAT32 = 0,
  BFLOAT16 = 1,
  FLOAT16 = 2,
  INT8 = 3,
  INT4 = 4,
  SPARSE8 = 5,
  SPARSE4 = 6
};

// Row-major [rows, columns], dense or codes with scales. No pointer needs any alignment.
//
// The sparse formats keep whole groups of a row's columns, one behind the other over all rows, and
// read 0 elsewhere: numbers are scale * code + zero.
struct Matrix {
  const void* weight;  // sparse: the codes of the kept groups, [kept, group_size]
  const void* scale;   // int8: [rows] or [1]; int4: [rows, groups]; sparse: [kept]
  const void* bias;    // [rows] or null
  int64_t rows;
  int64_t columns;
  int64_t groups;      // in a row; 0 where one scale serves the whole matrix
  int32_t format;      // a Format
  int32_t scale_type;  // FLOAT32, BFLOAT16 or FLOAT16; also of the zeros
  int32_t bias_type;
  int32_t group_size;      // what follows is there for sparse formats alone
  const void* zero = nullptr;        // [kept] or null
  const uint8_t* mask = nullptr;     // [rows, ceil(groups / 8)]: a bit for each group, lowest first
  const uint8_t* offsets = nullptr;  // int32 [rows + 1]: kept groups before each row
};

// Everything below has internal linkage: files compiled for different instruction sets must not
// share one copy.
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

static inline float read_float(const void* data, int32_t type, int64_t index) {
  if (type == FLOAT32) {
    float value;
    memcpy(&value, (const char*)data + 4 * index, sizeof value);
    return value;
  }
  uint16_t bits;
  memcpy(&bits, (const char*)data + 2 * index, sizeof bits);
  return type == BFLOAT16 ? from_bfloat16(bits) : from_float16(bits);
}

static inline void write_float(void* data, int32_t type, int64_t index, float value) {
  if (type == FLOAT32) {
    memcpy((char*)data + 4 * index, &value, sizeof value);
    return;
  }
  const uint16_t bits = type == BFLOAT16 ? to_bfloat16(value) : to_float16(value);
  memcpy((char*)data + 2 * index, &bits, sizeof bits);
}

// Inputs that are multiplied at a time. Mirrored by spq/native/decoder.py.
constexpr int64_t MOST_INPUTS = 64;

static inline bool is_sparse(const Matrix& matrix) { return matrix.format >= SPARSE8; }

static inline int64_t row_bytes(const Matrix& matrix) {
  switch (matrix.format) {
    case FLOAT32: return 4 * matrix.columns;
    case INT8: return matrix.columns;
    case INT4: return matrix.columns / 2;
    default: return 2 * matrix.columns;
  }
}

// The scale that serves a whole row; 1 for a dense matrix.
static inline float row_scale(const Matrix& matrix, int64_t row) {
  if (matrix.format != INT8) return 1.0f;
  return read_float(matrix.scale, matrix.scale_type, matrix.groups ? row : 0);
}

// Many inputs at once.
#pragma once

#include "kernels.h"

// Inputs are rearranged at most so many at a time, and columns in such pieces: of both there must be
// room for a whole number, and of columns there must be one.
constexpr int64_t MANY_INPUTS = 32, MANY_COLUMNS = 32;

// y [count, rows] = x [count, columns] times the matrix, transposed, plus its bias; both in
// bfloat16, sums in float32. room: for columns / 2 numbers for each input. Addresses of x and y need
// no alignment.
void linear_avx512_bf16(const Matrix& matrix, const uint16_t* x, int64_t count, uint16_t* y,
                        uint32_t* room, int32_t threads);

// The same, where amx_runs_here().
void linear_amx_bf16(const Matrix& matrix, const uint16_t* x, int64_t count, uint16_t* y,
                     uint32_t* room, int32_t threads);

// Whether the processor has the tiles and the system lets this process use them.
bool amx_runs_here();

// What is known of an input that was rounded to int8: its scale, and the sum of its codes.
struct Rounded {
  float step;
  int32_t sum;
};

// The scale of an input whose largest magnitude this is; no smaller than what division bears.
static inline float step_of(float largest) {
  const float step = largest / 127.0f, smallest = 0x1p-126f;
  return step < smallest ? smallest : step;
}

// The next multiple of a unit.
static inline int64_t rounded_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// y [count, rows] = x [count, columns], each input rounded to int8 at a scale of its own, times a matrix in
// int8, transposed, plus its bias; x and y are of `type`. codes and rounded: room for the inputs, a multiple
// of INT8_INPUTS of them, each of a multiple of INT8_COLUMNS codes of up to two bytes. No more columns than
// INT8_MOST: sums are of 32 bits.
constexpr int64_t INT8_INPUTS = 16, INT8_COLUMNS = 64, INT8_MOST = 1 << 17;
void linear_int8_avx2(const Matrix& matrix, const void* x, FloatType type, int64_t count, void* y,
                      void* codes, Rounded* rounded, int32_t threads);

// The same, for processors with AVX-512 VNNI.
void linear_int8_avx512_vnni(const Matrix& matrix, const void* x, FloatType type, int64_t count, void* y,
                             void* codes, Rounded* rounded, int32_t threads);

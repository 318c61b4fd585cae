// What columns.h declares, once for each instruction set: loops over COLUMN_ROWS rows are vectors.
#pragma once

#include <algorithm>

#include "columns.h"

namespace {

// To the nearest whole number, halves to the even one; magnitudes up to 2^22.
inline float whole(float value) {
  constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: what is added to it has no room for fractions
  return (value + SHIFT) - SHIFT;
}

// NaN becomes `least`.
inline float within(float value, float least, float most) {
  value = value > least ? value : least;
  return value < most ? value : most;
}

// COLUMN_ROWS numbers of a row of a matrix; behind the last one it is `fill`.
template <class T>
inline void take(const T* from, int64_t some, float fill, float* to) {
  for (int64_t r = 0; r < some; r++) to[r] = (float)from[r];
  for (int64_t r = some; r < COLUMN_ROWS; r++) to[r] = fill;
}

// The levels next to positions and their codes, all [COLUMN_ROWS].
inline void nearest(const Columns& c, const float* position, float* level, int16_t* code) {
  const float lowest = (float)c.lowest, highest = (float)c.highest;
  if (!c.code_at) {
    for (int64_t r = 0; r < COLUMN_ROWS; r++) {
      level[r] = whole(within(position[r], lowest, highest));
      code[r] = (int16_t)(int32_t)(level[r] - lowest);
    }
    return;
  }
  int32_t place[COLUMN_ROWS];
  for (int64_t r = 0; r < COLUMN_ROWS; r++) {
    const float halves = within(2 * position[r], 2 * lowest, 2 * highest), near = whole(halves);
    place[r] = (int32_t)(near + (near < halves ? 1.0f : 0.0f) - 2 * lowest);
  }
  for (int64_t r = 0; r < COLUMN_ROWS; r++) level[r] = c.level_at[place[r]];
  for (int64_t r = 0; r < COLUMN_ROWS; r++) code[r] = (int16_t)c.code_at[place[r]];
}

// All columns of the rows from `first` on, COLUMN_ROWS at most; `state` is column_room().
void round_columns(const Columns& c, int64_t first, float* state) {
  const int64_t some = std::min(COLUMN_ROWS, c.rows - first);
  float step[COLUMN_ROWS], offset[COLUMN_ROWS], from[COLUMN_ROWS], kept[COLUMN_ROWS];
  float position[COLUMN_ROWS], level[COLUMN_ROWS], error[COLUMN_ROWS];
  int16_t code[COLUMN_ROWS];
  take(c.step + first, some, 1.0f, step);
  if (c.offset) take(c.offset + first, some, 0.0f, offset);
  else std::fill_n(offset, COLUMN_ROWS, 0.0f);
  std::fill_n(kept, COLUMN_ROWS, 1.0f);
  for (int64_t j = 0; j < c.count; j++)
    take(c.state + j * c.rows + first, some, 0.0f, state + j * COLUMN_ROWS);
  for (int64_t j = 0; j < c.count; j++) {
    const float* value = state + j * COLUMN_ROWS;
    const int64_t place = j * c.rows + first;
    if (c.start) take(c.start + place, some, 0.0f, from);
    else std::copy_n(value, COLUMN_ROWS, from);
    if (c.kept) take(c.kept + place, some, 1.0f, kept);
    for (int64_t r = 0; r < COLUMN_ROWS; r++) position[r] = (value[r] - offset[r]) / step[r];
    nearest(c, position, level, code);
    const float divisor = c.divisors[j];
    for (int64_t r = 0; r < COLUMN_ROWS; r++)
      error[r] = (from[r] - (level[r] * step[r] + offset[r]) * kept[r]) / divisor;
    std::copy_n(code, some, c.codes + place);
    std::copy_n(error, some, c.errors + place);
    for (int64_t k = j + 1; k < c.count; k++) {
      const float by = c.update[j * c.count + k];
      float* later = state + k * COLUMN_ROWS;
      for (int64_t r = 0; r < COLUMN_ROWS; r++) later[r] -= by * error[r];
    }
  }
}

}  // namespace

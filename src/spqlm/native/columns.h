// Rounding column after column, each with what earlier ones got wrong made up for.
#pragma once

#include <cstdint>

// What spqlm/numerics/in_order.py explains; mirrored by spqlm/native/structures.py. Columns lie
// together: matrices are [count, rows] but for `update`, which is [count, count]. Pointers may be
// null where it says so.
struct Columns {
  const float* state;
  const float* start;  // null: errors are those of what columns are when their turn comes
  const float* update;
  const float* divisors;  // [count]
  const float* step;      // [rows]
  const float* offset;    // [rows], or null
  const uint8_t* kept;    // 0 or 1, or null
  // By halves from the lowest level on: codes and levels of what is nearest; null where levels are
  // one apart.
  const int32_t* code_at;
  const float* level_at;
  int64_t count, rows;
  int64_t lowest, highest;  // levels
  int16_t* codes;
  float* errors;
};

// Rows that are worked on at a time, and the floats of room that a call for so many needs.
constexpr int64_t COLUMN_ROWS = 64;
static inline int64_t column_room(const Columns& columns) { return columns.count * COLUMN_ROWS; }

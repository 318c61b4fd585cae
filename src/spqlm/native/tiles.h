// Products of AMX's tiles; included below the target of the file that uses it. A tile holds 16 lines of
// 16 numbers of four bytes, or of pairs of bfloat16: left ones [16 rows, 16 pairs of columns], right
// ones [16 pairs of columns, 16 rows], sums [16 left rows, 16 right rows].
#pragma once

#include "transpose.h"

namespace {

constexpr int64_t TILE = 256;
// Rows on either side of four tiles of sums.
constexpr int64_t SQUARE = 2 * SIDE;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  TileShapes() {
    for (int t = 0; t < 8; t++) bytes[t] = 64, rows[t] = SIDE;
  }
};

// The tiles are this thread's while it lives.
struct Tiles {
  const TileShapes shapes;
  explicit Tiles(const TileShapes& these = {}) : shapes(these) { _tile_loadconfig(&shapes); }
  ~Tiles() { _tile_release(); }
};

// GCC does not know that tiles are loaded from memory: what they are to hold is written before this.
inline void written(const void* data) { __asm__ volatile("" : : "r"(data) : "memory"); }

// Tiles of SQUARE rows: those of the second half stand `stride` numbers behind those of the first.
struct Halves {
  const uint32_t* first;
  int64_t stride;
};

// sums [SQUARE, SQUARE], in lines of `line` numbers, (+)= left rows times right ones.
inline void square(Halves left, Halves right, int64_t steps, bool add, float* sums, int64_t line) {
  float* const below = sums + SIDE * line;
  written(right.first);
  if (add) {
    _tile_loadd(0, sums, 4 * line);
    _tile_loadd(1, sums + SIDE, 4 * line);
    _tile_loadd(2, below, 4 * line);
    _tile_loadd(3, below + SIDE, 4 * line);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; step++) {
    _tile_loadd(4, left.first + step * TILE, 64);
    _tile_loadd(6, right.first + step * TILE, 64);
    _tile_loadd(5, left.first + left.stride + step * TILE, 64);
    _tile_loadd(7, right.first + right.stride + step * TILE, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 4 * line);
  _tile_stored(1, sums + SIDE, 4 * line);
  _tile_stored(2, below, 4 * line);
  _tile_stored(3, below + SIDE, 4 * line);
}

}  // namespace

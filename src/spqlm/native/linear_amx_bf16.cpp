// Many inputs in bfloat16 times a matrix of any format, for processors with AMX: its tiles hold 16 rows
// of 32 numbers, and one instruction multiplies two of them. Weights become bfloat16 a panel of
// outputs at a time, in a cache, and never in memory.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "many.h"
#include "parallel.h"
#include "target.h"

TARGET_BEGIN(AVX512 ",avx512bf16,amx-tile,amx-bf16")

#include "weight_tiles.h"

namespace {

// Tiles along the columns whose products are summed before the sums go to memory: two rows of them of
// inputs and two of weights fit in the first cache.
constexpr int64_t STEPS = 9;
// A panel of weights fits in the second cache: so many outputs, or all columns of fewer.
constexpr int64_t PANEL_BYTES = 1 << 20, OUTPUTS = 128;

// A group of 16 inputs [count, columns] as tiles [columns / 32]; zeros beyond the last input.
void arrange(const uint16_t* x, int64_t count, int64_t columns, int64_t group, uint32_t* to) {
  for (int64_t r = 0; r < SIDE; r++) {
    const int64_t row = group * SIDE + r;
    const char* from = (const char*)(x + row * columns);
    for (int64_t step = 0; step < columns / 32; step++)
      _mm512_storeu_si512(to + step * TILE + r * SIDE,
                          row < count ? _mm512_loadu_si512(from + step * 64) : _mm512_setzero_si512());
  }
}

int64_t up(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

// How a matrix is cut into panels.
struct Cut {
  int64_t outputs, columns;

  // All threads get as many panels; more outputs in each read the inputs fewer times.
  Cut(const Matrix& w, int32_t threads) : columns(w.columns) {
    int64_t most = OUTPUTS;
    if (!divisible(w))
      most = std::max(SQUARE, std::min(most, PANEL_BYTES / (2 * w.columns) / SQUARE * SQUARE));
    const int64_t panels = up(up(w.rows, most), threads) * threads;
    outputs = up(up(w.rows, panels), SQUARE) * SQUARE;
    if (divisible(w)) columns = std::min(columns, PANEL_BYTES / (2 * outputs) / 128 * 128);
  }
};

// y [count, rows], the columns from `begin` on.
struct Panel {
  const Matrix& w;
  int64_t begin, wide;
  alignas(64) float scale[OUTPUTS] = {}, bias[OUTPUTS] = {};

  Panel(const Matrix& matrix, int64_t first, int64_t outputs)
      : w(matrix), begin(first), wide(std::min(outputs, matrix.rows - first)) {
    for (int64_t r = 0; r < wide; r++) {
      scale[r] = row_scale(w, begin + r);
      if (w.bias) bias[r] = read_float(w.bias, w.bias_type, begin + r);
    }
  }

  void multiply(const uint32_t* inputs, int64_t count, int64_t columns, uint16_t* y) const {
    const bool parts = columns < w.columns;
    // A last group of 16 outputs that is not there holds anything: its sums are not read.
    uint32_t* weights = (uint32_t*)room_for(Purpose::PANEL, OUTPUTS * columns * sizeof(uint16_t));
    float* sums = (float*)room_for(
        Purpose::PANEL_SUMS, (parts ? up(count, SQUARE) : 1) * SQUARE * OUTPUTS * sizeof(float));
    const Tiles tiles;
    for (int64_t k = 0; k < w.columns; k += columns) {
      const int64_t end = std::min(k + columns, w.columns), stride = (end - k) / 32 * TILE;
      for (int64_t r = 0; r < wide; r += SIDE)
        pack_tiles({w, begin + r, std::min(SIDE, wide - r), k, end}, weights + r / SIDE * stride);
      for (int64_t i = 0; i < count; i += SQUARE) {
        float* some = sums + (parts ? i * OUTPUTS : 0);
        add(inputs + i / SIDE * (w.columns / 32 * TILE) + k / 32 * TILE, weights, stride, k > 0, some);
        for (int64_t m = 0; end == w.columns && m < std::min(SQUARE, count - i); m++)
          write(some + m * OUTPUTS, y + (i + m) * w.rows + begin);
      }
    }
  }

  // sums [SQUARE, OUTPUTS] (+)= SQUARE inputs times the weights.
  void add(const uint32_t* inputs, const uint32_t* weights, int64_t stride, bool more,
           float* sums) const {
    const int64_t steps = stride / TILE, some = up(steps, up(steps, STEPS));
    for (int64_t step = 0; step < steps; step += some)
      for (int64_t r = 0; r < wide; r += SQUARE)
        square({inputs + step * TILE, w.columns / 32 * TILE},
               {weights + r / SIDE * stride + step * TILE, stride}, std::min(some, steps - step),
               more || step > 0, sums + r, OUTPUTS);
  }

  void write(const float* sums, uint16_t* y) const {
    for (int64_t r = 0; r < wide; r += SQUARE) {
      __m512 found[2];
      for (int64_t half = 0; half < 2; half++) {
        const int64_t k = r + half * SIDE;
        found[half] = _mm512_fmadd_ps(_mm512_load_ps(sums + k), _mm512_load_ps(scale + k),
                                      _mm512_load_ps(bias + k));
      }
      _mm512_mask_storeu_epi16(y + r, mask_of<__mmask32>(wide - r), (__m512i)_mm512_cvtne2ps_pbh(found[1], found[0]));
    }
  }
};

}  // namespace

// Linux gives a process the tiles' registers when it asks for them, once for all threads.
bool amx_runs_here() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool there = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);
  constexpr long ask = 0x1023, tiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return there && syscall(SYS_arch_prctl, ask, tiles) == 0;
}

void linear_amx_bf16(const Matrix& w, const uint16_t* x, int64_t count, uint16_t* y, uint32_t* room,
                     int32_t threads) {
  in_parallel(threads, 2 * up(count, SQUARE), count * w.columns, [&](int64_t group) {
    arrange(x, count, w.columns, group, room + group * (w.columns / 32 * TILE));
  });
  const Cut cut(w, threads);
  in_parallel(threads, up(w.rows, cut.outputs), count * w.rows * w.columns, [&](int64_t panel) {
    Panel(w, panel * cut.outputs, cut.outputs).multiply(room, count, cut.columns, y);
  });
}

TARGET_END
#endif

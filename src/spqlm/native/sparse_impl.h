// Sparse products and their rows as numbers, written once over what differs between instruction
// sets.
#pragma once

#include "sparse.h"

namespace {

// Groups of a row that are looked at in one go, at most.
constexpr int64_t CHUNK = 1024;
// Scales that are converted in one go, at least. Many would have to wait for memory together.
constexpr int64_t COVERED = 128;
// Places that may be written beyond the last.
constexpr int64_t OVERRUN = 64;
// The unit of places: the largest that addresses can be scaled by.
constexpr int64_t UNIT = 8;
// Groups of a chunk are a multiple of this: what masks are read in.
constexpr int64_t WORD = 32;
// Places are 16 bits: one word of the widest groups has them, for as many inputs as there may be.
constexpr int64_t PLACES = 1 << 16, WIDEST_GROUP = 64;
static_assert(MOST_INPUTS * WIDEST_GROUP * sizeof(float) / UNIT * WORD <= PLACES);

// Some kept groups of one row.
struct Kept {
  const char* codes;
  const float* scale;
  const float* zero;      // or null
  const uint16_t* place;  // of each group in what belongs to the chunk, in units
  int64_t count;
};

// Room for the places of a chunk, and for scales and zeros of kept groups begin <= k < end, which
// serve as many rows as they cover.
struct Room {
  int64_t begin = 0;
  int64_t end = 0;
  uint16_t place[CHUNK + OVERRUN];
  float scale[CHUNK];
  float zero[CHUNK];

  template <class S>
  void cover(const Matrix& w, int64_t first, int64_t count, int64_t limit) {
    if (first + count <= end) return;
    begin = first;
    const int64_t some = count > COVERED ? count : COVERED;
    end = limit - first < some ? limit : first + some;
    S::floats(w.scale, w.scale_type, begin, end - begin, scale);
    prefetch(w.scale, w.scale_type);
    if (!w.zero) return;
    S::floats(w.zero, w.scale_type, begin, end - begin, zero);
    prefetch(w.zero, w.scale_type);
  }

  // What `cover` reads next time, or as much of it as it reads at least.
  void prefetch(const void* numbers, FloatType type) const {
    const int64_t bytes = element_size(type);
    const char* next = (const char*)numbers + end * bytes;
    for (int64_t i = 0; i < COVERED * bytes; i += 64) __builtin_prefetch(next + i);
  }
};

// The bits of a mask from `base`, a multiple of 8, on: as many as there are and Word has.
template <class Word>
inline Word bits_from(const uint8_t* mask, int64_t bits, int64_t base) {
  Word word = 0;
  if (bits - base > 8 * (int64_t)sizeof word - 8) {
    memcpy(&word, mask + base / 8, sizeof word);
  } else {
    for (int64_t bit = base; bit < bits; bit += 8) word |= (Word)mask[bit / 8] << (bit - base);
  }
  return word;
}

// `step` times the numbers of the bits that are set, lowest first; returns how many.
inline int64_t set_bits(const uint8_t* mask, int64_t bits, int64_t step, uint16_t* place) {
  uint16_t* next = place;
  for (int64_t base = 0; base < bits; base += 64) {
    for (uint64_t word = bits_from<uint64_t>(mask, bits, base); word; word &= word - 1) *next++ = (uint16_t)((base + __builtin_ctzll(word)) * step);
  }
  return next - place;
}

// Calls use(kept, base) for the kept groups first <= k < last of a row, in chunks of the row that
// begin at group `base`, from which their places count. What they are the places in has `bytes` for
// each group of the row. Kept groups up to `limit` are going to follow.
template <class S, class Use>
void for_kept(const Matrix& w, int64_t row, int64_t first, int64_t last, int64_t limit,
              int64_t bytes, Room& room, const Use& use) {
  const int64_t step = bytes / UNIT, most = PLACES / step / WORD * WORD;
  const int64_t chunk = most < CHUNK ? most : CHUNK;
  const uint8_t* mask = w.mask + row * ((w.groups + 7) / 8);
  int64_t before = first - kept_before(w, row);
  for (int64_t base = 0; base < w.groups && first < last; base += chunk) {
    const int64_t bits = w.groups - base < chunk ? w.groups - base : chunk;
    const int64_t here = S::set_bits(mask + base / 8, bits, step, room.place);
    const int64_t skip = before < here ? before : here;
    const int64_t count = here - skip < last - first ? here - skip : last - first;
    before -= skip;
    if (!count) continue;
    room.cover<S>(w, first, count, limit);
    const int64_t here_on = first - room.begin;
    use(Kept{(const char*)w.weight + first * group_bytes(w), room.scale + here_on,
             w.zero ? room.zero + here_on : nullptr, room.place + skip, count},
        base);
    first += count;
  }
}

template <class S, int M>
inline void add_products(const Matrix& w, const Kept& kept, const float* x, int64_t count,
                         int64_t m, float* sums) {
  for (; m + M <= count; m += M) S::template tile<M>(w, kept, x + m * w.group_size, sums + m);
  if constexpr (M > 1) add_products<S, M / 2>(w, kept, x, count, m, sums);
}

// Kernels::sparse.
template <class S>
void sparse_product(const Matrix& w, const float* x, int64_t count, int64_t first, int64_t last,
                    float* y, int64_t y_stride, float* carried) {
  const bool reaches_end = last == kept_before(w, w.rows);
  const int64_t owned = row_from(w, first);
  Room room;
  const auto part = [&](int64_t row, int64_t from, int64_t to, float bias, float* out,
                        int64_t stride) {
    float sums[MOST_INPUTS];
    for (int64_t m = 0; m < count; m++) sums[m] = 0.0f;
    const int64_t bytes = count * w.group_size * sizeof *x;
    for_kept<S>(w, row, from, to, last, bytes, room, [&](const Kept& kept, int64_t base) {
      const auto* inputs = (const float*)((const char*)x + base * bytes);
      add_products<S, S::most>(w, kept, inputs, count, 0, sums);
    });
    for (int64_t m = 0; m < count; m++) out[m * stride] = sums[m] + bias;
  };
  const auto begin = [&](int64_t row) {
    const int64_t before = kept_before(w, row);
    return before < last ? before : last;
  };
  if (first < last && begin(owned) > first) part(owned - 1, first, begin(owned), 0.0f, carried, 1);
  for (int64_t row = owned; row < w.rows && (begin(row) < last || reaches_end); row++) {
    const float bias = w.bias ? read_float(w.bias, w.bias_type, row) : 0.0f;
    part(row, begin(row), begin(row + 1), bias, y + row, y_stride);
  }
}

// Codes in order, of a group from column `k` on.
template <class V, Format T>
inline typename V::F load_codes(const char* group, int64_t k) {
  static_assert(T == SPARSE4 || T == SPARSE8);
  if constexpr (T == SPARSE4) return V::load_int4(group + k / 2);
  else return V::load_int8(group + k);
}

template <class V, FloatType S>
inline typename V::F load_floats(const char* p) {
  static_assert(S == FLOAT32 || S == BFLOAT16 || S == FLOAT16);
  if constexpr (S == FLOAT32) return V::load((const float*)p);
  else if constexpr (S == BFLOAT16) return V::load_bfloat16(p);
  else return V::load_float16(p);
}

// Any sparse format times inputs in order. Groups are as wide as a vector or wider.
template <class V>
struct SparseFloats {
  static constexpr int most = V::tile / 2;

  static int64_t set_bits(const uint8_t* mask, int64_t bits, int64_t step, uint16_t* place) {
    return ::set_bits(mask, bits, step, place);
  }

  static void floats(const void* data, FloatType type, int64_t first, int64_t count, float* out) {
    switch (type) {
      case FLOAT32: return floats<FLOAT32>(data, first, count, out);
      case BFLOAT16: return floats<BFLOAT16>(data, first, count, out);
      case FLOAT16: return floats<FLOAT16>(data, first, count, out);
    }
    __builtin_trap();
  }

  template <FloatType S>
  static void floats(const void* data, int64_t first, int64_t count, float* out) {
    constexpr int64_t bytes = element_size(S);
    const char* p = (const char*)data + first * bytes;
    int64_t i = 0;
    for (; i + V::width <= count; i += V::width)
      V::template store<FLOAT32>((char*)(out + i), load_floats<V, S>(p + i * bytes));
    for (; i < count; i++) out[i] = read_float(p, S, i);
  }

  template <int M>
  static void tile(const Matrix& w, const Kept& kept, const float* x, float* sums) {
    switch (w.format) {
      case SPARSE8: return run<SPARSE8, M>(w, kept, x, sums);
      case SPARSE4: return run<SPARSE4, M>(w, kept, x, sums);
      case DENSE_FLOAT32:
      case DENSE_BFLOAT16:
      case DENSE_FLOAT16:
      case INT8:
      case GROUPED: break;  // keep all groups
    }
    __builtin_trap();
  }

  // Two sums for each input, of every other group: one would wait for itself.
  template <Format T, int M>
  static void run(const Matrix& w, const Kept& kept, const float* x, float* sums) {
    typename V::F acc[2][M];
    for (int u = 0; u < 2; u++)
      for (int m = 0; m < M; m++) acc[u][m] = V::zero();
    int64_t i = 0;
    for (; i + 2 <= kept.count; i += 2)
      for (int u = 0; u < 2; u++) group<T, M>(w, kept, i + u, x, acc[u]);
    if (i < kept.count) group<T, M>(w, kept, i, x, acc[0]);
    for (int m = 0; m < M; m++) sums[m] += V::sum(acc[0][m]) + V::sum(acc[1][m]);
  }

  template <Format T, int M>
  static void group(const Matrix& w, const Kept& kept, int64_t i, const float* x,
                    typename V::F* acc) {
    const int64_t size = w.group_size;
    const char* codes = kept.codes + i * group_bytes(T, size);
    const float* input = (const float*)((const char*)x + UNIT * (int64_t)kept.place[i]);
    const typename V::F scale = V::set(kept.scale[i]), zero = V::set(kept.zero ? kept.zero[i] : 0.0f);
    V::prefetch(codes + 2048);
    for (int64_t k = 0; k < size; k += V::width) {
      const typename V::F weight = V::fma(load_codes<V, T>(codes, k), scale, zero);
      for (int m = 0; m < M; m++)
        acc[m] = V::fma(weight, V::load(input + m * size + k), acc[m]);
    }
  }
};

template <class V, FloatType S, Format T>
void dequantize_sparse(const Matrix& w, int64_t row, char* out) {
  constexpr int64_t bytes = element_size(S);
  const int64_t size = w.group_size;
  memset(out, 0, w.columns * bytes);
  const auto place = [&](const Kept& kept, int64_t base) {
    for (int64_t i = 0; i < kept.count; i++) {
      char* to = out + base * size * bytes + UNIT * (int64_t)kept.place[i];
      const typename V::F scale = V::set(kept.scale[i]), zero = V::set(kept.zero ? kept.zero[i] : 0.0f);
      const char* codes = kept.codes + i * group_bytes(T, size);
      for (int64_t k = 0; k < size; k += V::width)
        V::template store<S>(to + k * bytes, V::fma(load_codes<V, T>(codes, k), scale, zero));
    }
  };
  Room room;
  const int64_t first = kept_before(w, row), last = kept_before(w, row + 1);
  for_kept<SparseFloats<V>>(w, row, first, last, last, size * bytes, room, place);
}

}  // namespace

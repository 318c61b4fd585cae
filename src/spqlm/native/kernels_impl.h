// The kernels, written once over a vector type V; included by one file for each instruction set.
#pragma once

#include "columns_impl.h"
#include "kernels.h"
#include "planes.h"
#include "sparse_impl.h"

namespace {

template <class V, int T>
struct Elements;

template <class V>
struct Elements<V, FLOAT32> {
  static constexpr int bytes = element_size(FLOAT32);
  static typename V::F load(const char* p) { return V::load((const float*)p); }
  static float one(const char* p) { return read_float(p, FLOAT32, 0); }
};

template <class V>
struct Elements<V, BFLOAT16> {
  static constexpr int bytes = element_size(BFLOAT16);
  static typename V::F load(const char* p) { return V::load_bfloat16(p); }
  static float one(const char* p) { return read_float(p, BFLOAT16, 0); }
};

template <class V>
struct Elements<V, FLOAT16> {
  static constexpr int bytes = element_size(FLOAT16);
  static typename V::F load(const char* p) { return V::load_float16(p); }
  static float one(const char* p) { return read_float(p, FLOAT16, 0); }
};

template <class V>
struct Elements<V, INT8> {
  static constexpr int bytes = 1;
  static typename V::F load(const char* p) { return V::load_int8(p); }
  static float one(const char* p) { return (float)*(const int8_t*)p; }
};

template <int R, int M>
inline void finish(const Matrix& w, int64_t row, float (&sum)[R][M], float* y, int64_t y_stride) {
  for (int r = 0; r < R; r++) {
    const float scale = row_scale(w, row + r);
    const float bias = w.bias ? read_float(w.bias, w.bias_type, row + r) : 0.0f;
    for (int m = 0; m < M; m++) y[m * y_stride + row + r] = sum[r][m] * scale + bias;
  }
}

template <class V, int R, int M>
inline void add_lanes(const typename V::F (&acc)[R][M], float (&sum)[R][M]) {
  for (int m = 0; m < M; m++) {
    if constexpr (R == 4) {
      float four[R];
      V::sums(acc[0][m], acc[1][m], acc[2][m], acc[3][m], four);
      for (int r = 0; r < R; r++) sum[r][m] = four[r];
    } else {
      for (int r = 0; r < R; r++) sum[r][m] = V::sum(acc[r][m]);
    }
  }
}

// R rows of a matrix whose elements stand one by one, times M inputs.
template <class V, int T, int R, int M>
struct Plain {
  static void run(const Matrix& w, const float* x, int64_t row, float* y, int64_t y_stride) {
    using E = Elements<V, T>;
    const int64_t columns = w.columns, stride = columns * E::bytes;
    const char* base = (const char*)w.weight + row * stride;
    typename V::F acc[R][M];
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) acc[r][m] = V::zero();
    int64_t k = 0;
    for (; k + V::width <= columns; k += V::width) {
      for (int r = 0; r < R; r++) {
        const char* p = base + r * stride + k * E::bytes;
        // The next rows, in the order of memory: another one costs half of the bandwidth.
        V::prefetch(base + R * stride + (k * R + r * V::width) * E::bytes);
        const typename V::F weight = E::load(p);
        for (int m = 0; m < M; m++)
          acc[r][m] = V::fma(weight, V::load(x + m * columns + k), acc[r][m]);
      }
    }
    float sum[R][M];
    add_lanes<V, R, M>(acc, sum);
    for (; k < columns; k++)
      for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++)
          sum[r][m] += E::one(base + r * stride + k * E::bytes) * x[m * columns + k];
    finish<R, M>(w, row, sum, y, y_stride);
  }
};

// The codes of a block of `high` rows as `expand_plainly` writes them, [high, BLOCK].
template <class V>
void expand(const Matrix& w, int64_t row, int64_t high, int64_t first, int8_t* to) {
  with_coding(w.coding, [&](auto coding) { V::template expand<coding>(w, row, high, first, to); });
}

// Where a column and the one behind it stand in a block; the first of them is even.
inline int64_t even_place(int64_t column) { return column / RUN * RUN + column % RUN / 2; }

// Runs of a row's columns that lie in one group and in one block: use(group, begin, end).
template <class Use>
inline void for_groups(int64_t first, int64_t last, int64_t size, const Use& use) {
  for (int64_t k = first, group = first / size, end; k < last; k = end, group++) {
    end = std::min(last, (group + 1) * size);
    use(group, k, end);
  }
}

// R rows of codes in groups, times M inputs.
template <class V, int R, int M>
struct Grouped {
  static void run(const Matrix& w, const float* x, int64_t row, float* y, int64_t y_stride) {
    const int64_t columns = w.columns, size = columns / w.groups, stride = row_bytes(w);
    // Narrow rows come round before memory has answered.
    const char* next = (const char*)w.weight + row * stride + std::max<int64_t>(R * stride, 2048);
    typename V::F acc[R][M];
    float sum[R][M], rest[R][M] = {};
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) acc[r][m] = V::zero();
    for (int64_t first = 0; first < columns; first += BLOCK) {
      const int64_t last = std::min(first + BLOCK, columns), bytes = BLOCK * bits_of(w.coding) / 8 * R;
      // The next rows, in the order of memory: another one costs half of the bandwidth.
      for (int64_t line = 0; line < bytes; line += 64) V::prefetch(next + line);
      next += bytes;
      alignas(64) int8_t codes[R][BLOCK];
      expand<V>(w, row, R, first, codes[0]);
      for_groups(first, last, size, [&](int64_t group, int64_t k, int64_t end) {
        typename V::F part[R][M];
        for (int r = 0; r < R; r++)
          for (int m = 0; m < M; m++) part[r][m] = V::zero();
        float scale[R];
        for (int r = 0; r < R; r++) scale[r] = read_float(w.scale, w.scale_type, (row + r) * w.groups + group);
        for (; k + 2 * V::width <= end && k % (2 * V::width) == 0; k += 2 * V::width) {
          typename V::F even[R], odd[R];
          for (int r = 0; r < R; r++) {
            const char* p = (const char*)codes[r] + even_place(k - first);
            even[r] = V::load_int8(p);
            odd[r] = V::load_int8(p + RUN / 2);
          }
          for (int m = 0; m < M; m++) {
            typename V::F x_even, x_odd;
            V::deinterleave(x + m * columns + k, x_even, x_odd);
            for (int r = 0; r < R; r++)
              part[r][m] = V::fma(odd[r], x_odd, V::fma(even[r], x_even, part[r][m]));
          }
        }
        for (int r = 0; r < R; r++)
          for (int m = 0; m < M; m++) acc[r][m] = V::fma(part[r][m], V::set(scale[r]), acc[r][m]);
        for (; k < end; k++)
          for (int r = 0; r < R; r++) {
            const float code = codes[r][even_place(k - first) + k % 2 * (RUN / 2)];
            for (int m = 0; m < M; m++) rest[r][m] += code * scale[r] * x[m * columns + k];
          }
      });
    }
    add_lanes<V, R, M>(acc, sum);
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) sum[r][m] += rest[r][m];
    finish<R, M>(w, row, sum, y, y_stride);
  }
};

template <class V>
struct Tiles {
  template <int R, int M>
  static void tile(const Matrix& w, const float* x, int64_t row, float* y, int64_t y_stride) {
    switch (w.format) {
      case DENSE_FLOAT32: return Plain<V, FLOAT32, R, M>::run(w, x, row, y, y_stride);
      case DENSE_BFLOAT16: return Plain<V, BFLOAT16, R, M>::run(w, x, row, y, y_stride);
      case DENSE_FLOAT16: return Plain<V, FLOAT16, R, M>::run(w, x, row, y, y_stride);
      case INT8: return Plain<V, INT8, R, M>::run(w, x, row, y, y_stride);
      case GROUPED: return Grouped<V, R, M>::run(w, x, row, y, y_stride);
      case SPARSE8:
      case SPARSE4: break;  // have a product of their own
    }
    __builtin_trap();
  }

  // `high` rows of the matrix times M inputs, as many at a time as there are registers for.
  template <int M>
  static void rows(const Matrix& w, const float* x, int64_t row, int64_t high, float* y,
                   int64_t y_stride) {
    constexpr int R = V::tile / M < 4 ? V::tile / M : 4;
    int64_t r = 0;
    for (; r + R <= high; r += R) tile<R, M>(w, x, row + r, y, y_stride);
    for (; r < high; r++) tile<1, M>(w, x, row + r, y, y_stride);
  }

  static void product(const Matrix& w, const float* x, int64_t count, int64_t first, int64_t last,
                      float* y, int64_t y_stride) {
    for (int64_t row = first; row < last; row += 4) {
      const int64_t high = last - row < 4 ? last - row : 4;
      int64_t m = 0;
      for (; m + 4 <= count; m += 4)
        rows<4>(w, x + m * w.columns, row, high, y + m * y_stride, y_stride);
      for (; m + 2 <= count; m += 2)
        rows<2>(w, x + m * w.columns, row, high, y + m * y_stride, y_stride);
      if (m < count) rows<1>(w, x + m * w.columns, row, high, y + m * y_stride, y_stride);
    }
  }
};

template <class V, int T, FloatType S>
void dequantize_plain(const Matrix& w, int64_t row, char* out) {
  using E = Elements<V, T>;
  const char* p = (const char*)w.weight + row * w.columns * E::bytes;
  const float scale = row_scale(w, row);
  const typename V::F scales = V::set(scale);
  int64_t k = 0;
  for (; k + V::width <= w.columns; k += V::width)
    V::template store<S>(out + k * Elements<V, S>::bytes,
                         V::mul(E::load(p + k * E::bytes), scales));
  for (; k < w.columns; k++) write_float(out, S, k, E::one(p + k * E::bytes) * scale);
}

template <class V, FloatType S>
void dequantize_grouped(const Matrix& w, int64_t row, char* out) {
  constexpr int bytes = Elements<V, S>::bytes;
  for (int64_t first = 0; first < w.columns; first += BLOCK) {
    alignas(64) int8_t codes[BLOCK];
    expand<V>(w, row, 1, first, codes);
    const int64_t last = std::min(first + BLOCK, w.columns);
    for_groups(first, last, w.columns / w.groups, [&](int64_t group, int64_t k, int64_t end) {
      const float scale = read_float(w.scale, w.scale_type, row * w.groups + group);
      const typename V::F scales = V::set(scale);
      for (; k + 2 * V::width <= end && k % (2 * V::width) == 0; k += 2 * V::width) {
        const char* p = (const char*)codes + even_place(k - first);
        typename V::F low, high;
        V::interleave(V::mul(V::load_int8(p), scales), V::mul(V::load_int8(p + RUN / 2), scales), low, high);
        V::template store<S>(out + k * bytes, low);
        V::template store<S>(out + (k + V::width) * bytes, high);
      }
      for (; k < end; k++)
        write_float(out, S, k, scale * codes[even_place(k - first) + k % 2 * (RUN / 2)]);
    });
  }
}

// Groups narrower than a vector go to the kernels of the next narrower set.
template <class V>
const Kernels* for_narrow_groups(const Matrix& w) {
  if constexpr (V::width > 8)
    if (is_sparse(w) && w.group_size < V::width) return &V::narrower();
  return nullptr;
}

template <class V>
void sparse(const Matrix& w, const float* x, int64_t count, int64_t first, int64_t last, float* y,
            int64_t y_stride, float* carried) {
  const Kernels* other = for_narrow_groups<V>(w);
  const auto run = other ? other->sparse : sparse_product<SparseFloats<V>>;
  run(w, x, count, first, last, y, y_stride, carried);
}

template <class V, FloatType S>
void dequantize_row(const Matrix& w, int64_t row, char* out) {
  switch (w.format) {
    case DENSE_FLOAT32: return dequantize_plain<V, FLOAT32, S>(w, row, out);
    case DENSE_BFLOAT16: return dequantize_plain<V, BFLOAT16, S>(w, row, out);
    case DENSE_FLOAT16: return dequantize_plain<V, FLOAT16, S>(w, row, out);
    case INT8: return dequantize_plain<V, INT8, S>(w, row, out);
    case GROUPED: return dequantize_grouped<V, S>(w, row, out);
    case SPARSE8: return dequantize_sparse<V, S, SPARSE8>(w, row, out);
    case SPARSE4: return dequantize_sparse<V, S, SPARSE4>(w, row, out);
  }
  __builtin_trap();
}

template <class V, FloatType S>
void dequantize_rows(const Matrix& w, int64_t first, int64_t last, char* out) {
  const int64_t stride = w.columns * element_size(S);
  for (int64_t row = first; row < last; row++) dequantize_row<V, S>(w, row, out + (row - first) * stride);
}

template <class V>
void dequantize(const Matrix& w, int64_t first, int64_t last, void* out, FloatType type) {
  const Kernels* other = for_narrow_groups<V>(w);
  if (other) return other->dequantize(w, first, last, out, type);
  switch (type) {
    case FLOAT32: return dequantize_rows<V, FLOAT32>(w, first, last, (char*)out);
    case BFLOAT16: return dequantize_rows<V, BFLOAT16>(w, first, last, (char*)out);
    case FLOAT16: return dequantize_rows<V, FLOAT16>(w, first, last, (char*)out);
  }
  __builtin_trap();
}

// e^x within 2 ulp for |x| < 87, and e^±87 beyond. Whole numbers decide, not floats: compilers would
// make branches of those, and no vector code.
inline float exponential(float x) {
  const uint32_t sign = bits_from_float(x) & 0x80000000u, size = bits_from_float(x) ^ sign;
  const uint32_t largest = 0x42ae0000u;  // 87
  const float held = float_from_bits((size < largest ? size : largest) | sign);
  const int32_t n = (int32_t)(held * 1.44269504f + float_from_bits(0x3f000000u | sign));
  const float r = (held - (float)n * 0.693359375f) + (float)n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float found = (p * r * r + r + 1.0f) * float_from_bits((uint32_t)(n + 127) << 23);
  const uint32_t nan = size > 0x7f800000u ? ~0u : 0u;
  return float_from_bits(bits_from_float(found) | nan);
}

inline void gated(float* gate, const float* up, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

inline void normalize(const float* x, const float* weight, float epsilon, int64_t size,
                      float* out) {
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < size; i++) squares += x[i] * x[i];
  const float factor = 1.0f / __builtin_sqrtf(squares / (float)size + epsilon);
#pragma omp simd
  for (int64_t i = 0; i < size; i++) out[i] = x[i] * factor * weight[i];
}

inline void softmax(float* scores, int64_t length) {
  float largest = scores[0];
#pragma omp simd reduction(max : largest)
  for (int64_t t = 1; t < length; t++) largest = scores[t] > largest ? scores[t] : largest;
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t t = 0; t < length; t++) {
    scores[t] = exponential(scores[t] - largest);
    total += scores[t];
  }
#pragma omp simd
  for (int64_t t = 0; t < length; t++) scores[t] /= total;
}

// Values of one head, [length, width], and the weights of M queries on them, [M, length].
struct Weighted {
  const float* scores;
  const char* values;
  int64_t length, width;
};

// out [M, width] = scores times values, N vectors of columns at a time, from column `k` as far as such go.
template <class V, int T, int M, int N>
int64_t add_values(const Weighted& w, int64_t k, float* out) {
  using E = Elements<V, T>;
  for (; k + N * V::width <= w.width; k += N * V::width) {
    typename V::F acc[M][N];
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) acc[m][n] = V::zero();
    for (int64_t t = 0; t < w.length; t++) {
      const char* p = w.values + (t * w.width + k) * E::bytes;
      typename V::F values[N];
      for (int n = 0; n < N; n++) values[n] = E::load(p + n * V::width * E::bytes);
      for (int m = 0; m < M; m++) {
        const typename V::F score = V::set(w.scores[m * w.length + t]);
        for (int n = 0; n < N; n++) acc[m][n] = V::fma(values[n], score, acc[m][n]);
      }
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++)
        V::template store<FLOAT32>((char*)(out + m * w.width + k + n * V::width), acc[m][n]);
  }
  return k;
}

// As many columns at a time as there are registers for sums.
template <class V, int T, int M>
void weighted_sum(const Weighted& w, float* out) {
  using E = Elements<V, T>;
  int64_t k = add_values<V, T, M, (V::tile / M < 4 ? V::tile / M : 4)>(w, 0, out);
  k = add_values<V, T, M, 1>(w, k, out);
  for (; k < w.width; k++)
    for (int m = 0; m < M; m++) {
      float sum = 0.0f;
      for (int64_t t = 0; t < w.length; t++)
        sum += w.scores[m * w.length + t] * E::one(w.values + (t * w.width + k) * E::bytes);
      out[m * w.width + k] = sum;
    }
}

template <class V, int T>
void weighted_sums(Weighted w, int64_t count, float* out) {
  const auto next = [&](int64_t some) {
    w.scores += some * w.length;
    out += some * w.width;
  };
  int64_t m = 0;
  for (; m + 4 <= count; m += 4, next(4)) weighted_sum<V, T, 4>(w, out);
  for (; m + 2 <= count; m += 2, next(2)) weighted_sum<V, T, 2>(w, out);
  if (m < count) weighted_sum<V, T, 1>(w, out);
}

template <class V>
void attend(const float* queries, int64_t count, const void* keys, const void* values, FloatType type,
            int64_t length, int64_t width, float* scores, float* out) {
  Tiles<V>::product(dense(keys, type, length, width), queries, count, 0, length, scores, length);
  for (int64_t m = 0; m < count; m++) softmax(scores + m * length, length);
  const Weighted weighted = {scores, (const char*)values, length, width};
  switch (type) {
    case FLOAT32: return weighted_sums<V, FLOAT32>(weighted, count, out);
    case BFLOAT16: return weighted_sums<V, BFLOAT16>(weighted, count, out);
    case FLOAT16: return weighted_sums<V, FLOAT16>(weighted, count, out);
  }
  __builtin_trap();
}

template <class V>
constexpr Kernels make_kernels() {
  return {Tiles<V>::product, sparse<V>, dequantize<V>, attend<V>, gated, normalize, round_columns};
}

}  // namespace

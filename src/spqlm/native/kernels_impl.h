// The kernels, written once over a vector type V; included by one file for each instruction set.
#pragma once

#include "kernels.h"
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

inline float one_int4(const Matrix& w, int64_t row, int64_t column) {
  const uint8_t byte = ((const uint8_t*)w.weight)[(row * w.columns + column) / 2];
  const int code = (column % 2 ? byte >> 4 : byte & 15) - 8;
  const int64_t group = column / (w.columns / w.groups);
  return (float)code * read_float(w.scale, w.scale_type, row * w.groups + group);
}

// R rows of packed 4-bit codes, times M inputs.
template <class V, int R, int M>
struct Packed {
  static void run(const Matrix& w, const float* x, int64_t row, float* y, int64_t y_stride) {
    const int64_t columns = w.columns, size = columns / w.groups, stride = columns / 2;
    const char* base = (const char*)w.weight + row * stride;
    float sum[R][M];
    if (size % (2 * V::width)) {
      for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) {
          sum[r][m] = 0.0f;
          for (int64_t k = 0; k < columns; k++)
            sum[r][m] += one_int4(w, row + r, k) * x[m * columns + k];
        }
      return finish<R, M>(w, row, sum, y, y_stride);
    }
    typename V::F acc[R][M];
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) acc[r][m] = V::zero();
    for (int64_t group = 0; group < w.groups; group++) {
      typename V::Codes codes[R];
      for (int r = 0; r < R; r++)
        codes[r] = V::codes(read_float(w.scale, w.scale_type, (row + r) * w.groups + group));
      for (int64_t k = group * size; k < (group + 1) * size; k += 2 * V::width) {
        typename V::F even[R], odd[R];
        for (int r = 0; r < R; r++) {
          const char* p = base + r * stride + k / 2;
          V::prefetch(base + R * stride + k / 2 * R + r * V::width);
          V::unpack(codes[r], p, even[r], odd[r]);
        }
        for (int m = 0; m < M; m++) {
          typename V::F x_even, x_odd;
          V::deinterleave(x + m * columns + k, x_even, x_odd);
          for (int r = 0; r < R; r++)
            acc[r][m] = V::fma(odd[r], x_odd, V::fma(even[r], x_even, acc[r][m]));
        }
      }
    }
    add_lanes<V, R, M>(acc, sum);
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
      case INT4: return Packed<V, R, M>::run(w, x, row, y, y_stride);
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
void dequantize_packed(const Matrix& w, int64_t row, char* out) {
  const int64_t size = w.columns / w.groups;
  if (size % (2 * V::width)) {
    for (int64_t k = 0; k < w.columns; k++) write_float(out, S, k, one_int4(w, row, k));
    return;
  }
  const char* p = (const char*)w.weight + row * w.columns / 2;
  constexpr int bytes = Elements<V, S>::bytes;
  for (int64_t group = 0; group < w.groups; group++) {
    const auto codes = V::codes(read_float(w.scale, w.scale_type, row * w.groups + group));
    for (int64_t k = group * size; k < (group + 1) * size; k += 2 * V::width) {
      typename V::F even, odd, low, high;
      V::unpack(codes, p + k / 2, even, odd);
      V::interleave(even, odd, low, high);
      V::template store<S>(out + k * bytes, low);
      V::template store<S>(out + (k + V::width) * bytes, high);
    }
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
    case INT4: return dequantize_packed<V, S>(w, row, out);
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
  return {Tiles<V>::product, sparse<V>, dequantize<V>, attend<V>, gated, normalize};
}

}  // namespace

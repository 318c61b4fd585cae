// Kernels for any processor.
#include <algorithm>
#include <initializer_list>

#include "kernels_impl.h"

namespace {

struct Portable {
  struct F {
    float at[8];
  };
  static constexpr int width = 8;
  static constexpr int tile = 4;

  template <class Function>
  static F each(Function function) {
    F result;
    for (int i = 0; i < width; i++) result.at[i] = function(i);
    return result;
  }

  static F zero() { return set(0.0f); }
  static F set(float value) {
    return each([=](int) { return value; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.at[i] * b.at[i]; });
  }
  static F fma(F a, F b, F c) {
    return each([&](int i) { return a.at[i] * b.at[i] + c.at[i]; });
  }
  static float sum(F a) {
    float total = 0.0f;
    for (int i = 0; i < width; i++) total += a.at[i];
    return total;
  }
  static void sums(F a, F b, F c, F d, float* out) {
    for (F each : {a, b, c, d}) *out++ = sum(each);
  }
  static void prefetch(const char*) {}

  static F load(const float* p) {
    return each([=](int i) { return read_float(p, FLOAT32, i); });
  }
  static F load_int8(const char* p) {
    return each([=](int i) { return (float)((const int8_t*)p)[i]; });
  }
  static F load_bfloat16(const char* p) {
    return each([=](int i) { return read_float(p, BFLOAT16, i); });
  }
  static F load_float16(const char* p) {
    return each([=](int i) { return read_float(p, FLOAT16, i); });
  }

  template <int Coding>
  static void expand(const Matrix& w, int64_t row, int64_t high, int64_t first, int8_t* to) {
    const char* p = (const char*)w.weight + row * row_bytes(w);
    for (int64_t r = 0; r < high; r++, p += row_bytes(w), to += BLOCK)
      expand_plainly<Coding>({p, w.columns, first}, to);
  }
  static F load_int4(const char* p) {
    return each([=](int i) { return (float)((((const uint8_t*)p)[i / 2] >> i % 2 * 4) % 16 - 8); });
  }
  static void deinterleave(const float* p, F& even, F& odd) {
    even = each([=](int i) { return p[2 * i]; });
    odd = each([=](int i) { return p[2 * i + 1]; });
  }
  static void interleave(F even, F odd, F& low, F& high) {
    low = each([&](int i) { return i % 2 ? odd.at[i / 2] : even.at[i / 2]; });
    high = each([&](int i) { return i % 2 ? odd.at[4 + i / 2] : even.at[4 + i / 2]; });
  }

  template <FloatType S>
  static void store(char* p, F a) {
    for (int i = 0; i < width; i++) write_float(p, S, i, a.at[i]);
  }
};

}  // namespace

const Kernels kernels_portable = make_kernels<Portable>();

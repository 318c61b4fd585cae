// Attention of a prompt.
#pragma once

#include <cstdint>

// Vectors of one position: where the first one is, and how many numbers lie between those of two
// sequences, heads and positions. The numbers of a vector stand one by one.
struct States {
  const uint16_t* first;
  int64_t sequence, head, position;
};

// Mirrored by spqlm/native/structures.py.
struct Attention {
  States queries, keys, values;
  // [sequences]: the first position that is seen; those before are padding.
  const int32_t* begins;
  // [sequences, count, query_heads, width].
  uint16_t* out;
  // [sequences, query_heads, count], if not null: binary logarithms of what weights were divided by.
  float* log_sums;
  int64_t sequences, query_heads, key_heads;
  // Queries belong to the last `count` of `length` positions, and see none behind their own.
  int64_t count, length, width;
  float scale;
};

// The width of a head is a multiple of this, and at most that.
constexpr int64_t HEAD_STEP = 32, HEAD_MOST = 256;

// out = softmax(scale queries keys^T) values, in bfloat16, summed in float32; zero where a query sees
// nothing. For processors with AVX-512 BF16.
void attention_avx512_bf16(const Attention& attention, int32_t threads);

// What the gradient of attention is made of, and where it goes.
// Mirrored by spqlm/native/structures.py.
struct AttentionGradient {
  // As it was, `out` and `log_sums` included.
  Attention attention;
  // At `out`, laid out as that.
  const uint16_t* given;
  // [sequences, query_heads, count, width].
  uint16_t* queries;
  // [sequences, query_heads, length, width]: to be summed over heads that share keys.
  float *keys, *values;
};

// The gradient of `attention_avx512_bf16`, in bfloat16, summed in float32. Weights are computed again.
void attention_gradient_avx512_bf16(const AttentionGradient& gradient, int32_t threads);

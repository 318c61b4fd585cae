// A whole decoder of Llama's layout: where its weights and its cache are. Mirrored by
// spqlm/native/structures.py.
#pragma once

#include "matrix.h"

// outer x, or outer (inner x) where there is an inner one.
struct Linear {
  Matrix outer;
  Matrix inner;  // rows = 0: there is none
};

struct Layer {
  Linear query, key, value, output, gate, up, down;
  const float* attention_norm;  // [hidden]
  const float* mlp_norm;
  const float* query_norm;  // [head_width] or null
  const float* key_norm;
  void* keys;  // the cache, [count, key_heads, capacity, head_width] of the model's type
  void* values;
  int64_t query_heads;
  int64_t key_heads;
  int64_t window;  // positions that a token sees, itself included; 0: all
};

struct Decoder {
  const Layer* layers;
  const float* norm;  // [hidden]
  Matrix embedding;   // [vocabulary, hidden]
  Linear head;
  int64_t layer_count;
  int64_t hidden;
  int64_t head_width;
  int64_t capacity;
  const float* cosine;  // of the rotary embedding, [angles, head_width]
  const float* sine;
  float epsilon;
  float attention_scale;
  FloatType type;  // of the cache and the logits
  int32_t count;  // sequences, at most MOST_INPUTS
};

// What is told about a sequence for one step.
struct Sequence {
  int64_t token;
  int64_t angle;  // row of the tables of the rotary embedding
  int64_t first;  // position in the cache from which on it is seen; those before are padding
};

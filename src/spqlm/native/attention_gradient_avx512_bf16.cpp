// The gradient of attention of a prompt, for processors with AVX-512 BF16: blocks of queries, and for each
// the blocks of keys that it sees (FlashAttention-2, arXiv 2307.08691, algorithm 2, with the loops the other
// way round, so that a task has a head of its own). With P the weights, dO the gradient at what came out,
// and D its product with what came out, query by query,
//   dV = P^T dO,   dS = scale P (dO V^T - D),   dQ = dS K,   dK = dS^T Q.
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>

#include "attention.h"
#include "parallel.h"
#include "target.h"

TARGET_BEGIN(AVX512 ",avx512bf16")

#include "attention_avx512.h"

namespace {

// Rows of a tile: 4 x 4 vectors of sums leave registers for what they multiply.
constexpr int64_t HIGH = 4;

using Tile = __m512[HIGH][VECTORS];

// sums = rows packed, where row r is `from + r * stride` and has `pairs` pairs of numbers, and `packed` is
// [pairs, packed_width].
template <int V>
inline void multiply(const uint16_t* const (&from)[HIGH], int64_t pairs, const uint32_t* packed,
                     int64_t packed_width, __m512 (&sums)[HIGH][V]) {
  for (int64_t pair = 0; pair < pairs; pair++) {
    __m512bh held[V];
    for (int64_t v = 0; v < V; v++)
      held[v] = (__m512bh)_mm512_loadu_si512(packed + pair * packed_width + 16 * v);
    for (int64_t r = 0; r < HIGH; r++) {
      const __m512bh both = pair_of(from[r], pair);
      for (int64_t v = 0; v < V; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], both, held[v]);
    }
  }
}

// V vectors of each of HIGH rows: to += rows packed, for rows of WIDE numbers, `there` of which exist.
template <int V>
void add_vectors(const uint16_t* rows, const uint32_t* packed, int64_t width, int64_t there, float* to) {
  const uint16_t* from[HIGH];
  __m512 sums[HIGH][V];
  for (int64_t r = 0; r < HIGH; r++) {
    from[r] = rows + r * WIDE;
    for (int64_t v = 0; v < V; v++)
      sums[r][v] = r < there ? _mm512_loadu_ps(to + r * width + 16 * v) : _mm512_setzero_ps();
  }
  multiply<V>(from, WIDE / 2, packed, width, sums);
  for (int64_t r = 0; r < std::min(HIGH, there); r++)
    for (int64_t v = 0; v < V; v++) _mm512_storeu_ps(to + r * width + 16 * v, sums[r][v]);
}

// to [high, width] += rows [WIDE, WIDE] packed [WIDE / 2, width].
void add_product(const uint16_t* rows, const uint32_t* packed, int64_t width, int64_t high, float* to) {
  for (int64_t row = 0; row < high; row += HIGH, rows += HIGH * WIDE, to += HIGH * width) {
    int64_t column = 0;
    for (; column + 64 <= width; column += 64)
      add_vectors<4>(rows, packed + column, width, high - row, to + column);
    if (column < width) add_vectors<2>(rows, packed + column, width, high - row, to + column);
  }
}

float dot(const uint16_t* a, const uint16_t* b, int64_t width) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < width; k += 32)
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a + k), (__m512bh)_mm512_loadu_si512(b + k));
  return _mm512_reduce_add_ps(sum);
}

// One query head of one sequence, with the thread's memory.
class Head {
 public:
  Head(const AttentionGradient& gradient, int64_t sequence, int64_t head)
      : g(gradient), a(gradient.attention), sequence(sequence), head(head) {
    const int64_t share = a.query_heads / a.key_heads, packed = WIDE * a.width / 2;
    const auto first = [&](const States& s, int64_t of) { return s.first + sequence * s.sequence + of * s.head; };
    query = first(a.queries, head), key = first(a.keys, head / share), value = first(a.values, head / share);
    queries_across = (uint32_t*)room_for(Purpose::PANEL, (5 * packed + 3 * WIDE * WIDE / 2) * sizeof(uint32_t));
    given_across = queries_across + packed, queries_along = given_across + packed;
    given_along = queries_along + packed, keys_along = given_along + packed;
    weights = (uint16_t*)(keys_along + packed);
    slopes = weights + WIDE * WIDE, slopes_by_query = slopes + WIDE * WIDE;
    sums = (float*)room_for(Purpose::PANEL_SUMS, WIDE * (a.width + 2) * sizeof(float));
    products = sums + WIDE * a.width, log_sums = products + WIDE;
  }

  void run() {
    const int64_t place = (sequence * a.query_heads + head) * a.length * a.width;
    float *keys = g.keys + place, *values = g.values + place;
    std::fill(keys, keys + a.length * a.width, 0.0f);
    std::fill(values, values + a.length * a.width, 0.0f);
    for (int64_t position = 0; position < a.count; position += WIDE) {
      high = std::min(WIDE, a.count - position);
      start(position);
      const int64_t seen = a.length - a.count + position + high;
      const int64_t begin = std::max<int64_t>(0, a.begins[sequence]);
      for (int64_t at = begin / WIDE * WIDE; at < seen; at += WIDE) {
        const int64_t there = std::min(WIDE, a.length - at);
        pack_along(key + at * a.keys.position, a.keys.position, there, a.width, keys_along);
        for (int64_t row = 0; row < WIDE; row += HIGH) weigh(position, at, row);
        turn();
        add_product(weights, given_along, a.width, there, values + at * a.width);
        add_product(slopes, queries_along, a.width, there, keys + at * a.width);
        add_product(slopes_by_query, keys_along, a.width, high, sums);
      }
      finish(position);
    }
  }

 private:
  // Where the vectors of `out` and `given` of the queries from a position on begin.
  int64_t outside(int64_t position) const {
    return ((sequence * a.count + position) * a.query_heads + head) * a.width;
  }

  // What is needed of a block of queries, whatever the keys.
  void start(int64_t position) {
    const int64_t stride = a.query_heads * a.width;
    const uint16_t *from = query + position * a.queries.position, *given = g.given + outside(position);
    pack_across(from, a.queries.position, high, a.width, queries_across);
    pack_along(from, a.queries.position, high, a.width, queries_along);
    pack_across(given, stride, high, a.width, given_across);
    pack_along(given, stride, high, a.width, given_along);
    const float* logs = a.log_sums + (sequence * a.query_heads + head) * a.count + position;
    for (int64_t q = 0; q < WIDE; q++) {
      const bool there = q < high;
      products[q] = there ? dot(given + q * stride, a.out + outside(position + q), a.width) : 0;
      log_sums[q] = there ? logs[q] : 0;
    }
    std::fill(sums, sums + WIDE * a.width, 0.0f);
  }

  // Of HIGH keys and the block's queries: weights, and the gradient at their scores; [key, query].
  void weigh(int64_t position, int64_t at, int64_t row) {
    const uint16_t *keys[HIGH], *values[HIGH];
    Tile scores, slope;
    for (int64_t r = 0; r < HIGH; r++) {
      const int64_t there = std::min(at + row + r, a.length - 1);
      keys[r] = key + there * a.keys.position, values[r] = value + there * a.values.position;
      for (int64_t v = 0; v < VECTORS; v++) scores[r][v] = slope[r][v] = _mm512_setzero_ps();
    }
    multiply<VECTORS>(keys, a.width / 2, queries_across, WIDE, scores);
    multiply<VECTORS>(values, a.width / 2, given_across, WIDE, slope);
    const __m512 scale = _mm512_set1_ps(a.scale), power = _mm512_set1_ps(a.scale * PER_LN_2);
    for (int64_t r = 0; r < HIGH; r++) {
      const int64_t place = at + row + r;
      // The first query of the block that sees this key.
      const int64_t first = place < a.begins[sequence] ? high : place - (a.length - a.count) - position;
      for (int64_t v = 0; v < VECTORS; v++) {
        const __mmask16 seen = mask_of(high - 16 * v) & (__mmask16)~mask_of(first - 16 * v);
        const __m512 exponent = _mm512_fmsub_ps(scores[r][v], power, _mm512_loadu_ps(log_sums + 16 * v));
        const __m512 weight = _mm512_maskz_mov_ps(seen, exp2_of(exponent));
        const __m512 change = _mm512_sub_ps(slope[r][v], _mm512_loadu_ps(products + 16 * v));
        const __m512 found = _mm512_mul_ps(_mm512_mul_ps(weight, scale), change);
        store(weights + (row + r) * WIDE + 16 * v, weight);
        store(slopes + (row + r) * WIDE + 16 * v, found);
      }
    }
  }

  static void store(uint16_t* to, __m512 numbers) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(numbers));
  }

  // slopes_by_query [query, key] from slopes [key, query].
  void turn() {
    alignas(64) uint32_t pairs[SIDE * SIDE];
    for (int64_t k = 0; k < WIDE; k += 2 * SIDE)
      for (int64_t q = 0; q < WIDE; q += SIDE) {
        for (int64_t pair = 0; pair < SIDE; pair++) {
          const uint16_t* from = slopes + (k + 2 * pair) * WIDE + q;
          const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
          const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(from + WIDE)));
          _mm512_store_si512(pairs + pair * SIDE, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
        transpose(pairs, SIDE, SIDE, (uint32_t*)(slopes_by_query + q * WIDE + k), WIDE / 2);
      }
  }

  void finish(int64_t position) {
    uint16_t* to = g.queries + ((sequence * a.query_heads + head) * a.count + position) * a.width;
    for (int64_t k = 0; k < high * a.width; k += 16) store(to + k, _mm512_loadu_ps(sums + k));
  }

  const AttentionGradient& g;
  const Attention& a;
  const int64_t sequence, head;
  const uint16_t *query, *key, *value;
  // Of the block of queries, and of the block of keys.
  uint32_t *queries_across, *given_across, *queries_along, *given_along, *keys_along;
  uint16_t *weights, *slopes, *slopes_by_query;
  float *sums, *products, *log_sums;
  int64_t high = 0;
};

}  // namespace

void attention_gradient_avx512_bf16(const AttentionGradient& gradient, int32_t threads) {
  const Attention& a = gradient.attention;
  const int64_t heads = a.sequences * a.query_heads;
  in_parallel(threads, heads, heads * a.count * a.length * a.width, [&](int64_t task) {
    Head(gradient, task / a.query_heads, task % a.query_heads).run();
  });
}

TARGET_END
#endif

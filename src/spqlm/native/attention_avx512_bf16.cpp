// Attention of a prompt, for processors with AVX-512 BF16: blocks of keys in turn, with a running
// maximum and sum for each query (FlashAttention, arXiv 2205.14135, algorithm 1).
#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>
#include <cmath>

#include "attention.h"
#include "parallel.h"
#include "target.h"

TARGET_BEGIN(AVX512 ",avx512bf16")

#include "attention_avx512.h"

namespace {

// Queries of a tile: 6 x 4 vectors of sums leave registers for what they multiply.
constexpr int64_t HIGH = 6;
// Queries of a task, about: enough for packing a block of keys to cost little beside them.
constexpr int64_t QUERIES = 192;
// Scores of what is not seen, and what the running maximum starts from: exp2 of their difference is 0.
constexpr float UNSEEN = -2e30f, LOWEST = -1e30f;

// Some queries of one sequence that share keys: row r is of head r / positions, and so on.
struct Task {
  const Attention& a;
  int64_t sequence, key_head, position, positions;

  int64_t rows() const { return positions * (a.query_heads / a.key_heads); }
  int64_t head(int64_t row) const {
    return key_head * (a.query_heads / a.key_heads) + row / positions;
  }
  // Counted from the first query on.
  int64_t place(int64_t row) const { return position + row % positions; }
  // How many positions a row may see, counted from the first of all.
  int64_t sees(int64_t row) const { return a.length - a.count + place(row) + 1; }
  const uint16_t* query(int64_t row) const {
    const States& q = a.queries;
    return q.first + sequence * q.sequence + head(row) * q.head + place(row) * q.position;
  }
  uint16_t* out(int64_t row) const {
    return a.out + ((sequence * a.count + place(row)) * a.query_heads + head(row)) * a.width;
  }
  float* log_sum(int64_t row) const {
    return a.log_sums + (sequence * a.query_heads + head(row)) * a.count + place(row);
  }
};

// What is known of HIGH rows: sums [HIGH, width], and for each row its maximum and its share.
struct Running {
  float* sums;
  float* most;
  float* total;
};

// The scores of HIGH rows for a block of keys, as weights in bfloat16 [HIGH, WIDE]; the running sums
// shrink to the new maximum.
void weigh(const Task& task, int64_t row, int64_t key, const uint32_t* keys, Running& running,
           float (&shrink)[HIGH], uint16_t* weights) {
  const Attention& a = task.a;
  const uint16_t* queries[HIGH];
  const int64_t last = task.rows() - 1;
  for (int64_t r = 0; r < HIGH; r++) queries[r] = task.query(std::min(row + r, last));
  __m512 scores[HIGH][VECTORS];
  for (int64_t r = 0; r < HIGH; r++)
    for (int64_t v = 0; v < VECTORS; v++) scores[r][v] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < a.width / 2; pair++) {
    __m512bh held[VECTORS];
    for (int64_t v = 0; v < VECTORS; v++)
      held[v] = (__m512bh)_mm512_loadu_si512(keys + pair * WIDE + 16 * v);
    for (int64_t r = 0; r < HIGH; r++) {
      const __m512bh query = pair_of(queries[r], pair);
      for (int64_t v = 0; v < VECTORS; v++)
        scores[r][v] = _mm512_dpbf16_ps(scores[r][v], query, held[v]);
    }
  }
  const __m512 scale = _mm512_set1_ps(a.scale * PER_LN_2);
  const int64_t begin = a.begins[task.sequence] - key;
  for (int64_t r = 0; r < HIGH; r++) {
    const int64_t end = task.sees(std::min(row + r, last)) - key;
    __m512 most = _mm512_set1_ps(running.most[r]);
    for (int64_t v = 0; v < VECTORS; v++) {
      const __mmask16 seen = mask_of(end - 16 * v) & (__mmask16)~mask_of(begin - 16 * v);
      scores[r][v] = _mm512_mask_mul_ps(_mm512_set1_ps(UNSEEN), seen, scores[r][v], scale);
      most = _mm512_max_ps(most, scores[r][v]);
    }
    const float next = _mm512_reduce_max_ps(most);
    __m512 total = _mm512_setzero_ps();
    for (int64_t v = 0; v < VECTORS; v++) {
      const __m512 weight = exp2_of(_mm512_sub_ps(scores[r][v], _mm512_set1_ps(next)));
      total = _mm512_add_ps(total, weight);
      _mm256_storeu_si256((__m256i*)(weights + r * WIDE + 16 * v), (__m256i)_mm512_cvtneps_pbh(weight));
    }
    shrink[r] = _mm512_cvtss_f32(exp2_of(_mm512_set1_ps(running.most[r] - next)));
    running.total[r] = running.total[r] * shrink[r] + _mm512_reduce_add_ps(total);
    running.most[r] = next;
  }
}

// sums = shrink sums + weights values, V vectors of each of HIGH rows.
template <int V>
void add(const uint16_t* weights, const uint32_t* values, int64_t width, const float (&shrink)[HIGH],
         float* sums) {
  __m512 held[HIGH][V];
  for (int64_t r = 0; r < HIGH; r++)
    for (int64_t v = 0; v < V; v++)
      held[r][v] = _mm512_mul_ps(_mm512_loadu_ps(sums + r * width + 16 * v), _mm512_set1_ps(shrink[r]));
  for (int64_t pair = 0; pair < WIDE / 2; pair++) {
    __m512bh value[V];
    for (int64_t v = 0; v < V; v++)
      value[v] = (__m512bh)_mm512_loadu_si512(values + pair * width + 16 * v);
    for (int64_t r = 0; r < HIGH; r++) {
      const __m512bh weight = pair_of(weights + r * WIDE, pair);
      for (int64_t v = 0; v < V; v++) held[r][v] = _mm512_dpbf16_ps(held[r][v], weight, value[v]);
    }
  }
  for (int64_t r = 0; r < HIGH; r++)
    for (int64_t v = 0; v < V; v++) _mm512_storeu_ps(sums + r * width + 16 * v, held[r][v]);
}

void write(const Task& task, int64_t row, const Running& running) {
  const int64_t width = task.a.width;
  for (int64_t r = 0; r < HIGH && row + r < task.rows(); r++) {
    const float total = running.total[r];
    const __m512 by = _mm512_set1_ps(total > 0 ? 1 / total : 0);
    uint16_t* out = task.out(row + r);
    if (task.a.log_sums) *task.log_sum(row + r) = running.most[r] + std::log2(total);
    for (int64_t k = 0; k < width; k += 16) {
      const __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(running.sums + r * width + k), by);
      _mm256_storeu_si256((__m256i*)(out + k), (__m256i)_mm512_cvtneps_pbh(sum));
    }
  }
}

void run(const Task& task) {
  const Attention& a = task.a;
  const int64_t width = a.width, rows = task.rows(), padded = (rows + HIGH - 1) / HIGH * HIGH;
  uint32_t* keys = (uint32_t*)room_for(Purpose::PANEL, WIDE * width * sizeof(uint32_t));
  uint32_t* values = keys + WIDE * width / 2;
  float* sums = (float*)room_for(Purpose::PANEL_SUMS, padded * (width + 2) * sizeof(float));
  float *most = sums + padded * width, *total = most + padded;
  std::fill(sums, most, 0.0f);
  std::fill(most, total, LOWEST);
  std::fill(total, total + padded, 0.0f);
  const auto at = [&](int64_t row) { return Running{sums + row * width, most + row, total + row}; };
  const States &k = a.keys, &v = a.values;
  const uint16_t* first_key = k.first + task.sequence * k.sequence + task.key_head * k.head;
  const uint16_t* first_value = v.first + task.sequence * v.sequence + task.key_head * v.head;
  const int64_t seen = a.length - a.count + task.position + task.positions;
  const int64_t begin = std::max<int64_t>(0, a.begins[task.sequence]);
  for (int64_t key = begin / WIDE * WIDE; key < seen; key += WIDE) {
    pack_across(first_key + key * k.position, k.position, a.length - key, width, keys);
    pack_along(first_value + key * v.position, v.position, a.length - key, width, values);
    for (int64_t row = 0; row < rows; row += HIGH) {
      Running running = at(row);
      float shrink[HIGH];
      alignas(64) uint16_t weights[HIGH * WIDE];
      weigh(task, row, key, keys, running, shrink, weights);
      int64_t column = 0;
      for (; column + 64 <= width; column += 64)
        add<4>(weights, values + column, width, shrink, running.sums + column);
      if (column < width) add<2>(weights, values + column, width, shrink, running.sums + column);
    }
  }
  for (int64_t row = 0; row < rows; row += HIGH) write(task, row, at(row));
}

}  // namespace

void attention_avx512_bf16(const Attention& a, int32_t threads) {
  const int64_t share = a.query_heads / a.key_heads;
  const int64_t high = std::max<int64_t>(QUERIES / share, 16);
  const int64_t blocks = (a.count + high - 1) / high, heads = a.sequences * a.key_heads;
  // The last queries see the most, so they come first.
  in_parallel(threads, blocks * heads, heads * share * a.count * a.length * a.width, [&](int64_t task) {
    const int64_t position = (blocks - 1 - task / heads) * high, head = task % heads;
    run({a, head / a.key_heads, head % a.key_heads, position, std::min(high, a.count - position)});
  });
}

TARGET_END
#endif

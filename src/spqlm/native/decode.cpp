// One more token of each of some sequences through a whole decoder of Llama's layout in one call, by
// threads that stay together.
#include <algorithm>
#include <array>

#include "decoder.h"
#include "exported.h"
#include "kernels.h"
#include "pairs.h"
#include "sparse.h"

namespace {

// Weight that one thread takes at a time.
constexpr int64_t BLOCK_BYTES = 1 << 15;
constexpr int64_t WIDEST_HEAD = 512;
// A number that does not depend on the threads, so that results do not either.
constexpr int64_t ENOUGH_HEADS = 32;

// Numbers in as many whole lines of the cache as `size` numbers need.
int64_t in_lines(int64_t size) { return (size + 15) / 16 * 16; }

std::array<const Linear*, 7> linears_of(const Layer& layer) {
  return {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate, &layer.up, &layer.down};
}

bool known(const Linear& linear) {
  return ::known(linear.outer) && (!linear.inner.rows || ::known(linear.inner));
}

bool known(const Decoder& decoder) {
  if (!::known(decoder.type) || !::known(decoder.embedding) || !known(decoder.head)) return false;
  for (int64_t i = 0; i < decoder.layer_count; i++)
    for (const Linear* linear : linears_of(decoder.layers[i]))
      if (!known(*linear)) return false;
  return true;
}

int64_t widest(const Decoder& decoder) {
  int64_t width = std::max(decoder.hidden, decoder.head.inner.rows);
  for (int64_t i = 0; i < decoder.layer_count; i++) {
    const Layer& layer = decoder.layers[i];
    for (const Linear* linear : linears_of(layer))
      width = std::max({width, linear->outer.rows, linear->outer.columns, linear->inner.columns});
  }
  return in_lines(arranged_size(width));
}

// Query heads that read the same keys and values, at most.
int64_t most_sharing(const Decoder& decoder) {
  int64_t share = 1;
  for (int64_t i = 0; i < decoder.layer_count; i++)
    share = std::max(share, decoder.layers[i].query_heads / decoder.layers[i].key_heads);
  return share;
}

// Partial sums that the sparse layers which run side by side may carry, at most.
int64_t carried_room(const Decoder& decoder) {
  const auto tasks = [](const Linear& linear) {
    return (is_sparse(linear.outer) ? sparse_tasks(linear.outer) : 0) +
           (is_sparse(linear.inner) ? sparse_tasks(linear.inner) : 0);
  };
  int64_t room = tasks(decoder.head);
  for (int64_t i = 0; i < decoder.layer_count; i++) {
    const Layer& layer = decoder.layers[i];
    room = std::max({room, tasks(layer.query) + tasks(layer.key) + tasks(layer.value),
                     tasks(layer.output), tasks(layer.gate) + tasks(layer.up), tasks(layer.down)});
  }
  return room;
}

// Vectors [count, columns] that several matrices are multiplied with, in the forms that they read.
struct Input {
  int64_t count;
  float* room;
  const float* exact = nullptr;
  Order grouped = {0, false};  // `room` holds them in this order,
  const Pairs* by = nullptr;   // or as these arrange them

  void set(const float* x) {
    exact = x;
    grouped = {0, false};
    by = nullptr;
  }

  const uint16_t* arranged(const Pairs& pairs, int64_t columns) {
    if (by != &pairs) pairs.arrange(exact, count, columns, (uint16_t*)room);
    grouped = {0, false};
    by = &pairs;
    return (const uint16_t*)room;
  }

  const float* in_groups(const Matrix& matrix) {
    const Order order = order_for(matrix, count);
    if (count == 1 && !order.interleaved) return exact;
    if (!(grouped == order)) group_inputs(matrix, exact, count, room);
    grouped = order;
    by = nullptr;
    return room;
  }
};

struct Job {
  const Matrix* matrix;
  Input* input;
  float* y;
};

// What all threads see. Every phase writes one of these before a barrier and reads it after.
struct Shared {
  float *query, *key, *value, *attended, *delta, *gate, *up, *inner, *logits, *carried;
  int64_t* finished;  // blocks of the phase that runs
};

// What one thread does; all threads run the same member functions and meet at the end of each loop.
struct Worker {
  const Decoder& decoder;
  const Sequence* sequences;
  Shared shared;
  int64_t width;  // of the room for one input
  float *state, *x, *queries, *scores;
  Input input, inner[3];
  const int64_t count = decoder.count;

  // For one sequence rows are read four at a time, for several in tiles.
  int64_t block_height(const Matrix& matrix) const {
    const int64_t unit = count > 1 ? 16 : 4;
    const int64_t rows = BLOCK_BYTES / std::max<int64_t>(1, row_bytes(matrix)) / unit * unit;
    return std::clamp<int64_t>(rows, unit, 128);
  }

  bool in_tasks(const Matrix& matrix) const { return ::in_tasks(matrix, decoder.type, count); }

  int64_t block_count(const Matrix& matrix) const {
    if (in_tasks(matrix)) return sparse_tasks(matrix);
    const int64_t height = block_height(matrix);
    return (matrix.rows + height - 1) / height;
  }

  void multiply(const Job& job, int64_t block) {
    const Matrix& matrix = *job.matrix;
    const int64_t height = block_height(matrix), first = block * height;
    const int64_t last = std::min(first + height, matrix.rows);
    const Pairs* pairs = decoder.type == BFLOAT16 ? pairs_for(matrix, count) : nullptr;
    if (!pairs) return kernels().product(matrix, job.input->exact, count, first, last, job.y, matrix.rows);
    const uint16_t* x = job.input->arranged(*pairs, matrix.columns);
    pairs->product(matrix, x, count, first, last, job.y, matrix.rows);
  }

  SparseProduct sparse(const Job& job, float* carried) {
    const Matrix& matrix = *job.matrix;
    const float* x = job.input->in_groups(matrix);
    return {&matrix, EVEN_GROUPS, x, count, job.y, matrix.rows, carried};
  }

  // Whoever finishes the last block puts the sparse products together, before the threads meet.
  void finish(const Job* jobs, int job_count, int64_t total) {
    if (__atomic_add_fetch(shared.finished, 1, __ATOMIC_ACQ_REL) < total) return;
    *shared.finished = 0;
    float* carried = shared.carried;
    for (const Job* job = jobs; job < jobs + job_count; job++) {
      if (!in_tasks(*job->matrix)) continue;
      settle(sparse(*job, carried));
      carried += sparse_tasks(*job->matrix) * count;
    }
  }

  void run(const Job* jobs, int job_count) {
    int64_t total = 0;
    bool any_tasks = false;
    for (int i = 0; i < job_count; i++) {
      total += block_count(*jobs[i].matrix);
      any_tasks |= in_tasks(*jobs[i].matrix);
    }
#pragma omp for schedule(guided)
    for (int64_t index = 0; index < total; index++) {
      int64_t block = index;
      const Job* job = jobs;
      float* carried = shared.carried;
      for (; block >= block_count(*job->matrix); job++) {
        block -= block_count(*job->matrix);
        if (in_tasks(*job->matrix)) carried += sparse_tasks(*job->matrix) * count;
      }
      if (in_tasks(*job->matrix)) run_task(sparse(*job, carried), block);
      else multiply(*job, block);
      if (any_tasks) finish(jobs, job_count, total);
    }
  }

  // y[i] = linears[i] x, for up to three layers that share their input.
  void apply(const Linear* const* linears, float* const* y, int linear_count) {
    Job first[3], second[3];
    int inners = 0;
    for (int i = 0; i < linear_count; i++) {
      const Linear& linear = *linears[i];
      second[i] = {&linear.outer, &input, y[i]};
      if (!linear.inner.rows) continue;
      float* between = shared.inner + i * width * count;
      first[inners++] = {&linear.inner, &input, between};
      inner[i].set(between);
      second[i].input = &inner[i];
    }
    if (inners) run(first, inners);
    run(second, linear_count);
  }

  void apply(const Linear& linear, float* y) {
    const Linear* linears[] = {&linear};
    float* outputs[] = {y};
    apply(linears, outputs, 1);
  }

  void normalize(const float* weight) {
    for (int64_t i = 0; i < count * decoder.hidden; i += decoder.hidden)
      kernels().normalize(state + i, weight, decoder.epsilon, decoder.hidden, x + i);
    input.set(x);
  }

  void add_delta() {
    for (int64_t i = 0; i < count * decoder.hidden; i++) state[i] += shared.delta[i];
  }

  // Norm (where the family has one) and rotary embedding (arXiv 2104.09864) of one head.
  void rotate(const float* head, const float* norm, int64_t angle, float* out) {
    const int64_t size = decoder.head_width, half = size / 2;
    const float *cosine = decoder.cosine + angle * size, *sine = decoder.sine + angle * size;
    float normed[WIDEST_HEAD];
    if (norm) {
      kernels().normalize(head, norm, decoder.epsilon, size, normed);
      head = normed;
    }
    for (int64_t i = 0; i < half; i++) {
      out[i] = head[i] * cosine[i] - head[half + i] * sine[i];
      out[half + i] = head[half + i] * cosine[half + i] + head[i] * sine[half + i];
    }
  }

  // Where `head`, counted over all sequences, has the keys or values of a position.
  char* cached(void* cache, int64_t head, int64_t position) const {
    const int64_t before = (head * decoder.capacity + position) * decoder.head_width;
    return (char*)cache + before * element_size(decoder.type);
  }

  void attend(const Layer& layer, int64_t position) {
    const int64_t size = decoder.head_width, share = layer.query_heads / layer.key_heads;
    // Heads that share keys and values read them together where there is enough for many threads to do.
    const int64_t together = count * layer.key_heads >= ENOUGH_HEADS ? share : 1;
    float room[WIDEST_HEAD];
#pragma omp for schedule(static)
    for (int64_t head = 0; head < count * layer.key_heads; head++) {
      const Sequence& sequence = sequences[head / layer.key_heads];
      rotate(shared.key + head * size, layer.key_norm, sequence.angle, room);
      char* keys = cached(layer.keys, head, position);
      char* values = cached(layer.values, head, position);
      for (int64_t i = 0; i < size; i++) {
        write_float(keys, decoder.type, i, room[i]);
        write_float(values, decoder.type, i, shared.value[head * size + i]);
      }
    }
#pragma omp for schedule(guided)
    for (int64_t head = 0; head < count * layer.query_heads; head += together) {
      const Sequence& sequence = sequences[head / layer.query_heads];
      int64_t first = sequence.first;
      if (layer.window) first = std::max(first, position + 1 - layer.window);
      for (int64_t i = 0; i < together; i++)
        rotate(shared.query + (head + i) * size, layer.query_norm, sequence.angle, queries + i * size);
      for (int64_t i = 0; i < together * size; i++) queries[i] *= decoder.attention_scale;
      kernels().attend(queries, together, cached(layer.keys, head / share, first),
                       cached(layer.values, head / share, first), decoder.type,
                       position + 1 - first, size, scores, shared.attended + head * size);
    }
  }

  void layer(const Layer& layer, int64_t position) {
    normalize(layer.attention_norm);
    const Linear* projections[] = {&layer.query, &layer.key, &layer.value};
    float* projected[] = {shared.query, shared.key, shared.value};
    apply(projections, projected, 3);
    attend(layer, position);
    input.set(shared.attended);
    apply(layer.output, shared.delta);
    add_delta();

    normalize(layer.mlp_norm);
    const Linear* inputs[] = {&layer.gate, &layer.up};
    float* neurons[] = {shared.gate, shared.up};
    apply(inputs, neurons, 2);
    const int64_t size = count * layer.gate.outer.rows;
    std::copy(shared.gate, shared.gate + size, x);
    kernels().gated(x, shared.up, size);
    input.set(x);
    apply(layer.down, shared.delta);
    add_delta();
  }

  void step(int64_t position, void* logits) {
    for (int64_t m = 0; m < count; m++)
      kernels().dequantize(decoder.embedding, sequences[m].token, sequences[m].token + 1,
                           state + m * decoder.hidden, FLOAT32);
    for (int64_t i = 0; i < decoder.layer_count; i++) layer(decoder.layers[i], position);
    normalize(decoder.norm);
    apply(decoder.head, shared.logits);
    const int64_t size = decoder.head.outer.rows, bytes = size * element_size(decoder.type);
#pragma omp for schedule(static)
    for (int64_t m = 0; m < count; m++)
      convert(shared.logits + m * size, FLOAT32, size, (char*)logits + m * bytes, decoder.type);
  }
};

constexpr int SHARED = 10;  // inputs of the widest layer that all threads see
constexpr int PRIVATE = 6;  // and that each has for itself

}  // namespace

// float32 numbers that `spq_decode` needs to work in, or REFUSED.
EXPORTED int64_t spq_decode_room(const Decoder* decoder, int32_t threads) {
  if (!known(*decoder)) return REFUSED;
  const int64_t count = decoder->count, width = widest(*decoder) * count;
  return SHARED * width + in_lines(count * decoder->head.outer.rows) +
         in_lines(count * carried_room(*decoder)) +
         threads * (PRIVATE * width + most_sharing(*decoder) * (in_lines(decoder->head_width) +
                                                            in_lines(decoder->capacity)));
}

// Logits [count, vocabulary] of what follows a token of each sequence; the tokens stand at `position`
// (< capacity) of the cache, which their keys and values go into.
EXPORTED Status spq_decode(const Decoder* decoder, const Sequence* sequences, int64_t position,
                           float* room, void* logits, int32_t threads) {
  if (!known(*decoder)) return REFUSED;
  const int64_t width = widest(*decoder), all = width * decoder->count;
  const int64_t share = most_sharing(*decoder);
  float* next = room;
  // In whole lines of the cache, so that no piece of an input lies in two.
  const auto take = [&next](int64_t size) {
    float* taken = next;
    next += in_lines(size);
    return taken;
  };
  Shared shared;
  for (float** vector : {&shared.query, &shared.key, &shared.value, &shared.attended, &shared.delta,
                         &shared.gate, &shared.up})
    *vector = take(all);
  shared.inner = take(3 * all);
  shared.logits = take(decoder->count * decoder->head.outer.rows);
  shared.carried = take(decoder->count * carried_room(*decoder));
  int64_t finished = 0;
  shared.finished = &finished;
#pragma omp parallel num_threads(threads)
  {
    float *own, *queries, *scores;
#pragma omp critical
    {
      own = take(PRIVATE * all);
      queries = take(share * decoder->head_width);
      scores = take(share * decoder->capacity);
    }
    const auto input = [&](int64_t index) { return Input{decoder->count, own + (2 + index) * all}; };
    Worker worker{*decoder, sequences, shared, width, own, own + all, queries, scores,
                  input(0), {input(1), input(2), input(3)}};
    worker.step(position, logits);
  }
  return DONE;
}

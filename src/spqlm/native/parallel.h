// Work in blocks over threads.
#pragma once

#include <cstdint>

// Below this many multiplications, waking a thread costs more than it saves.
constexpr int64_t WORTH_A_THREAD = 1 << 16;

// Calls task(block) for every block: a thread that is free takes a run of neighbours, so that it
// reads memory in order, long runs first. The threads are those of the OpenMP library that PyTorch
// has loaded, so that there is one pool and not two that compete.
template <class Task>
void in_parallel(int threads, int64_t blocks, int64_t multiplications, const Task& task) {
  if (threads < 2 || blocks < 2 || multiplications < WORTH_A_THREAD) {
    for (int64_t block = 0; block < blocks; block++) task(block);
    return;
  }
#pragma omp parallel for schedule(guided) num_threads(threads)
  for (int64_t block = 0; block < blocks; block++) task(block);
}

// What a thread keeps memory for, from call to call.
enum class Purpose { INPUT, SPARSE, ARRANGED, MANY, PANEL_ROWS, PANEL, PANEL_SUMS, GRAM, WRITTEN_OUT, COLUMNS, COUNT };

// The calling thread's memory for a purpose, at least so many bytes from the start of a line of the
// cache on. What it held may be lost.
void* room_for(Purpose purpose, int64_t bytes);

// Sums of outer products.
#pragma once

#include <cstdint>

// total [columns, columns] += sum over t of y y^T with y = by[t] x[t], rounded to bfloat16; x
// [count, columns] is in bfloat16. On and above the diagonal; below it, entries mean nothing.
void gram_avx512_bf16(const uint16_t* x, const float* by, int64_t count, int64_t columns,
                      float* total, int32_t threads);

// The same, where amx_runs_here(); by tiles where 32 divides columns.
void gram_amx_bf16(const uint16_t* x, const float* by, int64_t count, int64_t columns, float* total,
                   int32_t threads);

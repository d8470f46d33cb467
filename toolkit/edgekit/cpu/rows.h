/* Causal attention over keys and values in float32 as ONNX Runtime lays them out; see rows.c. */

#pragma once
#include "matmul.h"

/* One layer and one call. keys, values: [kv_heads, capacity, size], of which the first ``position`` tokens are there and the next s are
   written. qkv: [s, (heads + 2 * kv_heads) * size]. cos, sin: [*, half], by which the first 2 * half of a head are rotated, at the rows
   that rotations [s] names or, NULL, from position on; half 0: not at all. window: tokens that are seen, the last one among them; 0 for
   all. y: [s, heads * size]. */
typedef struct {
  int64_t heads, kv_heads, size, capacity, window, half, position, s;
  float scale;
  const float *qkv, *cos, *sin;
  const int64_t *rotations;
  float *keys, *values, *y;
} edgekit_rows_t;

/* 0 where the heads' sizes do not fit. */
int edgekit_rows_takes(int64_t heads, int64_t kv_heads, int64_t size);

/* A token's row of y is the same bit for bit whatever tokens come with it. What parallel returns. */
void *edgekit_attend_rows(const edgekit_rows_t *call, edgekit_parallel_t *parallel, void *context);

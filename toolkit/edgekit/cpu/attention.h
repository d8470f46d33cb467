/* Causal attention with a cache of keys and values in float16; see attention.c. */

#pragma once
#include "matmul.h"

enum { EDGEKIT_CHUNK = 64 }; /* tokens of a chunk of the cache */

/* Of one layer. Chunks are made as tokens come and kept; what they hold beyond the position of a call is of no more meaning. size: of a
   head, a multiple of 16. */
typedef struct {
  int64_t heads, kv_heads, size;
  float scale;
  uint16_t **chunks;
  int64_t count;
} edgekit_cache_t;

/* 0 where the heads' sizes do not fit. */
int edgekit_attention_takes(int64_t heads, int64_t kv_heads, int64_t size);

/* Room for so many tokens. Returns 0; -1 without memory, and then what was there is still there. */
int edgekit_cache_reserve(edgekit_cache_t *cache, int64_t tokens);
void edgekit_cache_free(edgekit_cache_t *cache);

/* y [heads, s, size] of q [heads, s, size] at positions position to position + s - 1, whose k and v [kv_heads, s, size] enter the cache,
   which edgekit_cache_reserve has made large enough. What parallel returns. */
void *edgekit_attention(const edgekit_cache_t *cache, const float *q, const float *k, const float *v, float *y, int64_t position, int64_t s,
                        edgekit_parallel_t *parallel, void *context);

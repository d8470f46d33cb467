/* Causal attention for x86-64 processors with AVX2: softmax(scale * q k^T) v, summed chunk by chunk of keys with a running maximum (Milakov
   and Gimelshein, "Online normalizer calculation for softmax", 2018), so that scores never leave a level 1 cache.

   A chunk has the keys of 64 tokens, [kv_heads, size, 64], so that eight keys lie side by side for each of a head's dimensions, then their
   values, [kv_heads, 64, size]. A row is one head of one token; the rows that share keys are computed together. */

#include "attention.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include "softmax.h"
#include <stdlib.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum {
  KEYS = EDGEKIT_CHUNK,
  SIZE = 256, /* of a head, at most */
  TALL = 6,   /* rows at once: with two vectors of keys or values, 12 of the 16 registers are sums */
  ROWS = 12   /* of a part, for which keys and values stay in a level 1 cache */
};

int edgekit_attention_takes(int64_t heads, int64_t kv_heads, int64_t size) {
  return __builtin_cpu_supports("f16c") && kv_heads > 0 && heads % kv_heads == 0 && size > 0 && size % 16 == 0 && size <= SIZE;
}

static int64_t half_of(const edgekit_cache_t *c) { return c->kv_heads * c->size * KEYS; }

int edgekit_cache_reserve(edgekit_cache_t *cache, int64_t tokens) {
  int64_t wanted = (tokens + KEYS - 1) / KEYS;
  if (wanted <= cache->count) return 0;
  uint16_t **chunks = realloc(cache->chunks, sizeof *chunks * (size_t) wanted);
  if (!chunks) return -1;
  cache->chunks = chunks;
  for (; cache->count < wanted; cache->count++) {
    chunks[cache->count] = aligned_alloc(64, sizeof(uint16_t) * 2 * (size_t) half_of(cache));
    if (!chunks[cache->count]) return -1;
  }
  return 0;
}

void edgekit_cache_free(edgekit_cache_t *cache) {
  for (int64_t i = 0; i < cache->count; i++) free(cache->chunks[i]);
  free(cache->chunks);
  cache->chunks = NULL, cache->count = 0;
}

typedef struct {
  const edgekit_cache_t *cache;
  const float *q, *k, *v;
  float *y;
  int64_t position, s, tiles; /* tiles: parts of a key and value head */
} work_t;

AVX2 static void append(void *data, size_t part) {
  const work_t *work = data;
  const edgekit_cache_t *c = work->cache;
  const int64_t size = c->size, head = (int64_t) part;
  for (int64_t i = 0; i < work->s; i++) {
    const float *k = work->k + (head * work->s + i) * size, *v = work->v + (head * work->s + i) * size;
    int64_t at = work->position + i, slot = at % KEYS;
    uint16_t *keys = c->chunks[at / KEYS] + head * size * KEYS, *values = c->chunks[at / KEYS] + half_of(c) + (head * KEYS + slot) * size;
    for (int64_t d = 0; d < size; d += 8) {
      uint16_t eight[8];
      _mm_storeu_si128((__m128i *) eight, _mm256_cvtps_ph(_mm256_loadu_ps(k + d), _MM_FROUND_TO_NEAREST_INT));
      for (int j = 0; j < 8; j++) keys[(d + j) * KEYS + slot] = eight[j];
      _mm_storeu_si128((__m128i *) (values + d), _mm256_cvtps_ph(_mm256_loadu_ps(v + d), _MM_FROUND_TO_NEAREST_INT));
    }
  }
}

INLINE __m256 halves(const uint16_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) at)); }

/* to [rows, *] (stride floats apart): or, with add, plus: sums over n of a [rows, n] (a row ROW floats apart) times b [n, wide] in float16,
   so many vectors of its columns. Both products of attention have this form. next: what is read after b, asked for on the way. */
INLINE void product(float *to, int64_t stride, int add, const float *a, int64_t row, const uint16_t *b, int64_t wide, int64_t n, int rows,
                    int vectors, const uint16_t *next) {
  __m256 sum[TALL][4];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) sum[r][v] = add ? _mm256_loadu_ps(to + r * stride + 8 * v) : _mm256_setzero_ps();
  for (int64_t i = 0; i < n; i++, b += wide) {
    __m256 of[4];
    _mm_prefetch((const char *) (next + 8 * vectors * i), _MM_HINT_T0);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) of[v] = halves(b + 8 * v);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
      __m256 by = _mm256_broadcast_ss(a + r * row + i);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sum[r][v] = _mm256_fmadd_ps(by, of[v], sum[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) _mm256_storeu_ps(to + r * stride + 8 * v, sum[r][v]);
}

/* All columns. wide: a multiple of 16. */
INLINE void product_of_rows(float *to, int64_t stride, int add, const float *a, int64_t row, const uint16_t *b, int64_t wide, int64_t n,
                            int rows, const uint16_t *next) {
  int64_t column = 0;
  if (rows <= 2)
    for (; column + 32 <= wide; column += 32) product(to + column, stride, add, a, row, b + column, wide, n, rows, 4, next + column * n);
  for (; column < wide; column += 16) product(to + column, stride, add, a, row, b + column, wide, n, rows, 2, next + column * n);
}

#define CASE(rows)                                                                                                                         \
  case rows: product_of_rows(to, stride, add, a, row, b, wide, n, rows, next); break;

AVX2 static void products(float *to, int64_t stride, int add, const float *a, int64_t row, const uint16_t *b, int64_t wide, int64_t n,
                          int64_t rows, const uint16_t *next) {
  for (; rows > 0; rows -= TALL, to += TALL * stride, a += TALL * row) {
    switch (rows < TALL ? rows : TALL) { /* constants where they are inlined */
      CASE(1)
      CASE(2)
      CASE(3)
      CASE(4)
      CASE(5)
      CASE(6)
    }
  }
}

/* Rows of one head of keys and values. */
AVX2 static void attend(void *data, size_t part) {
  const work_t *work = data;
  const edgekit_cache_t *c = work->cache;
  const int64_t size = c->size, shared = c->heads / c->kv_heads, head = (int64_t) part / work->tiles;
  const int64_t first = (int64_t) part % work->tiles * ROWS, all = work->s * shared, rows = all - first < ROWS ? all - first : ROWS;
  float q[ROWS][SIZE], y[ROWS][SIZE], scores[ROWS][KEYS], sums[ROWS] = {0}, most[ROWS];
  int64_t seen[ROWS], last = 0;
  for (int64_t r = 0; r < rows; r++) {
    int64_t token = (first + r) / shared, of = ((head * shared + (first + r) % shared) * work->s + token) * size;
    memcpy(q[r], work->q + of, sizeof(float) * (size_t) size);
    scale_row(q[r], size, c->scale);
    memset(y[r], 0, sizeof(float) * (size_t) size);
    most[r] = -INFINITY, seen[r] = last = work->position + token + 1;
  }
  for (int64_t at = 0; at < last; at += KEYS) {
    const uint16_t *keys = c->chunks[at / KEYS] + head * size * KEYS, *values = c->chunks[at / KEYS] + half_of(c) + head * size * KEYS;
    const uint16_t *next = at + KEYS < last ? c->chunks[at / KEYS + 1] + head * size * KEYS : keys;
    products(scores[0], KEYS, 0, q[0], SIZE, keys, KEYS, size, rows, values);
    for (int64_t r = 0; r < rows; r++) {
      float rescale;
      if (seen[r] <= at) {
        memset(scores[r], 0, sizeof scores[r]);
        continue;
      }
      float sum = weigh(scores[r], KEYS, 0, seen[r] - at < KEYS ? seen[r] - at : KEYS, most + r, &rescale);
      sums[r] = sums[r] * rescale + sum;
      if (rescale != 1) scale_row(y[r], size, rescale);
    }
    products(y[0], SIZE, 1, scores[0], KEYS, values, size, last - at < KEYS ? last - at : KEYS, rows, next);
  }
  for (int64_t r = 0; r < rows; r++) {
    int64_t of = ((head * shared + (first + r) % shared) * work->s + (first + r) / shared) * size;
    scale_row(y[r], size, 1 / sums[r]);
    memcpy(work->y + of, y[r], sizeof(float) * (size_t) size);
  }
}

void *edgekit_attention(const edgekit_cache_t *cache, const float *q, const float *k, const float *v, float *y, int64_t position, int64_t s,
                        edgekit_parallel_t *parallel, void *context) {
  work_t work = {cache, q, k, v, y, position, s, (s * (cache->heads / cache->kv_heads) + ROWS - 1) / ROWS};
  void *failed = parallel(context, append, (size_t) cache->kv_heads, &work);
  return failed ? failed : parallel(context, attend, (size_t) (cache->kv_heads * work.tiles), &work);
}
#else
int edgekit_attention_takes(int64_t heads, int64_t kv_heads, int64_t size) { return (void) heads, (void) kv_heads, (void) size, 0; }
#endif

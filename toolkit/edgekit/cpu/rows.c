/* attention.c's sums over a cache in float32 whose layout is not ours: token by token, [kv_heads, capacity, size].

   A row is one head of one token; up to ROWS that share keys are computed together. What makes a row is the same whatever comes with it:
   a score is the sum of eight lanes, each over every eighth of a head's dimensions in order, and keys are weighed and values summed in
   their order, chunk by chunk from the first. */

#include "rows.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include "softmax.h"
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum {
  KEYS = 64,  /* of a chunk */
  SIZE = 512, /* of a head, at most */
  TALL = 6,   /* rows at once: with two vectors of values, 12 of the 16 registers are sums */
  ROWS = 12,  /* of a part, for which keys and values stay in a level 1 cache */
  TOKENS = 64 /* of a part that writes keys and values */
};

int edgekit_rows_takes(int64_t heads, int64_t kv_heads, int64_t size) {
  return kv_heads > 0 && heads > 0 && heads % kv_heads == 0 && size > 0 && size <= SIZE;
}

typedef struct {
  const edgekit_rows_t *call;
  int64_t tiles; /* parts of a key and value head */
} work_t;

static int64_t width_of(const edgekit_rows_t *c) { return (c->heads + 2 * c->kv_heads) * c->size; }

/* A head as it comes, rotated by the row of the tables that is its token's. */
static void rotate(const edgekit_rows_t *c, int64_t token, const float *from, float *to) {
  int64_t row = c->rotations ? c->rotations[token] : c->position + token;
  const float *cos = c->cos + row * c->half, *sin = c->sin + row * c->half;
  for (int64_t d = 0; d < c->half; d++) {
    float a = from[d], b = from[d + c->half];
    to[d] = a * cos[d] - b * sin[d];
    to[d + c->half] = b * cos[d] + a * sin[d];
  }
  memcpy(to + 2 * c->half, from + 2 * c->half, sizeof(float) * (size_t) (c->size - 2 * c->half));
}

static void append(void *data, size_t part) {
  const edgekit_rows_t *c = ((const work_t *) data)->call;
  int64_t head = (int64_t) part % c->kv_heads, first = (int64_t) part / c->kv_heads * TOKENS;
  int64_t last = first + TOKENS < c->s ? first + TOKENS : c->s;
  for (int64_t i = first; i < last; i++) {
    const float *k = c->qkv + i * width_of(c) + (c->heads + head) * c->size;
    int64_t at = (head * c->capacity + c->position + i) * c->size;
    rotate(c, i, k, c->keys + at);
    memcpy(c->values + at, k + c->kv_heads * c->size, sizeof(float) * (size_t) c->size);
  }
}

/* Eight floats of a head of so many, zeros after its end. */
INLINE __m256 eight(const float *head, int64_t d, int64_t size) {
  if (d + 8 <= size) return _mm256_loadu_ps(head + d);
  __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(head + d, _mm256_cmpgt_epi32(_mm256_set1_epi32((int) (size - d)), lanes));
}

/* Scores of one or two rows with four keys. */
INLINE void score(float *to, const float *q, const float *const keys[4], int64_t size, int rows) {
  __m256 sum[2][4];
#pragma GCC unroll 2
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) sum[r][j] = _mm256_setzero_ps();
  for (int64_t d = 0; d < size; d += 8) {
    __m256 of[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) of[j] = eight(keys[j], d, size);
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
      __m256 by = _mm256_loadu_ps(q + r * SIZE + d);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) sum[r][j] = _mm256_fmadd_ps(by, of[j], sum[r][j]);
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < rows; r++) {
    __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(sum[r][0], sum[r][1]), _mm256_hadd_ps(sum[r][2], sum[r][3]));
    _mm_storeu_ps(to + r * KEYS, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
  }
}

/* Of so many keys; up to three scores after the last are of no meaning. */
AVX2 static void score_chunk(float (*to)[KEYS], float (*q)[SIZE], const float *keys, int64_t size, int64_t count, int64_t rows) {
  for (int64_t k = 0; k < count; k += 4) {
    const float *four[4];
    for (int64_t j = 0; j < 4; j++) four[j] = keys + (k + j < count ? k + j : count - 1) * size;
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) score(&to[r][k], q[r], four, size, 2);
    if (r < rows) score(&to[r][k], q[r], four, size, 1);
  }
}

/* Adds weights [rows, n] times values [n, size] to so many vectors of y. */
INLINE void blend(float *y, const float *weights, const float *values, int64_t d, int64_t size, int64_t n, int rows, int vectors) {
  __m256 sum[TALL][4];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) sum[r][v] = _mm256_loadu_ps(y + r * SIZE + d + 8 * v);
  for (int64_t i = 0; i < n; i++, values += size) {
    __m256 of[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) of[v] = vectors == 1 ? eight(values, d, size) : _mm256_loadu_ps(values + d + 8 * v);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
      __m256 by = _mm256_broadcast_ss(weights + r * KEYS + i);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sum[r][v] = _mm256_fmadd_ps(by, of[v], sum[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) _mm256_storeu_ps(y + r * SIZE + d + 8 * v, sum[r][v]);
}

INLINE void blend_rows(float *y, const float *weights, const float *values, int64_t size, int64_t n, int rows) {
  int64_t d = 0;
  if (rows <= 2)
    for (; d + 32 <= size; d += 32) blend(y, weights, values, d, size, n, rows, 4);
  for (; d + 16 <= size; d += 16) blend(y, weights, values, d, size, n, rows, 2);
  for (; d < size; d += 8) blend(y, weights, values, d, size, n, rows, 1);
}

#define CASE(rows)                                                                                                                         \
  case rows: blend_rows(y, weights, values, size, n, rows); break;

AVX2 static void blend_chunk(float *y, const float *weights, const float *values, int64_t size, int64_t n, int64_t rows) {
  for (; rows > 0; rows -= TALL, y += TALL * SIZE, weights += TALL * KEYS) {
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

static int64_t clamped(int64_t value) { return value < 0 ? 0 : value < KEYS ? value : KEYS; }

/* Rows of one head of keys and values. */
AVX2 static void attend(void *data, size_t part) {
  const work_t *work = data;
  const edgekit_rows_t *c = work->call;
  const int64_t size = c->size, shared = c->heads / c->kv_heads, head = (int64_t) part / work->tiles;
  const int64_t first = (int64_t) part % work->tiles * ROWS, all = c->s * shared, rows = all - first < ROWS ? all - first : ROWS;
  float q[ROWS][SIZE], y[ROWS][SIZE], scores[ROWS][KEYS], sums[ROWS] = {0}, most[ROWS];
  int64_t from[ROWS], seen[ROWS];
  for (int64_t r = 0; r < rows; r++) {
    int64_t token = (first + r) / shared, of = head * shared + (first + r) % shared;
    memset(q[r] + size / 8 * 8, 0, sizeof(float) * 8 * (size % 8 > 0));
    rotate(c, token, c->qkv + token * width_of(c) + of * size, q[r]);
    scale_row(q[r], size, c->scale);
    memset(y[r], 0, sizeof(float) * (size_t) ((size + 7) / 8 * 8));
    most[r] = -INFINITY, seen[r] = c->position + token + 1;
    from[r] = c->window && c->window < seen[r] ? seen[r] - c->window : 0;
  }
  const int64_t last = seen[rows - 1];
  for (int64_t at = from[0] / KEYS * KEYS; at < last; at += KEYS) {
    const int64_t count = clamped(last - at), place = (head * c->capacity + at) * size;
    score_chunk(scores, q, c->keys + place, size, count, rows);
    for (int64_t r = 0; r < rows; r++) {
      if (seen[r] <= at || from[r] >= at + KEYS) {
        memset(scores[r], 0, sizeof scores[r]);
        continue;
      }
      float rescale, sum = weigh(scores[r], KEYS, clamped(from[r] - at), clamped(seen[r] - at), most + r, &rescale);
      sums[r] = sums[r] * rescale + sum;
      if (rescale != 1) scale_row(y[r], size, rescale);
    }
    blend_chunk(y[0], scores[0], c->values + place, size, count, rows);
  }
  for (int64_t r = 0; r < rows; r++) {
    int64_t token = (first + r) / shared, of = head * shared + (first + r) % shared;
    scale_row(y[r], size, 1 / sums[r]);
    memcpy(c->y + (token * c->heads + of) * size, y[r], sizeof(float) * (size_t) size);
  }
}

void *edgekit_attend_rows(const edgekit_rows_t *call, edgekit_parallel_t *parallel, void *context) {
  work_t work = {call, (call->s * (call->heads / call->kv_heads) + ROWS - 1) / ROWS};
  void *failed = parallel(context, append, (size_t) (call->kv_heads * ((call->s + TOKENS - 1) / TOKENS)), &work);
  return failed ? failed : parallel(context, attend, (size_t) (call->kv_heads * work.tiles), &work);
}
#else
int edgekit_rows_takes(int64_t heads, int64_t kv_heads, int64_t size) { return (void) heads, (void) kv_heads, (void) size, 0; }
#endif

/* Products, attention and gates (cpu/) for the operators that operators.py gives OpenVINO, and their threads.

   OpenVINO calls such an operator from one thread, so the others are ours. Between two of them OpenVINO's own threads have work: ours look
   for new work for some 40 microseconds, giving way to any other thread, and then sleep. */

#define _GNU_SOURCE
#include "../../cpu/attention.h"
#include "../../cpu/gate.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { LOOKS = 2000 }; /* for new work, before a thread sleeps: with 1 a token of Phi-3.5-mini takes 2 ms more, with 40,000 no less */

typedef struct {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  _Atomic uint64_t round;            /* of work; 1 ends the threads */
  _Atomic int open, inside, sleeping;
  _Atomic size_t next;
  edgekit_part_t *part;
  void *data;
  size_t parts;
  void *memory; /* of inputs, kept between products */
  size_t size;
  int threads;
  pthread_t thread[];
} pool_t;

static void take_parts(pool_t *pool) {
  for (size_t part; (part = atomic_fetch_add(&pool->next, 1)) < pool->parts;) pool->part(pool->data, part);
}

static uint64_t wait_for_work(pool_t *pool, uint64_t seen) {
  for (int i = 0; i < LOOKS; i++) {
    if (atomic_load(&pool->round) != seen) return atomic_load(&pool->round);
    if (i % 64 == 63) sched_yield();
    else __builtin_ia32_pause();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleeping, 1);
  while (atomic_load(&pool->round) == seen) pthread_cond_wait(&pool->changed, &pool->lock);
  atomic_fetch_sub(&pool->sleeping, 1);
  pthread_mutex_unlock(&pool->lock);
  return atomic_load(&pool->round);
}

static void *helper(void *given) {
  pool_t *pool = given;
  for (uint64_t seen = 0; (seen = wait_for_work(pool, seen)) != 1;) {
    atomic_fetch_add(&pool->inside, 1);
    if (atomic_load(&pool->open)) take_parts(pool);
    atomic_fetch_sub(&pool->inside, 1);
  }
  return NULL;
}

static void announce(pool_t *pool, uint64_t round) {
  atomic_store(&pool->round, round);
  if (!atomic_load(&pool->sleeping)) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->lock);
}

/* A helper that wakes when all is done finds the pool closed. */
static void *parallel(void *given, edgekit_part_t *part, size_t parts, void *data) {
  pool_t *pool = given;
  pool->part = part, pool->data = data, pool->parts = parts;
  atomic_store(&pool->next, 0);
  atomic_store(&pool->open, 1);
  announce(pool, atomic_load(&pool->round) + 2);
  take_parts(pool);
  atomic_store(&pool->open, 0);
  while (atomic_load(&pool->inside)) __builtin_ia32_pause();
  return NULL;
}

/* Ends the threads; no product may be computed any more. */
void edgekit_pool_free(pool_t *pool) {
  announce(pool, 1);
  for (int i = 0; i < pool->threads; i++) pthread_join(pool->thread[i], NULL);
  pthread_cond_destroy(&pool->changed);
  pthread_mutex_destroy(&pool->lock);
  free(pool->memory);
  free(pool);
}

/* So many threads with the one that calls; NULL where the system gives no more. */
pool_t *edgekit_pool(int threads) {
  pool_t *pool = calloc(1, sizeof *pool + sizeof(pthread_t) * (size_t) threads);
  if (!pool) return NULL;
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->changed, NULL);
  for (; pool->threads < threads - 1; pool->threads++)
    if (pthread_create(pool->thread + pool->threads, NULL, helper, pool)) {
      edgekit_pool_free(pool);
      return NULL;
    }
  return pool;
}

/* y [m, n] = x [m, k] @ W.T, one call at a time. Returns 0; -1 without memory. */
int edgekit_pool_product(pool_t *pool, const edgekit_weights_t *w, const float *x, float *y, int64_t m) {
  size_t size = edgekit_inputs_size(m, w);
  if (size > pool->size) {
    free(pool->memory);
    pool->memory = malloc(size);
    pool->size = pool->memory ? size : 0;
    if (!pool->memory) return -1;
  }
  edgekit_product(w, NULL, x, y, m, pool->memory, parallel, pool);
  return 0;
}

/* edgekit_attention, with room made for it. Returns 0; -1 without memory. */
int edgekit_pool_attention(pool_t *pool, edgekit_cache_t *cache, const float *q, const float *k, const float *v, float *y, int64_t position,
                           int64_t s) {
  if (edgekit_cache_reserve(cache, position + s)) return -1;
  edgekit_attention(cache, q, k, v, y, position, s, parallel, pool);
  return 0;
}

/* edgekit_gate. */
void edgekit_pool_gate(pool_t *pool, const float *x, float *y, int64_t rows, int64_t width) {
  edgekit_gate(x, y, rows, width, parallel, pool);
}
#endif

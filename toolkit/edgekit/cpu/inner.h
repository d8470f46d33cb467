/* What matmul.c and panels.c share. */

#pragma once
#include "matmul.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum {
  CHUNK = 64, /* codes that are read at once */
  TALL = 6,   /* rows of inputs multiplied at once: with two vectors of rows of weights, 12 of the 16 registers are sums */
  WIDE = 16   /* rows of weights laid out together */
};

static inline int64_t groups_of(const edgekit_weights_t *w) { return (w->k + w->group - 1) / w->group; }

/* A unit is what is multiplied at once: a group, or two of 32, the last of them maybe alone. */
static inline int64_t unit_size(int group) { return group < CHUNK ? CHUNK : group; }
static inline int64_t unit_groups(int group) { return unit_size(group) / group; }
static inline int64_t units_of(const edgekit_weights_t *w) { return (groups_of(w) + unit_groups(w->group) - 1) / unit_groups(w->group); }

/* Rows of inputs that lie together, of m: as many as are multiplied at once, and about as many in the last. */
static inline int64_t tall(int64_t m) {
  int64_t tiles = (m + TALL - 1) / TALL;
  return tiles ? (m + tiles - 1) / tiles : TALL;
}

INLINE __m256i load(const void *at) { return _mm256_loadu_si256((const __m256i *) at); }

/* The sums of four products each, of codes and inputs. 8 bits: codes less 128. */
INLINE __m256i quads(__m256i w, __m256i x, int bits) {
  return bits == 4 ? _mm256_maddubs_epi16(w, x) : _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

INLINE __m256i widened(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

/* Zero points of 8 groups (4 bits) or 4 (8 bits) of row n, the first lowest. */
INLINE uint32_t zeros_of(const edgekit_weights_t *w, int64_t n, int64_t g, int bits) {
  uint32_t word = bits == 4 ? 0x88888888 : 0x80808080;
  int64_t row = (groups_of(w) * bits + 7) / 8, at = g * bits / 8;
  if (!w->zeros) return word;
  if (row - at >= 4) memcpy(&word, w->zeros + n * row + at, 4);
  for (int64_t i = 0; row - at < 4 && i < row - at; i++) ((uint8_t *) &word)[i] = w->zeros[n * row + at + i];
  return word;
}

/* Columns first to last - 1 of y where x has several rows (panels.c). */
void edgekit_matmul_rows(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t first, int64_t last);
#endif

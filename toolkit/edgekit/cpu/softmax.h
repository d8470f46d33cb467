/* A row's softmax taken chunk by chunk with a running maximum; what attention.c and rows.c share. */

#pragma once
#include "floats.h"
#include <math.h>
#include <stdint.h>

/* A row's scores of so many keys (a multiple of 8), of which from to seen - 1 count, become e^(score - most); returns their sum. most: the
   largest so far, which the sums taken before are to be rescaled for by the factor at rescale. */
static inline __attribute__((always_inline, target("avx2,fma"))) float weigh(float *scores, int64_t keys, int64_t from, int64_t seen,
                                                                            float *most, float *rescale) {
  for (int64_t i = 0; i < from; i++) scores[i] = -INFINITY;
  for (int64_t i = seen; i < keys; i++) scores[i] = -INFINITY;
  __m256 top = _mm256_loadu_ps(scores), all = _mm256_setzero_ps();
  for (int64_t i = 8; i < keys; i += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(scores + i));
  float largest = fmaxf(*most, largest_of(top));
  *rescale = expf(*most - largest), *most = largest;
  for (int64_t i = 0; i < keys; i += 8) {
    __m256 score = _mm256_loadu_ps(scores + i);
    __m256 counts = _mm256_cmp_ps(score, _mm256_set1_ps(-INFINITY), _CMP_NEQ_UQ);
    __m256 e = _mm256_and_ps(counts, exponential(_mm256_sub_ps(score, _mm256_set1_ps(largest))));
    _mm256_storeu_ps(scores + i, e);
    all = _mm256_add_ps(all, e);
  }
  return sum_of(all);
}

static inline __attribute__((always_inline, target("avx2,fma"))) void scale_row(float *row, int64_t size, float by) {
  for (int64_t d = 0; d < size; d += 8) _mm256_storeu_ps(row + d, _mm256_mul_ps(_mm256_loadu_ps(row + d), _mm256_set1_ps(by)));
}

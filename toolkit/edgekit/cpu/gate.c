/* SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020) for x86-64 processors with AVX2: both halves of a product as it comes, where
   engines first copy them apart. */

#include "gate.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include "floats.h"

#define AVX2 __attribute__((target("avx2,fma")))

enum { PART = 4096 }; /* columns at a time: some 2 us */

typedef struct {
  const float *x;
  float *y;
  int64_t width, parts; /* parts: of a row */
} work_t;

/* g / (1 + e^-g), of e^-|g|, which is at most 1. */
AVX2 static inline __m256 silu(__m256 g) {
  const __m256 one = _mm256_set1_ps(1), sign = _mm256_set1_ps(-0.0f);
  __m256 e = exponential(_mm256_or_ps(g, sign));
  __m256 above = _mm256_blendv_ps(one, e, g); /* by g's sign */
  return _mm256_mul_ps(g, _mm256_div_ps(above, _mm256_add_ps(one, e)));
}

AVX2 static void gate_part(void *data, size_t part) {
  const work_t *work = data;
  int64_t row = (int64_t) part / work->parts, i = (int64_t) part % work->parts * PART, end = i + PART < work->width ? i + PART : work->width;
  const float *g = work->x + row * 2 * work->width, *u = g + work->width;
  float *y = work->y + row * work->width;
  for (; i + 8 <= end; i += 8) _mm256_storeu_ps(y + i, _mm256_mul_ps(silu(_mm256_loadu_ps(g + i)), _mm256_loadu_ps(u + i)));
  for (; i < end; i++) y[i] = _mm256_cvtss_f32(silu(_mm256_set1_ps(g[i]))) * u[i];
}

void *edgekit_gate(const float *x, float *y, int64_t rows, int64_t width, edgekit_parallel_t *parallel, void *context) {
  work_t work = {x, y, width, (width + PART - 1) / PART};
  return parallel(context, gate_part, (size_t) (rows * work.parts), &work);
}
#endif

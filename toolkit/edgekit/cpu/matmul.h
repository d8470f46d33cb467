/* x @ W.T + b for float32 x and W in portable INT4 or INT8, from the bytes of the artifact as they lie there; see matmul.c. */

#pragma once
#include <stddef.h>
#include <stdint.h>

/* W[n, k] = (code - zero) * scale, its rows filled up to whole groups. 4 bits: two codes a byte, low nibble first, and so the zero points of
   a row; 8 bits: bytes. zeros: NULL where all are 8 (4 bits) or 128. */
typedef struct {
  const uint8_t *codes, *zeros;
  const float *scales;
  int64_t n, k;
  int bits, group;
} edgekit_weights_t;

/* m rows of x as int8 codes, and of each group its scale and the sum of its codes. They lie as they are read: of up to six
   rows their first 64 or 128 columns, then the next columns. */
typedef struct {
  int8_t *codes;
  float *scales, *counts;
  int64_t m;
} edgekit_inputs_t;

/* Whether this processor can run what follows. */
int edgekit_matmul_runs(void);

/* How it multiplies and sums bytes: EDGEKIT_AVX2 in two steps, the others in one, by an instruction of AVX-512 or by AVX2's form of it. The
   bits are the same. The environment's EDGEKIT_CPU=avx2 keeps to the first. */
enum { EDGEKIT_AVX2, EDGEKIT_AVX512_VNNI, EDGEKIT_AVX_VNNI };
int edgekit_matmul_dots(void);

/* Whether there is a kernel for these bits and this group. */
int edgekit_matmul_takes(int64_t bits, int64_t group);

/* Sizes in bytes of codes, zero points and scales. */
size_t edgekit_codes_size(const edgekit_weights_t *w);
size_t edgekit_zeros_size(const edgekit_weights_t *w);
size_t edgekit_scales_size(const edgekit_weights_t *w);

/* The inputs of m rows, laid out in memory of edgekit_inputs_size bytes. */
size_t edgekit_inputs_size(int64_t m, const edgekit_weights_t *w);
edgekit_inputs_t edgekit_inputs(void *memory, int64_t m, const edgekit_weights_t *w);

/* Rows first to last - 1 of x [m, k] become codes. */
void edgekit_quantize_inputs(const float *x, const edgekit_weights_t *w, const edgekit_inputs_t *a, int64_t first, int64_t last);

/* Columns first to last - 1 of y [m, n]. bias: [n] or NULL. A column is the same whatever the others are, and a row whatever m is. */
void edgekit_matmul(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t first, int64_t last);

/* Has part called with 0 to parts - 1, on as many threads as it likes, and returns when all are done: NULL, or what went wrong. */
typedef void edgekit_part_t(void *data, size_t part);
typedef void *edgekit_parallel_t(void *context, edgekit_part_t *part, size_t parts, void *data);

/* y [m, n] = x [m, k] @ W.T + bias, m > 0; memory: edgekit_inputs_size bytes. What parallel returns. */
void *edgekit_product(const edgekit_weights_t *w, const float *bias, const float *x, float *y, int64_t m, void *memory,
                      edgekit_parallel_t *parallel, void *context);

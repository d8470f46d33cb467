/* The gate of a decoder's feed-forward layer; see gate.c. */

#pragma once
#include "matmul.h"

/* y [rows, width] = silu(g) * u of x [rows, 2 * width], whose rows have g first, then u. What parallel returns. */
void *edgekit_gate(const float *x, float *y, int64_t rows, int64_t width, edgekit_parallel_t *parallel, void *context);

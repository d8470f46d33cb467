"""Kernels of our own for processors on which those of the engines leave speed unused; engines bind them.

matmul.h       the products with INT4 and INT8 weights: inputs, outputs, layouts
matmul.c       for x86-64 with AVX2: inputs, one row of them, threads; panels.c: several rows; inner.h: what both share
attention.h    causal attention with a cache of keys and values in float16; attention.c: with AVX2
rows.h         causal attention over a cache in float32 that is laid out by another; rows.c: with AVX2; softmax.h: what both share
gate.h         silu(gate) * up; gate.c: with AVX2
floats.h       e^x, sums and the like of eight floats, for all of them
products.py    whether the products run here, and pay
"""

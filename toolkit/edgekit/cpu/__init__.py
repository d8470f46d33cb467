"""Kernels of our own for processors on which those of the engines leave speed unused; engines bind them.

matmul.h     the products with INT4 and INT8 weights: inputs, outputs, layouts
matmul.c     for x86-64 with AVX2
attention.h  causal attention with a cache of keys and values in float16
attention.c  for x86-64 with AVX2
products.py  whether they run here, and pay
"""

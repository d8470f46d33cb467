"""Kernels of our own for processors on which those of the engines leave speed unused. C only; engines bind them.

matmul.h  the products with INT4 and INT8 weights: inputs, outputs, layouts
matmul.c  for x86-64 with AVX2
"""

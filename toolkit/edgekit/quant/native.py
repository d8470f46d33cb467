"""kernel.c, where it was compiled when edgekit was installed: what ``quantize`` computes, bit for bit, several times as fast."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.quant.scheme import Format

Kernel = Callable[..., int]
VERSION = 1
"""Of kernel.c's interface and arithmetic; a library that was compiled from another one is not used."""


def load(path: Path) -> Kernel | None:
    """The compiled function, or None where there is none that fits."""
    if sys.byteorder != "little":
        return None
    try:
        library = ctypes.CDLL(str(path))
        if ctypes.c_int.in_dll(library, "edgekit_kernel_version").value != VERSION:
            return None
        kernel = library.edgekit_quantize
    except (OSError, AttributeError, ValueError):
        return None
    pointer, size, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    kernel.argtypes = (pointer, whole, size, size, whole, whole, whole, pointer, pointer, pointer)
    kernel.restype = ctypes.c_int
    return kernel


KERNEL = load(Path(__file__).with_name("_kernel.so"))
"""Lets other Python threads run while it works."""


def run(
    kernel: Kernel,
    weight: NDArray[np.float32] | NDArray[np.uint16],
    format: Format,
    search: bool,
    codes: NDArray[np.uint8],
    scales: NDArray[np.float16],
    zeros: NDArray[np.uint8],
) -> bool:
    """Quantizes ``weight`` [N, K], float32 or the bits of bfloat16, into the three arrays (all in C order; see ``QuantizedTensor``).

    False, with the arrays in no defined state, where a weight is not finite or too large for a grid.
    """
    arrays = (codes, scales, zeros)
    if not all(a.flags.c_contiguous for a in (weight, *arrays)):
        raise ValueError("the kernel takes arrays in C order")
    n, k = weight.shape
    places = [a.ctypes.data for a in arrays]
    return kernel(weight.ctypes.data, weight.dtype == np.uint16, n, k, format.bits, format.group, search, *places) == 0

"""kernel.c, where it was compiled when edgekit was installed: what ``quantize`` computes, bit for bit, several times as fast."""

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.quant.scheme import Format

Kernel = Callable[..., int]
VERSION = 3
"""Of kernel.c's interface and arithmetic; a library that was compiled from another one is not used."""


def load(path: Path) -> ctypes.CDLL | None:
    """The compiled library, or None where there is none that fits."""
    if sys.byteorder != "little":
        return None
    try:
        library = ctypes.CDLL(str(path))
        return library if ctypes.c_int.in_dll(library, "edgekit_kernel_version").value == VERSION else None
    except (OSError, ValueError):
        return None


def _function(name: str, arguments: Sequence[type[Any]]) -> Kernel | None:
    if LIBRARY is None:
        return None
    kernel: Kernel = getattr(LIBRARY, name)
    kernel.argtypes, kernel.restype = tuple(arguments), ctypes.c_int  # type: ignore[attr-defined]
    return kernel


LIBRARY = load(Path(__file__).with_name("_kernel.so"))
_POINTER, _SIZE, _WHOLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_MATRIX = (_POINTER, _SIZE)
# All let other Python threads run while they work.
KERNEL = _function("edgekit_quantize", (_POINTER, _WHOLE, _SIZE, _SIZE, _WHOLE, _WHOLE, _WHOLE, _POINTER, _POINTER, _POINTER))
COMPENSATE = _function("edgekit_compensate", (_SIZE, _SIZE, *_MATRIX * 5))
DESCEND = _function("edgekit_descend", (_SIZE, _SIZE, *_MATRIX * 5))


def run_columns(kernel: Kernel, arrays: Sequence[NDArray[np.float32]]) -> None:
    """``COMPENSATE`` or ``DESCEND`` on float32 arrays whose rows are contiguous, each with the bytes from row to row."""
    if not all(a.dtype == np.float32 and (a.strides[1] == 4 or a.shape[1] == 1) for a in arrays):
        raise ValueError("the kernel takes float32 rows in C order")
    n, k = arrays[0].shape
    kernel(n, k, *(v for a in arrays for v in (a.ctypes.data, a.strides[0] // 4)))


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

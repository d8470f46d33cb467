"""Two 4-bit values to a byte, low nibble first: the one packing every engine's file shares (docs/portable-int4.md)."""

import numpy as np
from numpy.typing import NDArray


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [..., 2m] of values 0..15 -> uint8 [..., m]: value 2i in the low half of byte i, value 2i + 1 in the high half.

    Raises ValueError for an odd last dimension. Values above 15 are the caller's mistake and spill into the neighbour.
    """
    if values.shape[-1] % 2:
        raise ValueError(f"pack_nibbles needs an even last dimension, got shape {values.shape}")
    packed: NDArray[np.uint8] = np.bitwise_or(values[..., 0::2], np.left_shift(values[..., 1::2], 4, dtype=np.uint8))
    return packed


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of ``pack_nibbles``: uint8 [..., m] -> uint8 [..., 2m] of values 0..15."""
    values = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 15, out=values[..., 0::2])
    np.right_shift(packed, 4, out=values[..., 1::2])
    return values


def pack_zero_points(zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, G] of 0..15 -> uint8 [N, ceil(G / 2)], low nibble first; each row starts a new byte and an odd G leaves a high nibble of 0.

    This is the layout of input ``zero_points`` of ONNX Runtime's MatMulNBits for 4 bits (for 8 bits it takes [N, G] as it is).
    """
    rows, groups = zeros.shape
    even = np.zeros((rows, groups + groups % 2), np.uint8)
    even[:, :groups] = zeros
    return pack_nibbles(even)


def unpack_zero_points(packed: NDArray[np.uint8], groups: int) -> NDArray[np.uint8]:
    """The inverse of ``pack_zero_points``: uint8 [N, ceil(groups / 2)] -> uint8 [N, groups]."""
    return np.ascontiguousarray(unpack_nibbles(packed)[:, :groups])

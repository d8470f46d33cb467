"""Round to nearest: scale and zero point of a group from its minimum and maximum, and the codes that follow from them.

Groups lie in columns: a block is float32 [g, B], column b one group. So every step is one elementwise NumPy call over long contiguous
rows, and no result depends on how the rows of a matrix were cut into blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

SMALLEST = np.float32(2.0**-14)
"""The smallest scale: float16's smallest normal number. A group that would want less gets this one and is still rounded correctly."""


def round_to_7_bits(scale: F32) -> F32:
    """The nearest float32 with at most 7 significant bits; halves go up. ``scale``: positive, normal."""
    bits = scale.view(np.uint32)
    return ((bits + np.uint32(1 << 16)) & np.uint32(0xFFFE0000)).view(np.float32)


def round_to_float16(scale: F32) -> F32:
    """The nearest float16, as float32. ``scale``: in float16's normal range."""
    return scale.astype(np.float16).astype(np.float32)


@dataclass(frozen=True)
class Grid:
    """What scales and codes of so many bits may be: codes 0..levels, scales SMALLEST..largest that ``round_scale`` leaves as they are."""

    levels: int
    largest: np.float32
    round_scale: Callable[[F32], F32]


GRIDS = {
    # largest: the greatest scale of its kind with levels * scale <= 65504, float16's maximum.
    4: Grid(15, np.float32(4352.0), round_to_7_bits),
    8: Grid(255, np.float32(256.75), round_to_float16),
}


@dataclass(frozen=True)
class Block:
    """Groups to quantize: ``w`` [g, B], and the least and greatest value of each, 0 always included (so that 0 stays exactly 0), [B]."""

    w: F32
    lo: F32
    hi: F32
    grid: Grid


def block(w: F32, grid: Grid) -> Block:
    """NaN and infinity in ``w`` show in ``lo`` or ``hi``."""
    zero = np.float32(0)
    return Block(w, np.minimum(np.minimum.reduce(w, axis=0), zero), np.maximum(np.maximum.reduce(w, axis=0), zero), grid)


def min_max(groups: Block) -> tuple[F32, F32]:
    """Scale and zero point (integers held as float32), each [B], of the grid that spans ``lo``..``hi``.

    ``scale = round_scale(max((hi - lo) / levels, SMALLEST))`` and ``zero = rint(-lo / scale)``, which is never above ``levels``. The
    scale may come out above ``grid.largest``: the caller refuses the tensor then. For an all-zero group: SMALLEST and 0.

    Round trip: ``|w - (q - z) * s| <= s / 2`` wherever w lies within ``(-z - 1/2) * s .. (levels - z + 1/2) * s``. Rounding the scale
    moves that edge inwards by at most ``levels / 128 * s`` for 4 bits (``levels / 2048 * s`` for 8), so everywhere
    ``|w - (q - z) * s| <= (1/2 + 15/128) * s`` for 4 bits and ``<= (1/2 + 255/2048) * s`` for 8. (Proof: docs/portable-int4.md.)
    """
    grid = groups.grid
    scale = grid.round_scale(np.maximum((groups.hi - groups.lo) / np.float32(grid.levels), SMALLEST))
    return scale, np.rint(-groups.lo / scale)


def steps(groups: Block, scale: F32, zero: F32, out: F32) -> F32:
    """The signed codes ``q - z`` = rint(w / scale) clipped to ``-zero .. levels - zero``, in ``out``; all float32 [g, B].

    The division is a true one: with a reciprocal, ties would fall wrongly.
    """
    np.divide(groups.w, scale, out=out)
    np.rint(out, out=out)
    np.maximum(out, -zero, out=out)
    np.minimum(out, np.float32(groups.grid.levels) - zero, out=out)
    return out


def squared_error(groups: Block, scale: F32, zero: F32, out: F32) -> F32:
    """Sum over each group of ``(w - (q - z) * s) ** 2``, [B]. ``out``: scratch [g, B]."""
    np.multiply(steps(groups, scale, zero, out), scale, out=out)
    np.subtract(groups.w, out, out=out)
    return column_sums(np.square(out, out=out))


def column_sums(values: F32) -> F32:
    """Sum of each column of [g, B], g a power of two, destroying ``values``.

    The lower half of the rows is added to the upper half until one is left. The order is fixed (NumPy's own sum chooses one by shape and
    processor), so a checkpoint has the same codes on every machine.
    """
    rows = len(values)
    while rows > 1:
        rows //= 2
        np.add(values[:rows], values[rows : 2 * rows], out=values[:rows])
    total: F32 = values[0].copy()
    return total

"""Scales for 4 bits with every zero point 8: weights ``(q - 8) * s``, for devices whose signed 4-bit weights have no zero point.

It is portable INT4 (any engine takes it), but one code reaches further down than up and nothing shifts the grid to where a group lies: its
squared error is 15 to 60 % above that of the affine form (docs/openvino.md). Trials and refit as in ``search.py``.
"""

import numpy as np

from edgekit.quant.rtn import F32, SMALLEST, Block
from edgekit.quant.search import fit

TRIALS = (6.4, 7.0, 7.5, 8.0, 8.6)
"""How many steps of the grid the greatest absolute weight is laid over; 7.5 is plain rounding."""
ZERO = np.float32(8)


def symmetric(groups: Block, scratch: tuple[F32, F32], *, search: bool) -> tuple[F32, F32]:
    """Scale and zero point (8), each [B], of every group. scratch: two arrays of the shape of ``groups.w``."""
    grid, top = groups.grid, np.maximum(groups.hi, -groups.lo)
    zero = np.full_like(top, ZERO)
    best = top / np.float32(7.5)
    if search:
        best_gain = np.full_like(top, -1)
        for trial in TRIALS:
            dot, square = fit(groups, np.maximum(top / np.float32(trial), SMALLEST), zero, scratch)
            fitted = dot / square
            better = dot * fitted > best_gain
            np.copyto(best_gain, dot * fitted, where=better)
            np.copyto(best, fitted, where=better)
    return np.minimum(grid.round_scale(np.maximum(best, SMALLEST)), grid.largest), zero

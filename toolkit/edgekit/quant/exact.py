"""Groups that already lie on a grid: the scale and zero point that give them back exactly.

A checkpoint may come from INT4 (a QAT release, another tool's dequantized weights, our own artifact read back). Its groups must not be
quantized a second time, also where they do not use all codes, so that min/max would choose another scale.
"""

import numpy as np
from numpy.typing import NDArray

from edgekit.quant.rtn import F32, SMALLEST, Block

LCM = 360360
"""Least common multiple of 1..15: on a 4-bit grid every ``w / max|w|`` is a fraction j / n with n <= 15, so LCM times it is an integer."""

STEPS: F32 = np.arange(1, 16)[:, None].astype(np.float32)
"""max|w| is n scales on a 4-bit grid, n in 1..15: the smallest n first, so that the largest scale wins."""

PROBE = 4
"""Rows looked at before a whole group is: on ordinary weights they rule out all but a few percent (bfloat16) or less."""


def reproduce(groups: Block, scale: F32, zero: F32) -> None:
    """Set ``scale`` and ``zero`` [B], in place, for every group that lies on a grid.

    Grids found: every ``(q - z) * s`` with q and z in 0..15 and a scale that ``groups.grid`` allows; the largest such scale is taken. For
    8 bits also those whose codes span 254 or 255, or whose scale is SMALLEST: all that quantizing to 8 bits makes.
    """
    top, levels = np.maximum(groups.hi, -groups.lo), groups.grid.levels
    columns = np.flatnonzero(_may_be_4_bit(groups.w[:PROBE], top))
    _adopt(groups, columns, np.divide(top[columns], STEPS), 15, scale, zero)
    if levels > 15:
        span = groups.hi - groups.lo
        trials = np.stack([span / np.float32(levels), span / np.float32(levels - 1), np.full_like(span, SMALLEST)])
        _adopt(groups, np.arange(len(span)), trials, levels, scale, zero)


def _may_be_4_bit(rows: F32, top: F32) -> NDArray[np.bool_]:
    """[B]: whether these few rows of each group allow a 4-bit grid. Never says no to one (float32 is off by at most 0.07 here)."""
    ratio = rows * (np.float32(LCM) / np.maximum(top, SMALLEST))
    off: F32 = np.maximum.reduce(np.abs(ratio - np.rint(ratio)), axis=0)
    return (off < np.float32(0.1)) & (top >= SMALLEST)


def _adopt(groups: Block, columns: NDArray[np.intp], trials: F32, levels: int, scale: F32, zero: F32) -> None:
    """Where a scale of ``trials`` [T, len(columns)] gives a column of the groups back with ==, set it; the first that does wins."""
    grid, span = groups.grid, groups.hi[columns] - groups.lo[columns]
    allowed = (trials >= SMALLEST) & (trials <= grid.largest) & (span <= np.float32(levels) * trials)
    trial, at = np.nonzero(allowed & (grid.round_scale(np.clip(trials, SMALLEST, grid.largest)) == trials))
    s, at = trials[trial, at], columns[at]
    for rows in (groups.w[:PROBE], groups.w):
        values = rows[:, at]
        same = np.flatnonzero((np.rint(values / s) * s == values).all(axis=0))
        s, at = s[same], at[same]
    settled, first = np.unique(at, return_index=True)
    scale[settled] = s[first]
    zero[settled] = -groups.lo[settled] / s[first]

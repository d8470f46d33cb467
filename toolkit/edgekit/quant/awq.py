"""Factors for the inputs of matrices, to be folded into what makes these inputs: columns that matter get more of their group's resolution.

``W x = (W diag(f)) (x / f)``. A group of ``W diag(f)`` is rounded with one step for all its columns, which for the weights as they were is
``step / f``: the greater f, the finer. Dividing the inputs costs nothing where a norm's gain or the rows of the matrix before can be
divided instead (``folds.py``).

``f = size ** a / weight ** b``, of each column the root mean squares of its inputs and of its weights; the exponents are those that leave
the least error in the outputs. Source: AWQ (Lin et al. 2023, arXiv:2306.00978), which has the size alone, ``b = 0``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.quant.columns import nearest
from edgekit.quant.gptq import F64, weighted_scales
from edgekit.quant.rtn import F32
from edgekit.quant.scheme import Format

SIZE, WEIGHT = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8), (0.0, 0.25, 0.5, 0.75, 1.0)
"""Exponents a and b that are tried; with both 0 nothing is folded."""
SAMPLE = 128
"""Rows of each matrix by which exponents are judged, evenly spread."""
REACH = 256.0
"""Factors lie between its inverse and it, so that no folded value leaves float16."""


def factors(
    weights: Sequence[F32], moments: F64, format: Format, *, tied: NDArray[np.intp] | None = None, powers_of_two: bool = False
) -> F32:
    """f [K], float32, for matrices [N, K] that meet the same inputs, whose squares have the mean or sum ``moments`` [K].

    tied: for each column a number; those of one number get one factor (query heads that read one value head).
    """
    group = np.arange(len(moments)) if tied is None else tied
    size = _sizes(moments, group)
    weight = _sizes(np.sum([(w.astype(np.float64) ** 2).mean(axis=0) for w in weights], axis=0), group)
    sample = [np.ascontiguousarray(w[:: max(1, len(w) // SAMPLE)]) for w in weights]
    share = [len(w) / len(s) for w, s in zip(weights, sample, strict=True)]
    best: F32 = np.ones(len(moments), np.float32)
    least = np.inf
    for a in SIZE:
        for b in WEIGHT:
            f = _within(size**a / weight**b, group, powers_of_two)
            error = sum(part * _error(w * f, moments / f.astype(np.float64) ** 2, format) for part, w in zip(share, sample, strict=True))
            if error < least:
                best, least = f, error
    return best


def balanced(moments: F64, squares: F64, *, tied: NDArray[np.intp] | None = None, powers_of_two: bool = False) -> F32:
    """f [K], float32, with both exponents a half. moments, squares: mean squares of the inputs and of the columns of the weights, [K]."""
    group = np.arange(len(moments)) if tied is None else tied
    return _within(np.sqrt(_sizes(moments, group) / _sizes(squares, group)), group, powers_of_two)


def _within(raw: F64, group: NDArray[np.intp], powers_of_two: bool) -> F32:
    raw = np.clip(raw / np.sqrt(raw.max() * raw.min()), 1 / REACH, REACH)
    return (np.exp2(np.rint(np.log2(raw))) if powers_of_two else raw)[group].astype(np.float32)


def _sizes(squares: F64, group: NDArray[np.intp]) -> F64:
    """One for each group of columns, even."""
    return _even(np.bincount(group, squares) / np.bincount(group))


def _even(squares: F64) -> F64:
    """Roots, over their geometric mean; what is 0 counts as very small."""
    found = np.sqrt(np.maximum(squares, max(float(squares.max()) * 1e-12, 1e-30)))
    even: F64 = found / np.exp(np.log(found).mean())
    return even


def _error(w: F32, moments: F64, format: Format) -> float:
    """Of the outputs, were the inputs not correlated: cheap, and it chooses as well as all of their moments do."""
    (n, k), g = w.shape, format.group
    groups = -(-k // g)
    padded = np.zeros((n, groups * g), np.float32)
    padded[:, :k] = w
    importance = np.zeros(groups * g, np.float32)
    importance[:k] = moments / max(float(moments.mean()), 1e-30)
    scale, zero = (a[..., None] for a in weighted_scales(padded.reshape(n, groups, g), importance.reshape(groups, g)))
    error = padded.reshape(n, groups, g)
    error = error - nearest(error, scale, zero) * scale
    return float((np.square(error, dtype=np.float64).sum(axis=0).reshape(-1)[:k] * moments).sum())

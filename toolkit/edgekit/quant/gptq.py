"""Calibrated rounding for 4 bits: codes and scales that keep a layer's *outputs*, for inputs like those that were seen.

A Linear weight W [N, K] meets inputs x; what its rounding Q does to the outputs is, summed over the inputs, ``tr((W - Q) H (W - Q)')``
with ``H = sum of x x'`` [K, K].

- Scales: as in ``search.py``, with each weight's squared error counted ``H[k, k]`` times (importance-weighted least squares; the diagonal
  of H is what llama.cpp calls an importance matrix). They are settled before any code, from the weights as they are.
- Codes: column by column, each column's rounding error taken out of the columns not rounded yet by what H says they share
  (GPTQ: Frantar et al. 2022, arXiv:2210.17323, after OBQ; the Cholesky form of its section 3.3). Columns go in falling order of H[k, k].
  Since the scales stand already, the order leaves no trace in the format (no g_idx).
- Polish: scales and codes once more, each the best given all others, which only lowers the error.

The format is the portable one: ``(q - z) * s`` with 7-bit scales, whatever the method.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.parallel import cores
from edgekit.quant import columns
from edgekit.quant.columns import nearest
from edgekit.quant.exact import reproduce
from edgekit.quant.pack import pack_nibbles
from edgekit.quant.rtn import F32, GRIDS, SMALLEST, block, min_max
from edgekit.quant.scheme import Format, QuantizedTensor
from edgekit.quant.search import GAIN, TRIALS

F64 = NDArray[np.float64]
DAMPING = 0.003
"""Share of the mean of H's diagonal that is added to it, so that it can be inverted. (The paper has 1 %; docs/quantization.md compares.)"""
COLUMNS = 128
"""Columns rounded before their errors are carried over to the rest in one product."""
ROWS, SEARCHED = 64, 32
"""Rows that a thread takes at least, and whose scales are searched at a time."""
SWEEPS = 2
"""Of the polish over all groups."""


@dataclass(frozen=True)
class Fit:
    """Codes ``q - z``, scales and zero points of every weight, float32 [N, K]; those of a group are equal."""

    codes: F32
    scales: F32
    zeros: F32


def quantize_for(
    weight: F32, inputs: F64, format: Format, *, compensate: bool = True, sweeps: int = SWEEPS, threads: int | None = None
) -> QuantizedTensor:
    """Quantize ``weight`` float32 [N, K] (finite, within a float16 grid's reach) to portable INT4 for the inputs it will meet.

    inputs: their second moments [K, K], symmetric and positive semidefinite, of any scale.
    compensate: False rounds to nearest with the weighted scales, for which the diagonal [K] of the moments is enough.
    Raises ValueError for a format of other bits or shapes that do not fit.
    """
    n, k = weight.shape
    if format.bits != 4 or inputs.shape not in ((k, k), () if compensate else (k,)):
        raise ValueError(f"{format}, inputs {inputs.shape}, weight {weight.shape}")
    g = format.group
    groups = -(-k // g)
    padded = np.zeros((n, groups * g), np.float32)
    padded[:, :k] = weight
    importance = np.zeros(groups * g)
    importance[:k] = np.diag(inputs) if inputs.ndim == 2 else inputs
    scales, zeros = weighted_scales(padded.reshape(n, groups, g), importance.reshape(groups, g).astype(np.float32), threads)
    fit = Fit(np.empty_like(weight), *(np.ascontiguousarray(np.repeat(a, g, axis=1)[:, :k]) for a in (scales, zeros)))
    if compensate:
        fit.codes[:] = _compensated(weight, inputs, fit.scales, fit.zeros, threads)
        _polished(weight, inputs, fit, g, sweeps, threads)
    else:
        fit.codes[:] = nearest(weight, fit.scales, fit.zeros)
    scales = fit.scales[:, ::g]
    codes = np.repeat(zeros, g, axis=1)
    codes[:, :k] += fit.codes
    packed = pack_nibbles(codes.astype(np.uint8)).reshape(n, groups, g // 2)
    return QuantizedTensor((n, k), format, packed, scales.astype(np.float16), zeros.astype(np.uint8))


def weighted_scales(weight: F32, importance: F32, threads: int | None = None) -> tuple[F32, F32]:
    """Scale and zero point of every group, float32 [N, G], for ``weight`` [N, G, g] and ``importance`` [G, g] (at least 0)."""
    mean = importance.mean(axis=1, keepdims=True)
    h = np.where(mean > 0, importance / np.maximum(mean, np.float32(1e-30)), np.float32(1))
    scales = np.empty(weight.shape[:2], np.float32)
    zeros = np.empty_like(scales)

    def work(rows: slice) -> None:
        for at in range(rows.start, rows.stop, SEARCHED):
            part = slice(at, min(at + SEARCHED, rows.stop))
            scales[part], zeros[part] = _search(weight[part], h)

    _over_rows(work, len(weight), threads)
    return scales, zeros


def _search(w: F32, h: F32) -> tuple[F32, F32]:
    grid, levels = GRIDS[4], np.float32(15)
    rows, groups, g = w.shape
    piece = block(w.reshape(-1, g).T, grid)
    plain = [part.reshape(rows, groups) for part in min_max(piece)]
    lo, span = piece.lo.reshape(rows, groups), (piece.hi - piece.lo).reshape(rows, groups)
    best_error = _error(w, h, plain[0], plain[1]) * GAIN
    best_scale, best_zero = plain
    for trial in TRIALS:
        scale = np.maximum(span / np.float32(trial), SMALLEST)
        zero = np.clip(np.rint(-lo / scale - np.float32((trial - 15) / 2)), np.float32(0), levels)
        r = nearest(w, scale[..., None], zero[..., None])
        square = np.maximum((h * r * r).sum(axis=-1), np.float32(1e-12))
        fitted = np.minimum(grid.round_scale(np.maximum((h * w * r).sum(axis=-1) / square, SMALLEST)), grid.largest)
        error = _error(w, h, fitted, zero)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale, best_zero = np.where(better, fitted, best_scale), np.where(better, zero, best_zero)
    flat = [np.ascontiguousarray(part).reshape(-1) for part in (best_scale, best_zero)]
    reproduce(piece, flat[0], flat[1])  # what lies on a grid keeps it
    return flat[0].reshape(rows, groups), flat[1].reshape(rows, groups)


def _error(w: F32, h: F32, scale: F32, zero: F32) -> F32:
    total: F32 = (h * np.square(w - nearest(w, scale[..., None], zero[..., None]) * scale[..., None])).sum(axis=-1)
    return total


def _compensated(weight: F32, inputs: F64, scale: F32, zero: F32, threads: int | None) -> F32:
    """Signed codes [N, K] by GPTQ, with the scale and zero point of every weight given."""
    k = weight.shape[1]
    order = np.argsort(-np.diag(inputs), kind="stable")
    upper = inverse_root(inputs[np.ix_(order, order)]).astype(np.float32)
    codes = np.empty_like(weight)

    def work(rows: slice) -> None:
        w, s, z = (np.ascontiguousarray(a[rows][:, order]) for a in (weight, scale, zero))
        r = np.empty_like(w)
        for start in range(0, k, COLUMNS):
            stop = min(start + COLUMNS, k)
            piece = slice(start, stop)
            errors = columns.compensate(w[:, piece], s[:, piece], z[:, piece], upper[piece, piece], r[:, piece])
            w[:, stop:] -= errors @ upper[piece, stop:]
        codes[rows, order] = r

    _over_rows(work, len(weight), threads)
    return codes


def _polished(weight: F32, inputs: F64, fit: Fit, group: int, sweeps: int, threads: int | None) -> None:
    """Lowers ``tr(E H E')``, ``E = W - r s``, group by group, in place: the group's scale by least squares, given everything else, then
    its codes one by one (coordinate descent; Behdin et al. 2023, arXiv:2309.01885, do so with GPTQ's scales). It never rises.
    """
    k = weight.shape[1]
    h = _damped(inputs).astype(np.float32)
    h /= np.float32(max(float(np.diag(h).mean()), 1e-30))

    def work(rows: slice) -> None:
        w, r, s, z = weight[rows], fit.codes[rows], fit.scales[rows], fit.zeros[rows]
        error = w - r * s
        for _ in range(sweeps):
            for start in range(0, k, group):
                piece = slice(start, min(start + group, k))
                pull = error @ h[:, piece]
                own = np.ascontiguousarray(h[piece, piece])
                _refit(r[:, piece], s[:, piece], pull, own)
                columns.descend(s[:, piece], z[:, piece], own, pull, r[:, piece])
                error[:, piece] = w[:, piece] - r[:, piece] * s[:, piece]

    _over_rows(work, len(weight), threads)


def _refit(r: F32, s: F32, pull: F32, h: F32) -> None:
    """Least squares of one group's scale [N, g] (equal along g), given its codes; ``pull`` = E H follows it. To 7 bits, in place."""
    own = r @ h
    square = (own * r).sum(axis=1)
    step = (pull * r).sum(axis=1) / np.maximum(square, np.float32(1e-12))
    old = s[:, 0]
    wanted = np.minimum(GRIDS[4].round_scale(np.maximum(old + step, SMALLEST)), GRIDS[4].largest)
    # The error is a parabola in the scale, so of two 7-bit values the nearer to its foot is better: also than the old one.
    sound = (square > 0) & (np.abs(wanted - old) < np.float32(0.5) * old)
    new = np.where(sound, wanted, old)
    pull -= (new - old)[:, None] * own
    s[:] = new[:, None]


def _over_rows(work: Callable[[slice], None], n: int, threads: int | None) -> None:
    """Rows are settled each by itself; threads share them in equal parts."""
    count = max(1, min(threads or cores(), -(-n // ROWS)))
    step = -(-n // count)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, [slice(at, min(at + step, n)) for at in range(0, n, step)]))


def _damped(inputs: F64) -> F64:
    h = inputs.copy()
    at = np.arange(len(h))
    mean = float(h[at, at].mean())
    h[at, at] += DAMPING * mean if mean > 0 else 1.0
    return h


def inverse_root(inputs: F64) -> F64:
    """The upper triangular U with ``U' U`` the inverse of the damped ``inputs``: with rows and columns in reversed order, the inverse of a
    Cholesky factor is the factor of an inverse."""
    return np.ascontiguousarray(_inverse_cholesky(_damped(inputs)[::-1, ::-1])[::-1, ::-1])


def _inverse_cholesky(h: F64) -> F64:
    """The inverse of h's lower Cholesky factor, by halves: nearly all of the work is in matrix products, which use every core."""
    n = len(h)
    if n <= COLUMNS:
        return np.tril(np.linalg.inv(np.linalg.cholesky(h)))
    half = n // 2
    out = np.zeros_like(h)
    out[:half, :half] = first = _inverse_cholesky(h[:half, :half])
    below = h[half:, :half] @ first.T
    out[half:, half:] = rest = _inverse_cholesky(h[half:, half:] - below @ below.T)
    out[half:, :half] = -(rest @ (below @ first))
    return out

"""Calibrated rounding for 4 bits: codes and scales that keep a layer's *outputs*, for inputs like those that were seen.

A Linear weight W [N, K] meets inputs x; what its rounding Q does to the outputs is, summed over the inputs, ``tr((W - Q) H (W - Q)')``
with ``H = sum of x x'`` [K, K].

- Scales: as in ``search.py``, with each weight's squared error counted ``H[k, k]`` times (importance-weighted least squares; the diagonal
  of H is what llama.cpp calls an importance matrix). They are settled before any code, from the weights as they are.
- Codes: column by column, each column's rounding error taken out of the columns not rounded yet by what H says they share
  (GPTQ: Frantar et al. 2022, arXiv:2210.17323, after OBQ), from a Cholesky factor of H itself, so that H need not be inverted (LDLQ: Chee
  et al. 2023, arXiv:2307.13304, whose theorem 6 shows the two to be one). Columns go in falling order of H[k, k]. Since the scales stand
  already, the order leaves no trace in the format (no g_idx).
- Polish: scales and codes once more, each the best given all others, which only lowers the error.

The format is the portable one: ``(q - z) * s`` with 7-bit scales, whatever the method.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

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
"""Share of the mean of H's diagonal that is added to it, so that it has a Cholesky factor (the paper: 1 %)."""
COLUMNS = 128
"""Columns rounded before their errors are carried over to the rest in one product."""
ROWS, SEARCHED = 256, 32
"""Rows that a thread takes at least, and whose scales are searched at a time."""
SWEEPS = 2
"""Of the polish over all groups."""


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs that matrices of K columns will meet. What codes need of it is computed once for all of these.

    moments: their second moments [K, K], symmetric and positive semidefinite, of any scale; or only the diagonal of these, [K].
    """

    moments: F64

    @property
    def importance(self) -> F64:
        """[K]."""
        return np.diag(self.moments) if self.moments.ndim == 2 else self.moments

    @cached_property
    def damped(self) -> F32:
        """H with the damping, over the mean of its diagonal, [K, K]."""
        mean = self._mean
        h = (self.moments / (mean or 1.0)).astype(np.float32)
        at = np.arange(len(h))
        h[at, at] = (self.importance + self._damping) / (mean or 1.0)
        return h

    @cached_property
    def factor(self) -> tuple[NDArray[np.intp], F32, list[F32]]:
        """An order of the columns; and of C, upper triangular, ``C C'`` the damped H in that order, cut into blocks of ``COLUMNS``: what is
        above each block of its diagonal times that block's inverse, in one [K, K], and these inverses."""
        order = np.argsort(-self.importance, kind="stable")
        back = order[::-1]  # C is a Cholesky factor with rows and columns in reversed order
        h, carried = np.empty_like(self.moments), np.zeros(self.moments.shape, np.float32)
        pieces, at = _pieces(len(h), COLUMNS), np.arange(len(h))
        with ThreadPoolExecutor(cores()) as pool:  # "clip" as no index is out of bounds, and only then NumPy takes no copy
            list(pool.map(lambda rows: np.take(self.moments[back[rows]], back, axis=1, out=h[rows], mode="clip"), pieces))
        h[at, at] += self._damping
        c = cholesky(h)[::-1, ::-1]
        inverses = [np.triu(np.linalg.inv(c[piece, piece])) for piece in pieces]
        for piece, inverse in zip(pieces, inverses, strict=True):
            carried[: piece.start, piece] = c[: piece.start, piece] @ inverse
        return order, carried, [inverse.astype(np.float32) for inverse in inverses]

    @property
    def _mean(self) -> float:
        return float(self.importance.mean())

    @property
    def _damping(self) -> float:
        return DAMPING * self._mean if self._mean > 0 else 1.0


@dataclass(frozen=True)
class Fit:
    """codes: ``q - z``, float32 [N, K]. scales, zeros: of every group, float32 [N, G]."""

    codes: F32
    scales: F32
    zeros: F32


def quantize_for(
    weight: F32, inputs: Inputs, format: Format, *, compensate: bool = True, sweeps: int = SWEEPS, threads: int | None = None
) -> QuantizedTensor:
    """Quantize ``weight`` float32 [N, K] (finite, within a float16 grid's reach) to portable INT4 for the inputs it will meet.

    compensate: False rounds to nearest with the weighted scales, for which the diagonal of the moments is enough.
    Raises ValueError for a format of other bits or shapes that do not fit.
    """
    n, k = weight.shape
    if format.bits != 4 or inputs.moments.shape not in ((k, k), () if compensate else (k,)):
        raise ValueError(f"{format}, inputs {inputs.moments.shape}, weight {weight.shape}")
    g = format.group
    groups = -(-k // g)
    padded = np.zeros((n, groups * g), np.float32)
    padded[:, :k] = weight
    importance = np.zeros(groups * g)
    importance[:k] = inputs.importance
    scales, zeros = weighted_scales(padded.reshape(n, groups, g), importance.reshape(groups, g).astype(np.float32), threads)
    fit = Fit(np.empty_like(weight), scales, zeros)
    if compensate:
        _compensate(weight, inputs, fit, g, threads)
        _polish(weight, inputs, fit, g, sweeps, threads)
    else:
        fit.codes[:] = nearest(weight, *(np.repeat(a, g, axis=1)[:, :k] for a in (scales, zeros)))
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

    with _in_rows(len(weight), threads) as over_rows:
        over_rows(work)
    return scales, zeros


def _search(w: F32, h: F32) -> tuple[F32, F32]:
    grid, levels = GRIDS[4], np.float32(15)
    rows, groups, g = w.shape
    piece = block(w.reshape(-1, g).T, grid)
    plain = [part.reshape(rows, groups) for part in min_max(piece)]
    lo, span = piece.lo.reshape(rows, groups), (piece.hi - piece.lo).reshape(rows, groups)
    best_error = _error(w, h, plain[0], plain[1]) * GAIN
    best_scale: F32
    best_zero: F32
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


def _compensate(weight: F32, inputs: Inputs, fit: Fit, group: int, threads: int | None) -> None:
    """Codes by GPTQ, with scales and zero points given.

    With e the errors of a row's weights, that of its outputs is ``|e C|**2``. Each block in turn is rounded, column by column, to what
    makes its own part of ``e C`` least, given the errors before it. Over the block's inverse this is as if they had been added to the
    weights, and what then follows within the block is GPTQ's recursion, whose factor of the inverse is C's inverse.
    """
    n, k = weight.shape
    order, carried, own = inputs.factor
    ordered, codes, errors = (np.empty((n, k), np.float32) for _ in range(3))

    def settle(rows: slice, piece: slice, pull: F32, upper: F32) -> None:
        of = order[piece] // group
        w, s, z = ordered[rows, piece], np.take(fit.scales[rows], of, axis=1), np.take(fit.zeros[rows], of, axis=1)
        columns.compensate(w + pull[rows], s, z, upper, codes[rows, piece])
        errors[rows, piece] = w - codes[rows, piece] * s

    with _in_rows(n, threads) as over_rows:
        over_rows(lambda rows: np.take(weight[rows], order, axis=1, out=ordered[rows], mode="clip"))
        for piece, upper in zip(_pieces(k, COLUMNS), own, strict=True):
            pull = errors[:, : piece.start] @ carried[: piece.start, piece]  # all rows at once: one product on every core
            over_rows(settle, piece, pull, upper)
        back = np.argsort(order)
        over_rows(lambda rows: np.take(codes[rows], back, axis=1, out=fit.codes[rows], mode="clip"))


def _polish(weight: F32, inputs: Inputs, fit: Fit, group: int, sweeps: int, threads: int | None) -> None:
    """Lowers ``tr(E H E')``, ``E = W - r s``, group by group, in place: the group's scale by least squares, given everything else, then
    its codes one by one (coordinate descent; Behdin et al. 2023, arXiv:2309.01885, do so with GPTQ's scales). It never rises.
    """
    n, k = weight.shape
    h, pieces = inputs.damped, list(enumerate(_pieces(k, group)))
    error = np.empty((n, k), np.float32)
    for i, piece in pieces:
        error[:, piece] = weight[:, piece] - fit.codes[:, piece] * fit.scales[:, i, None]

    def sweep(rows: slice, i: int, piece: slice, pull: F32, own: F32) -> None:
        r, s, z = fit.codes[rows, piece], fit.scales[rows, i], fit.zeros[rows, i]
        _refit(r, s, pull[rows], own)
        wide, zeros = (np.repeat(a[:, None], r.shape[1], axis=1) for a in (s, z))
        columns.descend(wide, zeros, own, pull[rows], r)
        error[rows, piece] = weight[rows, piece] - r * wide

    with _in_rows(n, threads) as over_rows:
        for i, piece in pieces * sweeps:
            over_rows(sweep, i, piece, error @ h[:, piece], np.ascontiguousarray(h[piece, piece]))


def _refit(r: F32, s: F32, pull: F32, h: F32) -> None:
    """Least squares of one group's scales [N], given its codes; ``pull`` = E H follows it. To 7 bits, in place."""
    own = r @ h
    square = (own * r).sum(axis=1)
    step = (pull * r).sum(axis=1) / np.maximum(square, np.float32(1e-12))
    wanted = np.minimum(GRIDS[4].round_scale(np.maximum(s + step, SMALLEST)), GRIDS[4].largest)
    # The error is a parabola in the scale, so of two 7-bit values the nearer to its foot is better: also than the old one.
    sound = (square > 0) & (np.abs(wanted - s) < np.float32(0.5) * s)
    new = np.where(sound, wanted, s)
    pull -= (new - s)[:, None] * own
    s[:] = new


def _pieces(k: int, width: int) -> list[slice]:
    return [slice(at, min(at + width, k)) for at in range(0, k, width)]


@contextmanager
def _in_rows(n: int, threads: int | None) -> Iterator[Callable[..., object]]:
    """Gives what calls a function for parts of ``n`` rows, in threads, with further arguments; rows are settled each by itself."""
    count = max(1, min(threads or cores(), -(-n // ROWS)))
    parts = _pieces(n, -(-n // count))
    if count == 1:
        yield lambda work, *given: work(slice(0, n), *given)
        return
    with ThreadPoolExecutor(count) as pool:
        yield lambda work, *given: list(pool.map(lambda rows: work(rows, *given), parts))


def cholesky(h: F64) -> F64:
    """The lower factor of a positive definite matrix [K, K], which is used up. Panel by panel: nearly all of the work is in matrix
    products, which use every core, where LAPACK's takes twice as long."""
    k = len(h)
    for panel in _pieces(k, 2 * COLUMNS):
        h[panel.start :, panel] -= h[panel.start :, : panel.start] @ h[panel, : panel.start].T
        own = np.linalg.cholesky(h[panel, panel])
        h[panel, panel] = own
        h[panel.stop :, panel] = h[panel.stop :, panel] @ np.linalg.inv(own).T
        h[panel, panel.stop :] = 0
    return h

"""Calibrated rounding for 4 bits: codes and scales that keep a layer's *outputs*, for inputs like those that were seen.

A Linear weight W [N, K] meets inputs x; what its rounding Q does to the outputs is, summed over the inputs, ``tr((W - Q) H (W - Q)')``
with ``H = sum of x x'`` [K, K].

- Scales: as in ``search.py``, with each weight's squared error counted ``H[k, k]`` times (importance-weighted least squares; the diagonal
  of H is what llama.cpp calls an importance matrix). They are settled before any code, from the weights as they are.
- Codes: column by column, each column's rounding error taken out of the columns not rounded yet by what H says they share
  (GPTQ: Frantar et al. 2022, arXiv:2210.17323, after OBQ; the Cholesky form of its section 3.3). Columns go in falling order of H[k, k].
  Since the scales stand already, the order leaves no trace in the format (no g_idx).

The format is the portable one: ``(q - z) * s`` with 7-bit scales, whatever the method.
"""

import numpy as np
from numpy.typing import NDArray

from edgekit.quant.exact import reproduce
from edgekit.quant.pack import pack_nibbles
from edgekit.quant.rtn import F32, GRIDS, SMALLEST, block, min_max
from edgekit.quant.scheme import Format, QuantizedTensor
from edgekit.quant.search import GAIN, TRIALS

F64 = NDArray[np.float64]
DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it, so that it can be inverted (the paper's 1 %)."""
COLUMNS = 128
"""Columns rounded before their errors are carried over to the rest in one product."""
ROWS = 256
"""Rows whose scales are searched at a time."""


def quantize_for(weight: F32, inputs: F64, format: Format, *, compensate: bool = True) -> QuantizedTensor:
    """Quantize ``weight`` float32 [N, K] (finite, within a float16 grid's reach) to portable INT4 for the inputs it will meet.

    inputs: their second moments [K, K], symmetric and positive semidefinite, of any scale.
    compensate: False rounds to nearest with the weighted scales.
    Raises ValueError for a format of other bits or shapes that do not fit.
    """
    n, k = weight.shape
    if format.bits != 4 or inputs.shape != (k, k):
        raise ValueError(f"{format}, inputs {inputs.shape}, weight {weight.shape}")
    g = format.group
    groups = -(-k // g)
    padded = np.zeros((n, groups * g), np.float32)
    padded[:, :k] = weight
    importance = np.zeros(groups * g)
    importance[:k] = np.diag(inputs)
    scales, zeros = weighted_scales(padded.reshape(n, groups, g), importance.reshape(groups, g).astype(np.float32))
    s, z = np.repeat(scales, g, axis=1)[:, :k], np.repeat(zeros, g, axis=1)[:, :k]
    codes = np.repeat(zeros, g, axis=1)
    codes[:, :k] = (_compensated(weight, inputs, s, z) if compensate else _nearest(weight, s, z)) + z
    packed = pack_nibbles(codes.astype(np.uint8)).reshape(n, groups, g // 2)
    return QuantizedTensor((n, k), format, packed, scales.astype(np.float16), zeros.astype(np.uint8))


def weighted_scales(weight: F32, importance: F32) -> tuple[F32, F32]:
    """Scale and zero point of every group, float32 [N, G], for ``weight`` [N, G, g] and ``importance`` [G, g] (at least 0)."""
    mean = importance.mean(axis=1, keepdims=True)
    h = np.where(mean > 0, importance / np.maximum(mean, np.float32(1e-30)), np.float32(1))
    scales = np.empty(weight.shape[:2], np.float32)
    zeros = np.empty_like(scales)
    for at in range(0, len(weight), ROWS):
        scales[at : at + ROWS], zeros[at : at + ROWS] = _search(weight[at : at + ROWS], h)
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
        r = _nearest(w, scale[..., None], zero[..., None])
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
    total: F32 = (h * np.square(w - _nearest(w, scale[..., None], zero[..., None]) * scale[..., None])).sum(axis=-1)
    return total


def _nearest(w: F32, scale: F32, zero: F32) -> F32:
    """Signed codes ``q - z``."""
    codes: F32 = np.clip(np.rint(w / scale), -zero, np.float32(15) - zero)
    return codes


def _compensated(weight: F32, inputs: F64, scale: F32, zero: F32) -> F32:
    """Signed codes [N, K] by GPTQ, with the scale and zero point of every weight given."""
    k = weight.shape[1]
    order = np.argsort(-np.diag(inputs), kind="stable")
    w = weight[:, order].astype(np.float32)
    s, z = scale[:, order], zero[:, order]
    u = _inverse_root(inputs[np.ix_(order, order)]).astype(np.float32)
    codes = np.empty_like(w)
    for start in range(0, k, COLUMNS):
        stop = min(start + COLUMNS, k)
        errors = np.empty((len(w), stop - start), np.float32)
        for i in range(start, stop):
            r = _nearest(w[:, i], s[:, i], z[:, i])
            codes[:, i] = r
            errors[:, i - start] = (w[:, i] - r * s[:, i]) / u[i, i]
            w[:, i + 1 : stop] -= np.outer(errors[:, i - start], u[i, i + 1 : stop])
        w[:, stop:] -= errors @ u[start:stop, stop:]
    out = np.empty_like(codes)
    out[:, order] = codes
    return out


def _inverse_root(inputs: F64) -> F64:
    """The upper triangular U with ``U' U`` the inverse of the damped ``inputs``."""
    h = inputs.copy()
    at = np.arange(len(h))
    mean = float(h[at, at].mean())
    h[at, at] += DAMPING * mean if mean > 0 else 1.0
    upper: F64 = np.linalg.cholesky(np.linalg.inv(h)).T
    return upper

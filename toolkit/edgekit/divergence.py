"""How far one model's predictions are from another's: the figures of ``edge verify`` and of the gate in ``edge build``.

The definitions are those of llama-perplexity --kl-divergence (llama.cpp, tools/perplexity), so that figures compare: P is the reference,
Q what is measured, t the token that really comes next, and every mean runs over the scored positions, n of them.

    mean KL      mean of  sum over v of P(v) * ln(P(v) / Q(v)),  in nats
    RMS delta-p  root of the mean of  (Q(t) - P(t)) ** 2
    same top-1   share of positions where the likeliest token of both is the same
    perplexity   exp of the mean of  -ln P(t)  and of  -ln Q(t)

Errors are standard errors of a mean over n positions, ``std / sqrt(n - 1)``, carried through root and exponential to first order.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
ROWS = 64
"""Positions that are compared at a time, in float64: 50 MB at a vocabulary of 100,000."""


@dataclass(frozen=True)
class Scores:
    """What was found at each of n positions, [n]. nll: ``-ln`` of the probability of the token that came next, for P and for Q."""

    kl: F64
    delta_p: F64
    same: NDArray[np.bool_]
    reference_nll: F64
    nll: F64


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error (NaN for a single position)."""

    value: float
    error: float


@dataclass(frozen=True)
class Figures:
    """positions: how many were scored. kl_median to kl_max: quantiles of the KL divergence over them."""

    positions: int
    mean_kl: Estimate
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    rms_delta_p: Estimate
    same_top: Estimate
    reference_perplexity: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate


def compare(reference: F32, found: F32, following: Sequence[int]) -> Scores:
    """Scores of logits [n, V] against the reference's at the same n positions; ``following``: the n tokens that came next.

    Raises ValueError for shapes that do not fit, or logits that are not finite.
    """
    if reference.shape != found.shape or reference.ndim != 2 or len(following) != len(reference):
        raise ValueError(f"logits {reference.shape} and {found.shape} for {len(following)} tokens")
    if not (np.isfinite(reference).all() and np.isfinite(found).all()):
        raise ValueError("logits that are not finite")
    tokens = np.asarray(following, np.int64)
    return join(_compare(reference[at : at + ROWS], found[at : at + ROWS], tokens[at : at + ROWS]) for at in range(0, len(reference), ROWS))


def _compare(reference: F32, found: F32, following: NDArray[np.int64]) -> Scores:
    p, q = _log_softmax(reference), _log_softmax(found)
    # Rounding may leave -1e-17 for equal distributions.
    kl = np.maximum(np.einsum("nv,nv->n", np.exp(p), p - q), 0.0)
    rows = np.arange(len(following))
    wanted, got = p[rows, following], q[rows, following]
    return Scores(kl, np.exp(got) - np.exp(wanted), reference.argmax(-1) == found.argmax(-1), -wanted, -got)


def _log_softmax(logits: F32) -> F64:
    shifted: F64 = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def join(parts: Iterable[Scores]) -> Scores:
    """The scores of all positions of ``parts``, in order."""
    held = list(parts)
    return Scores(
        np.concatenate([s.kl for s in held]),
        np.concatenate([s.delta_p for s in held]),
        np.concatenate([s.same for s in held]),
        np.concatenate([s.reference_nll for s in held]),
        np.concatenate([s.nll for s in held]),
    )


def figures(scores: Scores) -> Figures:
    """The figures of at least one position."""
    median, p99, p999, top = (float(v) for v in np.quantile(scores.kl, [0.5, 0.99, 0.999, 1.0]))
    square = mean(scores.delta_p**2)
    rms = math.sqrt(square.value)
    return Figures(
        len(scores.kl),
        mean(scores.kl),
        median,
        p99,
        p999,
        top,
        Estimate(rms, square.error / (2 * rms) if rms else square.error),
        mean(scores.same.astype(np.float64)),
        _exponential(mean(scores.reference_nll)),
        _exponential(mean(scores.nll)),
        # Of the difference at each position: the two perplexities rise and fall together.
        _exponential(mean(scores.nll - scores.reference_nll)),
    )


def mean(values: F64) -> Estimate:
    """Of at least one value, with its standard error."""
    count = len(values)
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(count - 1) if count > 1 else math.nan)


def _exponential(mean: Estimate) -> Estimate:
    value = math.exp(min(mean.value, 700.0))  # beyond, a float64 overflows
    return Estimate(value, value * mean.error)

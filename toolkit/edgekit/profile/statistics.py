"""Medians, spreads, and whether two sets of measurements differ."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Of repeated measurements: the median, the quartiles (numpy's linear interpolation), and every sample in the order it was taken."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]


def spread(samples: Sequence[float]) -> Spread:
    """Of at least one sample."""
    low, middle, high = (float(v) for v in np.percentile(samples, (25, 50, 75)))
    return Spread(middle, low, high, tuple(float(sample) for sample in samples))


def quantile(samples: Sequence[float], part: float) -> float:
    """The sample at or above which no more than ``1 - part`` of them lie (nearest rank), never an interpolated one."""
    ordered = sorted(samples)
    return float(ordered[max(0, math.ceil(part * len(ordered)) - 1)])


EXACT = 12
"""Samples of both sides together up to which every arrangement is looked at (924); beyond, the normal approximation is good."""


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the Mann-Whitney U test: how often samples as far apart as these come of one and the same distribution.

    Exact over all arrangements for few samples, ties included; else the normal approximation with corrections for ties and continuity.
    (Mann and Whitney 1947; the same statistic as scipy.stats.mannwhitneyu.)
    """
    ranks = _ranks([*a, *b])
    n, m = len(a), len(b)
    mean = n * (n + m + 1) / 2
    off = abs(sum(ranks[:n]) - mean)
    if n + m <= EXACT:
        sums = [abs(sum(chosen) - mean) for chosen in itertools.combinations(ranks, n)]
        return sum(value >= off - 1e-9 for value in sums) / len(sums)
    counts = np.unique(ranks, return_counts=True)[1]
    total = n + m
    variance = n * m / 12 * (total + 1 - float((counts**3 - counts).sum()) / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    return min(1.0, math.erfc(max(0.0, off - 0.5) / math.sqrt(2 * variance)))


def least_p(n: int, m: int) -> float:
    """The smallest p that so many samples can give."""
    return min(1.0, 2 / math.comb(n + m, n))


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [(ordered.index(v) + 1 + ordered.index(v) + ordered.count(v)) / 2 for v in values]

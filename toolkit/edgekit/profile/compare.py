"""Two profiles side by side, and limits for a CI job."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, cast

from edgekit.errors import PerformanceError, UsageError
from edgekit.profile.figures import NAMES, Figure, Unit, figures, shown
from edgekit.profile.report import Report
from edgekit.profile.statistics import least_p, mann_whitney

LEVEL = 0.05
"""Of significance."""
Verdict = Literal["better", "worse", "no difference seen", "too few samples", "one sample"]
Sign = Literal["<", "<=", ">", ">="]


@dataclass(frozen=True)
class Row:
    """A figure of both. ratio: the second over the first.

    p: of a two-sided Mann-Whitney U test over the rounds, None for single figures."""

    name: str
    unit: Unit
    first: float
    second: float
    ratio: float
    p: float | None
    verdict: Verdict


def compare(first: Report, second: Report) -> list[Row]:
    """Every figure that both have."""
    others = {figure.key: figure for figure in figures(second)}
    return [_row(figure, others[figure.key]) for figure in figures(first) if figure.key in others]


def _row(a: Figure, b: Figure) -> Row:
    ratio = b.value / a.value if a.value else float("inf")
    n, m = len(a.samples), len(b.samples)
    if n == 1 or m == 1:
        return Row(a.key, a.unit, a.value, b.value, ratio, None, "one sample")
    if least_p(n, m) > LEVEL:
        return Row(a.key, a.unit, a.value, b.value, ratio, None, "too few samples")
    p = mann_whitney(a.samples, b.samples)
    verdict: Verdict = "no difference seen" if p > LEVEL or ratio == 1 else "better" if (ratio > 1) == a.more else "worse"
    return Row(a.key, a.unit, a.value, b.value, ratio, p, verdict)


HEAD = ["", "first", "second", "ratio", "p", ""]
METHOD = (
    f"p: two-sided Mann-Whitney U test over the rounds of each run, at {LEVEL:.0%} for each figure by itself: of 20 figures one would "
    "seem to differ by chance. Rounds of one process do not show what differs from process to process: repeat both runs before you "
    "believe a few percent."
)


def rows(found: Sequence[Row]) -> list[list[str]]:
    """Columns as in HEAD."""
    return [
        [
            row.name,
            shown(row.first, row.unit),
            shown(row.second, row.unit),
            f"{row.ratio:.3f}x",
            "" if row.p is None else f"{row.p:.3f}",
            row.verdict,
        ]
        for row in found
    ]


def differences(first: Report, second: Report) -> list[tuple[str, str, str]]:
    """What else is not the same: name, of the first, of the second."""
    pairs = []
    for part in ("subject", "machine", "settings"):
        a, b = asdict(getattr(first, part)), asdict(getattr(second, part))
        pairs += [(key, str(a[key]), str(b[key])) for key in a if a[key] != b[key] and key not in ("directory", "load_average")]
    return pairs


@dataclass(frozen=True)
class Limit:
    """What must not be: ``decode@512 < 0.9x``. at: None for every place that the figure was measured at. relative: ``value`` is a
    multiple of the baseline's figure."""

    text: str
    name: str
    at: str | None
    sign: Sign
    value: float
    relative: bool


UNITS: dict[str, tuple[float, tuple[Unit, ...]]] = {
    "": (1, ("tok/s", "s", "B", "J")),
    "tok/s": (1, ("tok/s",)),
    "s": (1, ("s",)),
    "ms": (1e-3, ("s",)),
    "B": (1, ("B",)),
    "kB": (1e3, ("B",)),
    "MB": (1e6, ("B",)),
    "GB": (1e9, ("B",)),
    "J": (1, ("J",)),
    "mJ": (1e-3, ("J",)),
}
KINDS: dict[str, Unit] = {"decode": "tok/s", "prefill": "tok/s", "peak": "B", "joules": "J"}
"""Of figures that are no times."""


def parse_limit(text: str) -> Limit:
    """Raises UsageError saying what stands where it cannot."""
    found = re.fullmatch(r"\s*([a-z_0-9]+?)(?:@([A-Za-z0-9]+))?\s*(<=|>=|<|>)\s*([0-9.eE+-]+)\s*([A-Za-z/]*)\s*", text)
    if found is None:
        raise UsageError(
            f"--fail-if {text!r}: wanted a figure, a sign and a number, such as 'decode < 0.9x', 'ttft@512 > 2 s', 'peak > 3 GB'"
        )
    name, at, sign, number, unit = found.groups()
    if name not in NAMES:
        raise UsageError(f"--fail-if {text!r}: there is no figure {name!r}; known: {', '.join(NAMES)}")
    try:
        value = float(number)
    except ValueError:
        raise UsageError(f"--fail-if {text!r}: {number!r} is no number") from None
    if unit == "x":
        return Limit(text, name, at, cast(Sign, sign), value, True)
    if unit not in UNITS or KINDS.get(name, "s") not in UNITS[unit][1]:
        fitting = [key for key, (_, kinds) in UNITS.items() if key and KINDS.get(name, "s") in kinds]
        raise UsageError(f"--fail-if {text!r}: {name} is not measured in {unit!r}; wanted {', '.join(fitting)}, or x times the baseline's")
    return Limit(text, name, at, cast(Sign, sign), value * UNITS[unit][0], False)


def check(limits: Sequence[Limit], report: Report, baseline: Report | None) -> list[PerformanceError]:
    """The limits that ``report`` breaks. A relative one only counts where the figures differ significantly (or were measured once).

    Raises UsageError: a figure that was not measured, a relative limit without a baseline, or too few rounds to tell a difference.
    """
    own = list(figures(report))
    before = {figure.key: figure for figure in figures(baseline)} if baseline is not None else None
    return [error for limit in limits for error in _check(limit, own, before)]


def _check(limit: Limit, own: Sequence[Figure], before: dict[str, Figure] | None) -> list[PerformanceError]:
    chosen = [figure for figure in own if figure.name == limit.name and limit.at in (None, figure.at)]
    if limit.relative:
        if before is None:
            raise UsageError(f"--fail-if {limit.text!r} compares with an earlier profile; name it: --baseline FILE, or --compare FILE FILE")
        chosen = [figure for figure in chosen if figure.key in before]
    if not chosen:
        there = ", ".join(figure.key for figure in own if before is None or not limit.relative or figure.key in before)
        raise UsageError(
            f"--fail-if {limit.text!r}: that was not measured{' in both' if limit.relative else ''}; there is {there or 'nothing'}"
        )
    return [error for figure in chosen if (error := _broken(limit, figure, before)) is not None]


def _broken(limit: Limit, figure: Figure, before: dict[str, Figure] | None) -> PerformanceError | None:
    edge, than = limit.value, ""
    if limit.relative and before is not None:
        row = _row(before[figure.key], figure)
        if row.verdict == "too few samples":
            counts = f"{len(before[figure.key].samples)} and {len(figure.samples)}"
            raise UsageError(
                f"--fail-if {limit.text!r}: {counts} samples of {figure.key} cannot show a difference; measure 5 rounds or more"
            )
        if row.verdict == "no difference seen":
            return None
        edge, than = limit.value * row.first, f", {row.ratio:.3f}x of the baseline's {shown(row.first, figure.unit)}"
    over = {"<": figure.value < edge, "<=": figure.value <= edge, ">": figure.value > edge, ">=": figure.value >= edge}[limit.sign]
    return PerformanceError(f"{figure.key} is {shown(figure.value, figure.unit)}{than} (--fail-if {limit.text!r})") if over else None

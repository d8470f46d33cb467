"""Plots for ``page``, as SVG: small enough to be read on a phone, two beside each other on a screen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 280, 58, 10, 28, 44
STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem 2rem; }
.charts figure { margin: 0; } .charts figcaption { font-weight: 600; } .charts svg text { font-size: 13px; }
.key { font-size: .85rem; margin: .1rem 0; } .key b { display: inline-block; width: 1.4em; height: .22em; margin: 0 .4em .25em 0; }
.key span { margin-right: 1.2em; white-space: nowrap; }
.s0 { --own: #2563eb; } .s1 { --own: #d97706; } .s2 { --own: #059669; } .s3 { --own: #a855f7; }
@media (max-width: 32rem) { body { margin: 1rem auto; } table { font-size: .82rem; } th, td { padding-right: .5rem; }
h1 { font-size: 1.4rem; } }
@media (prefers-color-scheme: dark) { .s0 { --own: #60a5fa; } .s1 { --own: #fbbf24; } .s2 { --own: #34d399; } .s3 { --own: #c084fc; } }
b.s0, b.s1, b.s2, b.s3 { background: var(--own); }
.charts .line { fill: none; stroke: var(--own); stroke-width: 2; } .charts .dash { stroke-dasharray: 6 4; }
.charts .dot { fill: var(--own); } .charts .bar { stroke: var(--own); stroke-width: 1.5; }
.charts .axis { stroke: currentColor; opacity: .5; }
"""


@dataclass(frozen=True)
class Series:
    """points: (x, y). ranges: (low, high) of each, empty for none. joined: by a line; dashed: a limit, no measurement."""

    name: str
    points: Sequence[tuple[float, float]]
    ranges: Sequence[tuple[float, float]] = ()
    joined: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """label: with the unit. log: logarithmic, base 2 for lengths and 10 for what spans decades. zero: begins at 0."""

    label: str
    log: bool = False
    zero: bool = True


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    log: bool
    start: float
    end: float

    def at(self, value: float) -> float:
        value, low, high = (math.log(v) if self.log else v for v in (value, self.low, self.high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def charts(drawn: Sequence[str]) -> str:
    """Several, in a grid."""
    return f'<div class="charts">{"".join(drawn)}</div>'


def chart(title: str, across: Axis, up: Axis, series: Sequence[Series]) -> str:
    """One plot with its key. On logarithmic axes all values have to be positive."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + [y for one in series for pair in one.ranges for y in pair]
    if not xs:
        return ""
    x = _scale(xs, across, LEFT, WIDTH - RIGHT, margin=0.04)
    y = _scale(ys, up, HEIGHT - BOTTOM, TOP, margin=0.06)
    drawn = "".join(_series(one, i, x, y) for i, one in enumerate(series))
    key = "".join(f'<span><b class="s{i % 4}"></b>{escape(one.name)}</span>' for i, one in enumerate(series)) if len(series) > 1 else ""
    known = sorted(set(xs))
    marked = known if across.log and len(known) <= 6 else ticks(x.low, x.high, across.log)
    label = f"{title}: {up.label} over {across.label}"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{_axes(x, y, marked, across, up)}{drawn}</svg>'
    return f'<figure><figcaption>{escape(title)}</figcaption><p class="key">{key}</p>{svg}</figure>'


def ticks(low: float, high: float, log: bool) -> list[float]:
    """About five round values within the limits."""
    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        decades = [10.0**e for e in range(first, last + 1)]
        return decades if len(decades) >= 2 else [low, high]
    rough = (high - low) / 5
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * times for times in (1, 2, 5, 10) if size * times >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _scale(values: Sequence[float], axis: Axis, start: float, end: float, margin: float) -> _Scale:
    low, high = min(values), max(values)
    if axis.log:
        spare = (high / low) ** margin if high > low else 1.5
        return _Scale(low / spare, high * spare, True, start, end)
    low = min(0.0, low) if axis.zero else low
    spare = (high - low) * margin or abs(high) * 0.1 or 1.0
    return _Scale(low if axis.zero else low - spare, high + spare, False, start, end)


def _series(one: Series, number: int, x: _Scale, y: _Scale) -> str:
    places = [(x.at(a), y.at(b)) for a, b in one.points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    line = f'<polyline class="line{" dash" if one.dashed else ""}" points="{path}"/>' if one.joined and len(places) > 1 else ""
    ranges = zip(places, one.ranges, strict=False)
    bars = "".join(f'<path class="bar" d="M{a:.1f} {y.at(low):.1f}V{y.at(high):.1f}"/>' for (a, _), (low, high) in ranges)
    radius = 3.5 if len(places) < 40 else 1.6
    dots = "".join(
        f'<circle class="dot" r="{radius}" cx="{x.at(a):.1f}" cy="{y.at(b):.1f}"><title>{escape(one.name)} {_number(b)} at {_number(a)}'
        "</title></circle>"
        for a, b in one.points
    )
    return f'<g class="s{number % 4}">{line}{bars}{"" if one.dashed else dots}</g>'


def _axes(x: _Scale, y: _Scale, marked: Sequence[float], across: Axis, up: Axis) -> str:
    floor = HEIGHT - BOTTOM
    grid = "".join(
        f'<path class="grid" d="M{LEFT} {y.at(v):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{y.at(v) + 4:.1f}" text-anchor="end">{_number(v)}</text>'
        for v in ticks(y.low, y.high, up.log)
    )
    below = "".join(f'<text x="{x.at(v):.1f}" y="{floor + 17}" text-anchor="middle">{_number(v)}</text>' for v in marked)
    middle = (LEFT + WIDTH - RIGHT) / 2
    names = (
        f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across.label)}</text>'
        f'<text x="0" y="14">{escape(up.label)}</text>'
    )
    return f'{grid}<path class="axis" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>{below}{names}'


def _number(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

"""Self-contained HTML pages with plots: no script, no font or image from elsewhere. Every text given is escaped."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 760, 260, 64, 34, 10
STYLE = """
:root { color-scheme: light dark; --line: #8884; --ink: #2563eb; --second: #d97706; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: currentColor; } .grid { stroke: var(--line); }
.a { fill: var(--ink); stroke: var(--ink); } .b { fill: var(--second); stroke: var(--second); stroke-width: 1.5; }
"""


def page(title: str, body: Sequence[str], *, style: str = "") -> str:
    """The document. ``body``: pieces of HTML that the functions here return. ``style``: more CSS."""
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n{view}\n<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>'
    )
    return "\n".join([head, f"<h1>{escape(title)}</h1>", *body, "</html>\n"])


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """numbers: the columns that are set flush right."""
    top = "".join(f'<th class="number">{escape(c)}</th>' if i in numbers else f"<th>{escape(c)}</th>" for i, c in enumerate(head))
    kinds = ['<td class="number">' if i in numbers else "<td>" for i in range(len(head))]
    lines = ["<tr>" + "".join(f"{kind}{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>" for row in rows]
    return "\n".join([f'<div class="wide"><table><tr>{top}</tr>', *lines, "</table></div>"])


def points(label: str, values: Sequence[float], across: str) -> str:
    """Values over their index on a logarithmic axis (what is not positive stands at the bottom edge), with the mean over a window as a
    line. label, across: of the two axes."""
    low, high = _decades(values)
    size = max(1, len(values) // 40)
    means = [sum(values[at : at + size]) / len(values[at : at + size]) for at in range(0, len(values), size)]
    dots = "".join(f'<circle class="a" r="1.2" cx="{_x(i, len(values)):.1f}" cy="{_y(v, low, high):.1f}"/>' for i, v in enumerate(values))
    line = " ".join(f"{_x((i + 0.5) * size, len(values)):.1f},{_y(v, low, high):.1f}" for i, v in enumerate(means))
    return _plot(
        label, across, low, high, f'{dots}<polyline class="b" style="fill:none" points="{line}"/>', [(0, "0"), (1, str(len(values)))]
    )


def bars(label: str, values: Sequence[tuple[str, float]], across: str) -> str:
    """A bar for each named value on a linear axis from 0; the name shows when the mouse rests on it."""
    top = max((value for _, value in values), default=0) or 1.0
    step = (WIDTH - LEFT) / max(1, len(values))
    floor = HEIGHT - BOTTOM
    drawn = "".join(
        f'<rect class="a" x="{LEFT + i * step:.2f}" width="{max(0.5, step * 0.8):.2f}" y="{floor - value / top * (floor - TOP):.2f}" '
        f'height="{value / top * (floor - TOP):.2f}"><title>{escape(name)}: {value:.4g}</title></rect>'
        for i, (name, value) in enumerate(values)
    )
    marks = "".join(_mark(floor - part * (floor - TOP), f"{part * top:.3g}") for part in (0, 0.5, 1))
    return _svg(label, marks + drawn + _across(across, []))


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Exponents of ten that enclose the values, ten decades at most."""
    positive = [v for v in values if v > 0] or [1.0]
    high = math.ceil(math.log10(max(positive)) + 1e-9)
    return max(math.floor(math.log10(min(positive))), high - 10, -12), high


def _x(index: float, count: int) -> float:
    return LEFT + (WIDTH - LEFT) * index / max(1, count)


def _y(value: float, low: int, high: int) -> float:
    part = (math.log10(value) - low) / max(1, high - low) if value > 0 else 0.0
    return HEIGHT - BOTTOM - min(1.0, max(0.0, part)) * (HEIGHT - BOTTOM - TOP)


def _plot(label: str, across: str, low: int, high: int, drawn: str, ends: Sequence[tuple[float, str]]) -> str:
    marks = "".join(_mark(_y(10.0**e, low, high), f"1e{e}") for e in range(low, high + 1))
    return _svg(label, marks + drawn + _across(across, ends))


def _mark(y: float, text: str) -> str:
    return f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH}"/><text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'


def _across(text: str, ends: Sequence[tuple[float, str]]) -> str:
    marks = "".join(
        f'<text x="{_x(at, 1):.0f}" y="{HEIGHT - 16}" text-anchor="{"end" if at else "start"}">{escape(t)}</text>' for at, t in ends
    )
    return marks + f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(text)}</text>'


def _svg(label: str, inside: str) -> str:
    return f'<figure><figcaption>{escape(label)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{inside}</svg></figure>'

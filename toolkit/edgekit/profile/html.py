"""A profile, or two side by side, as a page that needs nothing else."""

from collections.abc import Iterator, Sequence

from edgekit import page
from edgekit.chart import STYLE, Axis, Series, chart, charts
from edgekit.profile import compare, figures
from edgekit.profile.report import Report

LENGTH = Axis("tokens", log=True)
DEPTH = Axis("tokens in the cache", log=True)
SHOWN = 12
"""Kinds of operators that are listed for each phase."""


def one(report: Report) -> str:
    """The page of one profile."""
    of = report.subject
    body = [
        page.table(["", ""], [list(pair) for pair in figures.remarks(report)]),
        page.heading("Speed"),
        page.table(figures.HEAD, figures.speeds(report), numbers=[1, 2, 3]),
        page.table(figures.LATENCY, figures.latencies(report), numbers=[1, 2, 3, 4, 5]),
        charts(list(plots([("", report)]))),
    ]
    body += operators(report)
    body += [page.paragraph(f"{report.command}, begun {report.began}. What each figure means: docs/profile.md of edgekit.")]
    return page.page(f"{of.model} for {of.target} on {report.machine.processor}", body, style=STYLE)


def two(first: Report, second: Report, names: tuple[str, str]) -> str:
    """The page of a comparison. names: by which the two are told apart."""
    found = compare.compare(first, second)
    different = [list(row) for row in compare.differences(first, second)]
    head = ["", *names, *compare.HEAD[3:]]
    body = [
        page.table(head, compare.rows(found), numbers=[1, 2, 3, 4, 5]),
        page.paragraph(compare.METHOD),
        charts(list(plots(list(zip(names, (first, second), strict=True))))),
        page.heading("What else differs"),
        page.table(["", *names], different) if different else page.paragraph("Nothing that edge profile knows of."),
    ]
    return page.page(f"{names[0]} against {names[1]}", body, style=STYLE)


def plots(reports: Sequence[tuple[str, Report]]) -> Iterator[str]:
    """Decoding, its latency, prefill, first token, memory's roofline, sustained speed: of one or more reports, each with its name."""
    yield chart("Decoding", DEPTH, Axis("tokens a second"), [_rates(name, r, "decode") for name, r in reports])
    yield chart("Prefill", LENGTH, Axis("tokens a second"), [_rates(name, r, "prefill") for name, r in reports])
    yield chart("Latency of a decoded token", DEPTH, Axis("milliseconds"), list(_latency(reports)))
    first = [
        Series(name, [(p.tokens, p.ttft.median) for p in r.prefill], [(p.ttft.low, p.ttft.high) for p in r.prefill]) for name, r in reports
    ]
    yield chart("Text to first token", LENGTH, Axis("seconds"), first)
    yield chart(
        "Roofline", Axis("operations for a byte read", log=True), Axis("10^9 operations a second", log=True), list(_roofline(reports))
    )
    held = [(name, r.sustained) for name, r in reports if r.sustained is not None]
    if not held:
        return
    time = Axis("seconds")
    yield chart("Sustained decoding", time, Axis("tokens a second"), [Series(n, [(m.seconds, m.rate) for m in s.moments]) for n, s in held])
    for title, label, key in (
        ("Temperature", "degrees Celsius", "temperature"),
        ("Clock", "MHz", "clock"),
        ("Power", "watts", "watts"),
    ):
        told = [(n, [(m.seconds, float(getattr(m, key))) for m in s.moments if getattr(m, key) is not None]) for n, s in held]
        if any(points for _, points in told):
            yield chart(title, time, Axis(label, zero=key == "watts"), [Series(n, points) for n, points in told])


def _rates(name: str, report: Report, what: str) -> Series:
    lengths = [(p.tokens, p.ttft if what == "ttft" else p.rate) for p in report.prefill]
    places = [(d.depth, d.rate) for d in report.decode] if what == "decode" else lengths
    return Series(name, [(at, spread.median) for at, spread in places], [(spread.low, spread.high) for _, spread in places])


def _latency(reports: Sequence[tuple[str, Report]]) -> Iterator[Series]:
    """Three quantiles of one report, two of each of several."""
    for name, report in reports:
        for key in ("p50", "p95", "p99") if len(reports) == 1 else ("p50", "p99"):
            points = [(float(d.depth), 1e3 * float(getattr(d, key))) for d in report.decode]
            yield Series(f"{name} {key}".strip(), points)


def _roofline(reports: Sequence[tuple[str, Report]]) -> Iterator[Series]:
    """What was reached, under the line that the bandwidth draws. A multiply-add is two operations; those of attention are left out."""
    reached: list[tuple[float, float]] = []
    for name, report in reports:
        token, read = 2 * report.subject.parameters, report.subject.weights_read
        points = [(token / d.bytes, token / 1e9 * d.rate.median) for d in report.decode if d.bytes]
        points += [(token * p.tokens / read, token / 1e9 * p.rate.median) for p in report.prefill if read]
        reached += points
        yield Series(f"{name} decode and prefill".strip(), sorted(points), joined=False)
    limit = next((r.bandwidth.rate / 1e9 for _, r in reports if r.bandwidth is not None), None)
    if reached and limit is not None:
        left = min(x for x, _ in reached)
        right = 1.5 * max(left, *(y / limit for _, y in reached))
        yield Series("limit by memory bandwidth", [(left, left * limit), (right, right * limit)], dashed=True)


def operators(report: Report) -> Iterator[str]:
    """A table for each phase that was traced."""
    for phase in ("prefill", "decode"):
        found = [o for o in report.operators or () if o.phase == phase][:SHOWN]
        if found:
            yield page.heading(f"Operators, {phase}")
            rows = [[o.kind, str(o.count), figures.shown(o.seconds, "s"), f"{o.share:.1%}"] for o in found]
            yield page.table(["operator", "runs", "time", "share"], rows, numbers=[1, 2, 3])

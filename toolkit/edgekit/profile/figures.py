"""The figures of a report by name, and as lines for people."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgekit.console import size
from edgekit.profile.report import Report
from edgekit.profile.statistics import Spread

Unit = Literal["tok/s", "s", "B", "J"]


@dataclass(frozen=True)
class Figure:
    """name: such as "decode". at: which of them ("512", "cold"), empty where there is one. samples: at least one, in ``unit``; of several
    the median is the figure. more: a larger one is better."""

    name: str
    at: str
    unit: Unit
    samples: tuple[float, ...]
    value: float
    more: bool

    @property
    def key(self) -> str:
        """As in ``--fail-if``."""
        return f"{self.name}@{self.at}" if self.at else self.name


NAMES = ("decode", "prefill", "ttft", "load", "first_token", "p50", "p95", "p99", "peak", "joules")


def figures(report: Report) -> Iterator[Figure]:
    """All that can be compared, in the order of NAMES."""
    yield from (_many("decode", d.depth, "tok/s", d.rate, more=True) for d in report.decode)
    yield from (_many("prefill", p.tokens, "tok/s", p.rate, more=True) for p in report.prefill)
    yield from (_many("ttft", p.tokens, "s", p.ttft) for p in report.prefill)
    yield from (_many("load", load.kind, "s", load.seconds) for load in report.load)
    yield from (_many("first_token", load.kind, "s", load.first_token) for load in report.load)
    for name in ("p50", "p95", "p99"):
        for d in report.decode:
            value: float = getattr(d, name)
            yield Figure(name, str(d.depth), "s", (value,), value, False)
    if report.memory.peak is not None:
        yield Figure("peak", "", "B", (float(report.memory.peak),), float(report.memory.peak), False)
    if report.energy is not None:
        yield _many("joules", "", "J", report.energy.joules_per_token)


def _many(name: str, at: object, unit: Unit, spread: Spread, *, more: bool = False) -> Figure:
    return Figure(name, str(at), unit, spread.samples, spread.median, more)


def shown(value: float, unit: Unit) -> str:
    """With its unit, to three digits."""
    if unit == "B":
        return size(value)
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 0.9995 else f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def ranged(spread: Spread, unit: Unit) -> list[str]:
    """Median, quartiles, number of samples."""
    return [shown(spread.median, unit), f"{shown(spread.low, unit)} .. {shown(spread.high, unit)}", str(len(spread.samples))]


HEAD = ["", "median", "middle half", "samples"]


def speeds(report: Report) -> list[list[str]]:
    """A row for each figure that was measured several times; columns as in HEAD."""
    rows = []
    for load in report.load:
        rows.append([f"{load.kind} load", *ranged(load.seconds, "s")])
        rows.append([f"first token after it ({load.prompt} tokens)", *ranged(load.first_token, "s")])
    for p in report.prefill:
        rows.append([f"prefill of {p.tokens} tokens", *ranged(p.rate, "tok/s")])
        rows.append([f"text of {p.tokens} tokens to first token", *ranged(p.ttft, "s")])
    rows += [[f"decode at {d.depth} tokens", *ranged(d.rate, "tok/s")] for d in report.decode]
    if (text := report.text) is not None:
        rows.append(["tokenizing", *ranged(text.encode, "tok/s")])
        named = (("greedy choice", text.greedy), ("drawn (top-p)", text.sampled), ("token to text", text.decode))
        rows += [[f"{name}, a token", *ranged(spread, "s")] for name, spread in named]
    if report.energy is not None:
        rows.append(["energy of a decoded token", *ranged(report.energy.joules_per_token, "J")])
    return rows


LATENCY = ["decode at", "p50", "p95", "p99", "read a token", "of the bandwidth"]


def latencies(report: Report) -> list[list[str]]:
    """Columns as in LATENCY."""
    return [
        [f"{d.depth} tokens", *(shown(v, "s") for v in (d.p50, d.p95, d.p99)), size(d.bytes), "" if d.share is None else f"{d.share:.0%}"]
        for d in report.decode
    ]


def remarks(report: Report) -> Iterator[tuple[str, str]]:
    """Label and text of everything else."""
    of, here, memory = report.subject, report.machine, report.memory
    yield "artifact", f"{of.model} for {of.target} ({of.engine}, {of.scheme}), {size(of.bytes)}, manifest {of.manifest_sha256[:12]}"
    load = "" if here.load_average is None else f", load average {here.load_average:.1f} as it began"
    ram = "" if here.memory is None else f", {size(here.memory)}"
    yield "machine", f"{here.processor}, {here.cores} cores{ram}, {here.system}{load}"
    yield "versions", ", ".join([report.producer, f"Python {here.python}", *(f"{k} {v}" for k, v in here.packages.items())])
    if memory.peak is not None:
        parts = [f"after the load {size(memory.loaded or 0)}", f"before the engine {size(memory.runtime or 0)}"]
        parts += [f"not of files {size(memory.anonymous)}"] if memory.anonymous is not None else []
        yield "peak memory", f"{size(memory.peak)} of the engine's own process ({', '.join(parts)})"
    if memory.device is not None:
        yield "device memory", f"{size(memory.device)} ({memory.device_source})"
    if report.bandwidth is not None:
        yield "bandwidth", f"{report.bandwidth.rate / 1e9:.1f} GB/s read by {report.bandwidth.threads} threads ({report.bandwidth.method})"
    if (e := report.energy) is not None:
        idle = "" if e.idle is None else f", {e.idle:.1f} W idle"
        yield "energy", f"{e.watts:.1f} W while decoding{idle}; {e.meter}, which covers {e.covers}"
    if (s := report.sustained) is not None:
        yield "sustained", f"{s.tokens:,} tokens in {s.seconds:.0f} s; the last fifth ran at {s.kept:.0%} of the first"
    for phase in ("prefill", "decode"):
        if kinds := [f"{o.kind} {o.share:.0%}" for o in report.operators or () if o.phase == phase and o.share >= 0.01]:
            yield f"operators, {phase}", ", ".join(kinds)
    for lack in report.missing:
        yield "not measured", f"{lack.part}: {lack.reason}"

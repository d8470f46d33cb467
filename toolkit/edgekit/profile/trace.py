"""What each operator takes: a Chrome trace (chrome://tracing, ui.perfetto.dev) and a table of kinds."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from edgekit import child
from edgekit.artifact import read_artifact
from edgekit.engines.observing import Operation, observer
from edgekit.errors import OutputError
from edgekit.profile.report import Operator, Phase
from edgekit.runtime.session import Session

STEPS = 8
"""Tokens that are traced, after a prompt."""
WARM = 2


def main() -> None:
    """The process in which the engine runs with its counters on."""
    child.serve(_trace)


def operators(directory: Path, prompt: int, threads: int | None, path: Path) -> tuple[Operator, ...]:
    """Runs the artifact in a process of its own and writes the Chrome trace to ``path``.

    The figures of the profile come of other runs: counting takes time. Raises EngineError (no counters), OutputError.
    """
    said = child.ask(__name__, {"directory": str(directory), "prompt": prompt, "threads": threads})
    phases = cast("dict[Phase, list[dict[str, object]]]", said)
    try:
        path.write_text(json.dumps({"traceEvents": list(events(phases)), "displayTimeUnit": "ms"}) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; give --trace another place") from None
    return tuple(operator for phase, found in phases.items() for operator in summary(phase, [Operation(**entry) for entry in found]))  # type: ignore[arg-type]


def events(phases: "dict[Phase, list[dict[str, object]]]") -> Iterator[dict[str, object]]:
    """Of the Trace Event Format: complete events, in microseconds."""
    starts = [cast(float, entry["start"]) for found in phases.values() for entry in found]
    for phase, found in phases.items():
        for entry in found:
            start, seconds = cast(float, entry["start"]) - min(starts), cast(float, entry["seconds"])
            yield {
                "name": entry["kind"],
                "cat": phase,
                "ph": "X",
                "ts": start * 1e6,
                "dur": seconds * 1e6,
                "pid": 1,
                "tid": 1,
                "args": {"node": entry["name"]},
            }


def summary(phase: Phase, found: Sequence[Operation]) -> list[Operator]:
    """By kind, the longest first. An operator that holds others (a branch of the graph) counts as what it holds."""
    leaves = [operation for operation in found if not operation.holds]
    total = sum(operation.seconds for operation in leaves)
    kinds = sorted({operation.kind for operation in leaves})
    rows = []
    for kind in kinds:
        seconds = [operation.seconds for operation in leaves if operation.kind == kind]
        rows.append(Operator(kind, phase, len(seconds), sum(seconds), sum(seconds) / total if total else 0.0))
    return sorted(rows, key=lambda row: -row.seconds)


def _trace(request: child.Json) -> child.Json:
    directory, count = Path(str(request["directory"])), cast(int, request["prompt"])
    manifest = read_artifact(directory).manifest
    marks: list[float] = []

    def work(session: Session) -> None:
        ids = [at % manifest.tokens.vocab_size for at in range(count)]
        for _ in range(WARM):
            session.rewind(0)
            session.forward(ids)
        session.rewind(0)
        marks.append(time.perf_counter())
        session.forward(ids)
        marks.append(time.perf_counter())
        for step in range(STEPS):
            session.forward((step,))

    threads = cast("int | None", request["threads"])
    found = observer(manifest.engine.name).trace(directory, manifest, threads, work)
    began, between = marks
    prefill = [asdict(operation) for operation in found if began <= operation.start < between]
    return {"prefill": prefill, "decode": [asdict(operation) for operation in found if operation.start >= between]}

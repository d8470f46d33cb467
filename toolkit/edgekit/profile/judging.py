"""What the command shows of a profile: alone, against an earlier one, and against limits."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekit.console import table_lines
from edgekit.errors import EdgekitError, EngineError, OutputError
from edgekit.profile import compare, figures, html, report
from edgekit.profile.compare import Limit, Row
from edgekit.profile.report import Report


@dataclass(frozen=True)
class Seen:
    """found: what was measured, or the second of two. before: the first. problems: what the command fails with."""

    found: Report
    before: Report | None
    rows: tuple[Row, ...]
    names: tuple[str, str]
    problems: tuple[EdgekitError, ...]


def limits(texts: Sequence[str]) -> list[Limit]:
    """Raises UsageError: before the long job."""
    return [compare.parse_limit(text) for text in texts]


def names(paths: tuple[Path, Path]) -> tuple[str, str]:
    """Of two files: as short as they differ."""
    one, other = paths
    return (one.stem, other.stem) if one.stem != other.stem else (str(one), str(other))


def judge(
    found: Report, before: Report | None, wanted: Sequence[Limit], called: tuple[str, str], broken: EdgekitError | None = None
) -> Seen:
    """broken: why the run ended early, where that is known. Raises UsageError for a limit on what was not measured."""
    problems: list[EdgekitError] = list(compare.check(wanted, found, before))
    if not found.complete:
        failed = [f"{part.part}: {part.reason}" for part in found.missing if not part.cannot]
        problems.insert(0, broken or EngineError(f"not everything was measured: {'; '.join(failed)}"))
    return Seen(found, before, tuple(compare.compare(before, found)) if before is not None else (), called, tuple(problems))


def as_lines(seen: Seen) -> list[str]:
    """For people: the profile, or the comparison where there is an earlier one."""
    if seen.before is not None:
        head = ["", *seen.names, *compare.HEAD[3:]]
        different = [f"{name}: {a} / {b}" for name, a, b in compare.differences(seen.before, seen.found)]
        return [*table_lines(head, compare.rows(seen.rows)), "", *different, compare.METHOD]
    pairs = list(figures.remarks(seen.found))
    width = max(len(label) for label, _ in pairs)
    speeds, latencies = table_lines(figures.HEAD, figures.speeds(seen.found)), table_lines(figures.LATENCY, figures.latencies(seen.found))
    return [*(f"{label:<{width}}  {text}" for label, text in pairs), "", *speeds, "", *latencies]


def as_json(seen: Seen, *, measured: bool) -> dict[str, object]:
    """What was measured, by its schema; or, of two files, only how they compare."""
    compared = {"comparison": [asdict(row) for row in seen.rows], "method": compare.METHOD} if seen.before is not None else {}
    broken = {"broken": [str(problem) for problem in seen.problems]} if seen.problems else {}
    return (report.as_json(seen.found) if measured else {}) | compared | broken


def write(path: Path, seen: Seen) -> None:
    """The page. Raises OutputError."""
    text = html.one(seen.found) if seen.before is None else html.two(seen.before, seen.found, seen.names)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; give --html another place") from None

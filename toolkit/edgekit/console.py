"""What the ``edge`` command prints: progress, tables, JSON. Nothing else in edgekit prints."""

import contextlib
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from edgekit.errors import OutputError
from edgekit.progress import COUNTED, Progress, silent
from edgekit.redact import without_secrets

BAR = 24  # characters
REDRAW = 0.1  # seconds between two drawings of a bar
NOTICE = 10.0  # seconds between two lines where there is no terminal to draw on


def make_safe() -> None:
    """Pipes and files get UTF-8 on every platform, unless PYTHONIOENCODING asks for something else.

    A console that cannot show a character (Windows code pages, LANG=C) gets a question mark, not a crash. Input that is piped needs
    nothing here: ``talk`` reads its bytes.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell (>&-): nobody wants to hear it
            setattr(sys, name, Stdout(Path(os.devnull).open("wb"), encoding="utf-8"))  # noqa: SIM115  (until the process ends)
    if type(sys.stdout) is io.TextIOWrapper:
        old = sys.stdout
        sys.stdout = Stdout(old.buffer, old.encoding, old.errors, line_buffering=old.line_buffering, write_through=old.write_through)
    for stream in (sys.stdout, sys.stderr):
        if not hasattr(stream, "reconfigure"):
            continue
        if stream.isatty() or os.environ.get("PYTHONIOENCODING"):
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # file names may hold what is no character


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """All that the block prints has arrived at its end. A closed pipe is a quiet end with 1; a stdout that takes no more an error with 9.

    Raises SystemExit then.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _silence()
        raise SystemExit(1) from None
    except Unwritable as error:
        _silence()
        notice(f"edge: error: cannot write to standard output: {error.strerror or error}; what was printed is not complete")
        raise SystemExit(OutputError.exit_code) from None


class Unwritable(OSError):
    """stdout takes no more: the disk behind it is full, or its device gone. Told from the same trouble with a file by its type."""


class Stdout(io.TextIOWrapper):
    """What ``make_safe`` puts in place of Python's, over the same bytes."""

    def write(self, text: str, /) -> int:
        with _unwritable():
            return super().write(text)

    def flush(self) -> None:
        with _unwritable():
            super().flush()


@contextlib.contextmanager
def _unwritable() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritable(error.errno, error.strerror) from error


def _silence() -> None:
    """What is still buffered has nowhere to go; else the interpreter would complain while it closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def visible(text: str, also: str = "") -> str:
    """``text`` with what a terminal would obey, or show in another order, written as escapes: names and messages come from strangers."""
    return re.sub(f"[{_OBEYED}{also}]", lambda found: found[0].encode("unicode_escape").decode(), text)


_OBEYED = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""Controls but line feed and tab, and what turns the direction of text or breaks lines."""


def show(text: str) -> None:
    """Lines on stdout."""
    print(visible(text))


def show_json(data: object) -> None:
    """One JSON document on stdout."""
    show_json_text(json.dumps(data, indent=2, ensure_ascii=False))


def show_json_text(text: str) -> None:
    """A document that is JSON already. What stdout cannot hold is escaped, so that nothing is lost."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    lost = f"[\ud800-\udfff{_OBEYED}]" if utf8 else "[^\n\x20-\x7e]"
    print(re.sub(lost, lambda found: json.dumps(found[0])[1:-1] if found[0] != "\x7f" else "\\u007f", text))


def stream(text: str) -> None:
    """A piece of an answer, at once; as it is, but to a terminal, which must not obey it."""
    if text:
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def hide(text: str) -> None:
    """Shows nothing."""


def notice(text: str) -> None:
    """A line about what is going on, on stderr. Where that takes nothing the work goes on."""
    with contextlib.suppress(OSError):
        print(visible(without_secrets(text)), file=sys.stderr, flush=True)


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns, two spaces apart."""
    show("\n".join(table_lines(head, [[visible(cell, "\n\t") for cell in row] for row in rows])))


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]


def show_pairs(lines: Sequence[tuple[str, str]]) -> None:
    """Labels in one column, text in the next."""
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        line = visible(text, "\n\t")
        show(f"{label:<{width}}  {line}")


def size(count: float) -> str:
    """Bytes for people, in powers of 1000 as disks and the hub count."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[Progress]:
    """A bar with bytes and time left on a terminal, a line now and then elsewhere, nothing when ``quiet``; always on stderr.

    After the block, however it ends, what is printed next begins on a line of its own.
    """
    if quiet:
        yield silent
        return
    display = Display(sys.stderr, bar=sys.stderr.isatty())
    try:
        yield display
    finally:
        display.close()


class Display:
    """A stage's clock and the last drawing; a new stage name begins a new line. Spaces wipe an old one: not every console knows escapes."""

    def __init__(self, stream: TextIO, *, bar: bool) -> None:
        self.stream, self.bar = stream, bar
        self.stage, self.began, self.drawn, self.ended = "", 0.0, 0.0, True
        self.width = 0

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.close()
            self.stage, self.began, self.drawn, self.ended = stage, now, -math.inf if self.bar else now, False
        end = total > 0 and done >= total
        if self.ended or not (end or now - self.drawn >= (REDRAW if self.bar else NOTICE)):
            return
        self.drawn = now
        text = visible(self._text(done, total, now - self.began, end))
        with contextlib.suppress(OSError):  # a full disk behind stderr ends no build
            self.stream.write(f"\r{text:<{self.width}}" if self.bar else f"{text}\n")
            self.width = len(text)
            if end:
                self.close()
            self.stream.flush()

    def close(self) -> None:
        """Leaves the bar's line, so that what is printed next begins on its own."""
        if self.bar and not self.ended and self.stage:
            with contextlib.suppress(OSError):
                self.stream.write("\n")
                self.stream.flush()
        self.ended = True

    def _text(self, done: int, total: int, seconds: float, end: bool) -> str:
        rate = done / seconds if seconds > 0 else 0.0
        counted = self.stage.startswith(COUNTED)
        if not total:
            return f"{self.stage}: {done if counted else size(done)}"
        share = min(done / total, 1.0)
        bar = "#" * int(share * BAR)
        shown = f"[{bar:<{BAR}}] {share:4.0%}" if self.bar else f"{share:.0%}"
        speed = "" if counted else f", {size(rate)}/s"
        whole = total if counted else size(total)
        if end:
            return f"{self.stage}: {shown} of {whole} in {clock(seconds)}{speed}"
        pace = f"{speed}, {clock((total - done) / rate)} left" if rate > 0 and seconds >= 1 else ""
        return f"{self.stage}: {shown} of {whole}{pace}"


def clock(seconds: float) -> str:
    """``12 s``, ``3:05`` or ``1:02:03``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

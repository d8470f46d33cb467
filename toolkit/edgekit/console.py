"""What the ``edge`` command prints: progress, tables, JSON. Nothing else in edgekit prints."""

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from edgekit.progress import COUNTED, Progress, silent

BAR = 24  # characters
REDRAW = 0.1  # seconds between two drawings of a bar
NOTICE = 10.0  # seconds between two lines where there is no terminal to draw on


def make_safe() -> None:
    """Pipes and files get UTF-8 on every platform, unless PYTHONIOENCODING asks for something else.

    A console that cannot show a character (Windows code pages, LANG=C) gets a question mark, not a crash. Input that is piped needs
    nothing here: ``talk`` reads its bytes.
    """
    for stream in (sys.stdout, sys.stderr):
        if not hasattr(stream, "reconfigure"):
            continue
        if stream.isatty() or os.environ.get("PYTHONIOENCODING"):
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # file names may hold what is no character


def show_json(data: object) -> None:
    """One JSON document on stdout."""
    show_json_text(json.dumps(data, indent=2, ensure_ascii=False))


def show_json_text(text: str) -> None:
    """A document that is JSON already. What stdout cannot hold is escaped, so that nothing is lost."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    lost = "[\ud800-\udfff]" if utf8 else "[^\x00-\x7f]"
    print(re.sub(lost, lambda found: json.dumps(found[0])[1:-1], text))


def stream(text: str) -> None:
    """A piece of an answer, at once."""
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def hide(text: str) -> None:
    """Shows nothing."""


def notice(text: str) -> None:
    """A line about what is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns, two spaces apart."""
    print("\n".join(table_lines(head, rows)))


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]


def show_pairs(lines: Sequence[tuple[str, str]]) -> None:
    """Labels in one column, text in the next."""
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print(f"{label:<{width}}  {text}")


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
        text = self._text(done, total, now - self.began, end)
        self.stream.write(f"\r{text:<{self.width}}" if self.bar else f"{text}\n")
        self.width = len(text)
        if end:
            self.close()
        self.stream.flush()

    def close(self) -> None:
        """Leaves the bar's line, so that what is printed next begins on its own."""
        if self.bar and not self.ended and self.stage:
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

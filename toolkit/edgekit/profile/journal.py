"""What was measured so far, a line of JSON for each measurement, on the disk before the next begins: a run that is broken off (a lost link,
a dead battery, a crash of the engine) loses at most the one it was at, and a run started again with the same file goes on after it."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit import strict_json
from edgekit.errors import OutputError, UsageError

VERSION = 1
Entry = Mapping[str, object]


@dataclass(frozen=True)
class Journal:
    """entries: in the order they were made, each with its ``part`` (``length/512``). One that has no figures says why: "error" where
    it failed, "cannot" where this machine or engine has no means for it."""

    path: Path
    began: str
    entries: tuple[Entry, ...]

    def done(self, part: str) -> int:
        """How many rounds of ``part`` there are; as many as anyone asks for where it cannot be measured here."""
        found = [entry for entry in self.entries if entry["part"] == part and "error" not in entry]
        return sys.maxsize if any("cannot" in entry for entry in found) else len(found)


def start(path: Path, subject: Mapping[str, object], began: str) -> Journal:
    """Opens the journal, or makes it. ``subject``: what is measured and how; a journal of something else is refused.

    Raises UsageError (it is of another artifact, settings or machine, or no journal) and OutputError.
    """
    head, entries = _read(path)
    wanted = json.loads(json.dumps(subject))
    if head is None:
        _append(path, {"journal": VERSION, "began": began, "subject": wanted}, fresh=True)
        return Journal(path, began, ())
    held = head.get("subject")
    if head.get("journal") != VERSION or not isinstance(held, dict):
        raise UsageError(f"{path} is no journal of this version of edgekit; give another --journal, or delete it")
    different = [key for key in wanted if held.get(key) != wanted[key]]
    if different:
        shown = "; ".join(f"{key} was {held.get(key)!r} and is {wanted[key]!r}" for key in different)
        raise UsageError(f"{path} holds measurements of something else ({shown}); give another --journal, or delete it")
    return Journal(path, str(head.get("began", began)), tuple(entries))


def load(path: Path) -> Journal:
    """The journal as it is now."""
    head, entries = _read(path)
    return Journal(path, str(head.get("began", "")) if head else "", tuple(entries))


def append(path: Path, entry: Entry) -> None:
    """On the disk when this returns. Raises OutputError."""
    _append(path, entry, fresh=False)


def _read(path: Path) -> tuple[dict[str, object] | None, list[Entry]]:
    """The first line and the others. A last line without its end was being written as the power went: it is taken off the file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None, []
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}") from None
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    try:
        lines = [strict_json.load(line) for line in whole.splitlines()]
    except ValueError as error:
        raise UsageError(f"{path} is no journal of edge profile ({error}); give another --journal, or delete it") from None
    if not lines:
        return None, []
    if not all(isinstance(line, dict) for line in lines) or not all("part" in line for line in lines[1:]):
        raise UsageError(f"{path} is no journal of edge profile; give another --journal, or delete it")
    return lines[0], lines[1:]


def _append(path: Path, entry: Mapping[str, object], *, fresh: bool) -> None:
    try:
        with path.open("wb" if fresh else "ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; give --journal a place that can") from None

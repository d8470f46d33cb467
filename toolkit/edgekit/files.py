"""Files read and written whole: their digests, and new content in one step."""

import hashlib
import os
from pathlib import Path

CHUNK = 1 << 20  # bytes read at a time


def file_digest(path: Path, kind: str = "sha256") -> bytes:
    """Of a file's content; kind: a name that hashlib knows. Raises OSError."""
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.digest()


NAME_MAX = 255
"""Bytes of a name on every file system of today."""


def beside(path: Path, before: str, after: str) -> Path:
    """A name beside ``path`` that says whose it is: ``before``NAME``after``, with a long NAME cut and told apart by a digest."""
    name = path.name
    room = NAME_MAX - len(os.fsencode(before + after))
    if len(os.fsencode(name)) > room:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = os.fsencode(name)[: room - 17].decode("utf-8", errors="ignore") + "~" + digest
    return path.with_name(f"{before}{name}{after}")


def shown(path: Path | str) -> str:
    """A path as text that UTF-8 can hold: a byte that is no character is written as \\xff."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def replace_file(path: Path, content: bytes) -> None:
    """Writes ``content`` beside ``path`` and gives it that name once it has reached the disk.

    Raises OSError; ``path`` is then as it was.
    """
    partial = beside(path, ".", f".partial-{os.urandom(4).hex()}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

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


def replace_file(path: Path, content: bytes) -> None:
    """Writes ``content`` beside ``path`` and gives it that name once it has reached the disk.

    Raises OSError; ``path`` is then as it was.
    """
    partial = path.with_name(f".{path.name}.partial-{os.urandom(4).hex()}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

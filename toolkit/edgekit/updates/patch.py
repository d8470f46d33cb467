"""The update file (docs/updates.md): which pieces of the new artifact lie where in the old one, then the bytes that do not.

    8 bytes    "EDGEPTC1"
    8 bytes    length of the header, little-endian
    header     JSON, compressed by zlib
    rest       the new bytes, in the order in which the header asks for them

It is input like any other: every number is checked against the old artifact and the new manifest before a byte is written.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekit import strict_json
from edgekit.artifact import MANIFEST, MANIFEST_LIMIT, SIGNATURE, SIGNATURE_LENGTH, Manifest
from edgekit.errors import ArtifactError, UsageError
from edgekit.records import RecordError, parse

MAGIC = b"EDGEPTC1"
HEADER_LIMIT = 32 << 20
"""Bytes of the header, compressed or not."""


@dataclass(frozen=True)
class Piece:
    """length bytes of the new file: those at ``offset`` of the old artifact's file ``old``, or, where that is None, the next new ones."""

    length: int
    old: str | None = None
    offset: int = 0


@dataclass(frozen=True)
class Patch:
    """old, new: sha256 of the two manifests. files: of the new artifact, manifest and signature included, as pieces in order."""

    old: str
    new: str
    files: Mapping[str, tuple[Piece, ...]]

    @property
    def fresh(self) -> int:
        """New bytes that follow the header."""
        return sum(piece.length for pieces in self.files.values() for piece in pieces if piece.old is None)


def write_header(file: BinaryIO, patch: Patch) -> None:
    """Raises OSError, and UsageError for a header that ``read_header`` would not take."""
    files = {name: [[p.length] if p.old is None else [p.length, p.old, p.offset] for p in pieces] for name, pieces in patch.files.items()}
    compact = {"old": patch.old, "new": patch.new, "files": files}
    text = json.dumps(compact, separators=(",", ":")).encode()
    if len(text) > HEADER_LIMIT:
        raise UsageError("the two artifacts differ in too many places for an update; ship the new one whole")
    header = zlib.compress(text, 9)
    file.write(MAGIC + len(header).to_bytes(8, "little") + header)


def read_header(file: BinaryIO, path: Path) -> Patch:
    """Leaves ``file`` at the first new byte. Raises ArtifactError for anything that no ``edge diff`` writes."""
    if file.read(len(MAGIC)) != MAGIC:
        raise _damaged(path, "it does not begin as an update does; make one with: edge diff OLD NEW --out FILE")
    length = int.from_bytes(file.read(8), "little")
    if length > HEADER_LIMIT:
        raise _damaged(path, f"a header of {length} bytes")
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(file.read(length), HEADER_LIMIT)
        if not unpack.eof or unpack.unused_data:
            raise _damaged(path, "its header is cut short, or too long")
        data = strict_json.load(text)
        data["files"] = {name: [_as_record(piece) for piece in pieces] for name, pieces in data["files"].items()}
        patch = parse(Patch, data, unknown="refuse")
    except (zlib.error, ValueError, TypeError, KeyError, AttributeError, RecursionError, RecordError) as error:
        raise _damaged(path, f"its header cannot be read: {error}") from None
    here = file.tell()
    size = file.seek(0, 2)
    file.seek(here)
    if any(piece.length < 1 or piece.offset < 0 for pieces in patch.files.values() for piece in pieces):
        raise _damaged(path, "a piece of no length, or before its file")
    if size - here != patch.fresh:
        raise _damaged(path, f"{size - here} new bytes where the header announces {patch.fresh}")
    if MANIFEST not in patch.files or _length(patch, MANIFEST) > MANIFEST_LIMIT:
        raise _damaged(path, "it brings no manifest")
    if SIGNATURE in patch.files and _length(patch, SIGNATURE) != SIGNATURE_LENGTH:
        raise _damaged(path, "its signature is none")
    return patch


def check_patch(patch: Patch, old: Mapping[str, int], new: Manifest, path: Path) -> None:
    """old: size of each file of the old artifact. Raises ArtifactError where the pieces do not give what the new manifest lists."""
    names = set(patch.files) - {MANIFEST, SIGNATURE}
    if wrong := names ^ set(new.files):
        raise _damaged(path, f"{sorted(wrong)[0]!r} is in the update or in the new manifest, but not in both")
    for name, info in new.files.items():
        if _length(patch, name) != info.bytes:
            raise _damaged(path, f"{name}: {_length(patch, name)} bytes where the new manifest says {info.bytes}")
    for pieces in patch.files.values():
        for piece in pieces:
            if piece.old is not None and piece.offset + piece.length > old.get(piece.old, -1):
                raise _damaged(
                    path, f"it asks for bytes {piece.offset} to {piece.offset + piece.length} of {piece.old!r}, which the old one lacks"
                )


def _length(patch: Patch, name: str) -> int:
    return sum(piece.length for piece in patch.files[name])


def _as_record(piece: list[object]) -> dict[str, object]:
    return dict(zip(("length", "old", "offset"), piece, strict=len(piece) != 1))


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path} is no update, or a damaged one: {what}; nothing was changed")

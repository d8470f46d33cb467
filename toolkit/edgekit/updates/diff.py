"""Makes an update: finds the old artifact's bytes in the new one, through chunks and then byte by byte around them."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import MANIFEST, SIGNATURE, Artifact, load_artifact, read_manifest
from edgekit.errors import OutputError, UsageError
from edgekit.files import beside
from edgekit.progress import Progress, silent
from edgekit.signing import Trust
from edgekit.updates.chunks import chunks, content
from edgekit.updates.patch import Patch, Piece, write_header

Data = NDArray[np.uint8]
STEP = 1 << 20  # bytes compared or written at a time


@dataclass(frozen=True)
class Diff:
    """bytes: of the update file. fresh: of them, those of the new artifact. total: of the new artifact."""

    bytes: int
    fresh: int
    total: int


def diff(old: Path, new: Path, out: Path, *, force: bool = False, trust: Trust | None = None, progress: Progress = silent) -> Diff:
    """Writes to ``out`` what makes the artifact ``new`` of the artifact ``old``; both are compared with their digests first.

    trust: whose signature both must bear; None: a pinned key's, if there is one. In memory: 100 bytes for each 16 KB of the old artifact.
    Raises SignatureError, ArtifactError, UsageError (equal), OutputError.
    """
    if os.path.lexists(out) and not force:
        raise OutputError(f"{out} exists; replace it with --force or choose another: --out FILE")
    before, after = (load_artifact(directory, trust=trust, whole=True, progress=progress) for directory in (old, new))
    olds, news = _contents(before), _contents(after)
    digests = [hashlib.sha256(read_manifest(directory)).hexdigest() for directory in (old, new)]
    if digests[0] == digests[1] and bytes(olds.get(SIGNATURE, b"")) == bytes(news.get(SIGNATURE, b"")):
        raise UsageError(f"{old} and {new} are the same artifact; there is nothing to update")
    same = {info.sha256: name for name, info in before.manifest.files.items()}
    index = _Index(olds)
    files: dict[str, tuple[Piece, ...]] = {}
    total, done = sum(len(data) for data in news.values()), 0
    for name, data in news.items():
        info = after.manifest.files.get(name)
        twin = same.get(info.sha256) if info is not None else None
        files[name] = ((Piece(len(data), twin),) if len(data) else ()) if twin is not None else tuple(_pieces(data, index))
        done += len(data)
        progress("compare", done, total)
    patch = Patch(digests[0], digests[1], files)
    _write(out, patch, news)
    return Diff(out.stat().st_size, patch.fresh, total)


def _contents(artifact: Artifact) -> dict[str, Data]:
    """The manifest and its signature first: who applies an update knows them before anything else."""
    names = [MANIFEST, *([SIGNATURE] if (artifact.directory / SIGNATURE).is_file() else []), *artifact.manifest.files]
    return {name: content(artifact.directory / name) for name in names}


class _Index:
    """Where in the old artifact a chunk lies. Files are cut when first asked."""

    def __init__(self, olds: Mapping[str, Data]) -> None:
        self.olds = olds
        self._places: dict[bytes, tuple[str, int]] | None = None

    def find(self, digest: bytes) -> tuple[str, int] | None:
        if self._places is None:
            self._places = {}
            for name, data in self.olds.items():
                for offset, _, found in chunks(data):
                    self._places.setdefault(found, (name, offset))
        return self._places.get(digest)


def _pieces(data: Data, index: _Index) -> Iterator[Piece]:
    """The pieces of one new file: what is found grows to both sides as far as the bytes agree, and the search goes on behind it."""
    done = 0  # bytes of ``data`` that pieces cover
    while done < len(data):
        match = _next_match(data, done, index)
        if match is None:
            yield Piece(len(data) - done)
            return
        start, name, offset = match
        old = index.olds[name]
        back = _alike(data[done:start][::-1], old[max(0, offset - (start - done)) : offset][::-1])
        start, offset = start - back, offset - back
        length = _alike(data[start:], old[offset:])
        if start > done:
            yield Piece(start - done)
        yield Piece(length, name, offset)
        done = start + length


def _next_match(data: Data, start: int, index: _Index) -> tuple[int, str, int] | None:
    for offset, _, digest in chunks(data, start):
        if (place := index.find(digest)) is not None:
            return offset, *place
    return None


def _alike(a: Data, b: Data) -> int:
    """How many bytes are equal from the beginning on."""
    length = min(len(a), len(b))
    for begin in range(0, length, STEP):
        differ = np.flatnonzero(a[begin : begin + STEP][: length - begin] != b[begin : begin + STEP][: length - begin])
        if len(differ):
            return begin + int(differ[0])
    return length


def _write(out: Path, patch: Patch, news: Mapping[str, Data]) -> None:
    staging = beside(out, ".", f".partial-{os.urandom(4).hex()}")
    try:
        with staging.open("xb") as file:
            write_header(file, patch)
            for name, pieces in patch.files.items():
                at = 0
                for piece in pieces:
                    for begin in range(at, at + piece.length, STEP) if piece.old is None else ():
                        file.write(news[name][begin : min(begin + STEP, at + piece.length)])
                    at += piece.length
            file.flush()
            os.fsync(file.fileno())
        staging.replace(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            staging.unlink()

"""Applies an update: the new artifact is made whole and compared beside the old one, then the two change places in one step."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from edgekit.artifact import (
    MANIFEST,
    SIGNATURE,
    Artifact,
    Manifest,
    check_digests,
    load_artifact,
    parse_manifest,
    read_artifact,
    read_manifest,
)
from edgekit.errors import ArtifactError, OutputError, SignatureError
from edgekit.output import alone_with, check_exchange, previous_of, put_back, replacing, writing
from edgekit.progress import Progress, silent
from edgekit.signing import Trust, check_release, check_signature, pinned
from edgekit.updates.patch import Patch, Piece, check_patch, read_header

STEP = 1 << 20  # bytes copied at a time


def apply(
    update: Path,
    directory: Path,
    *,
    out: Path | None = None,
    trust: Trust | None = None,
    downgrade: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Makes the artifact in ``directory`` the new one that ``update`` brings; the old one stays in ``NAME.previous`` for ``roll_back``.

    Killed at any moment, ``directory`` opens as the old or as the new one, whole. A process that has the old one open goes on with it.
    out:       write the new one there instead, and leave ``directory`` as it is.
    trust:     whose signature the new one must bear, checked before anything is written; None: a pinned key's, if there is one. The old
               one need not be signed: not a byte of it is taken that the new manifest does not vouch for.
    downgrade: take an older release too. Only a release number in both manifests tells.
    Raises ArtifactError: no update, a damaged one, one for another artifact, or the old one is damaged; SignatureError; OutputError.
    """
    old, trust = read_artifact(directory), trust or pinned()
    if out is None:
        check_exchange(directory)
    try:
        with update.open("rb") as file:
            patch = read_header(file, update)
            _check_old(update, directory, patch)
            first = file.tell()
            raw, signature = _head(file, patch, directory)
            manifest = _check_new(raw, signature, old, patch, update, trust, downgrade=downgrade)
            file.seek(first)
            with writing(out) if out is not None else replacing(directory) as staging:
                _write_files(file, patch, old, staging, progress)
                check_digests(read_artifact(staging), progress)
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename} does not exist") from None
    except OSError as error:
        raise OutputError(f"cannot apply {update}: {error}") from error
    return manifest


def roll_back(directory: Path, *, trust: Trust | None = None, progress: Progress = silent) -> Manifest:
    """Puts back the artifact that the last update replaced, in one step; doing it again undoes it. Killed at any moment, ``directory`` is
    the one or the other, whole.

    trust: whose signature it must bear; None: a pinned key's, if there is one.
    Raises SignatureError, ArtifactError (none there, or damaged), OutputError (also where somebody else is writing it).
    """
    previous = previous_of(directory)
    check_exchange(directory)
    with alone_with(directory):
        if previous.is_symlink() or not previous.is_dir():
            raise ArtifactError(f"{directory} has no {previous.name} beside it to go back to")
        artifact = load_artifact(previous, trust=trust, whole=True, progress=progress)
        put_back(previous, directory)
    return artifact.manifest


def _check_old(update: Path, directory: Path, patch: Patch) -> None:
    found = hashlib.sha256(read_manifest(directory)).hexdigest()
    if found == patch.new:
        with alone_with(directory):
            pass  # an apply that was killed just after the switch left the old one
        raise ArtifactError(f"{directory} is already what {update} makes; nothing to do")
    if found != patch.old:
        raise ArtifactError(
            f"{update} is not for {directory}: it starts from the artifact whose {MANIFEST} has sha256 {patch.old}, this one has {found}"
        )


def _head(file: BinaryIO, patch: Patch, directory: Path) -> tuple[bytes, bytes]:
    """The new manifest and its signature (empty where there is none), which come first."""
    if list(patch.files)[: 1 + (SIGNATURE in patch.files)] != [MANIFEST, *([SIGNATURE] if SIGNATURE in patch.files else [])]:
        raise ArtifactError(f"{file.name} is no update, or a damaged one: its manifest does not come first; nothing was changed")
    return tuple(  # type: ignore[return-value]
        b"".join(_piece(file, piece, directory) for piece in patch.files.get(name, ())) for name in (MANIFEST, SIGNATURE)
    )


def _piece(file: BinaryIO, piece: Piece, directory: Path) -> bytes:
    """Of a small file."""
    if piece.old is None:
        return file.read(piece.length)
    if piece.old not in (MANIFEST, SIGNATURE):
        raise ArtifactError(f"{file.name} is no update, or a damaged one: its manifest is made of {piece.old!r}; nothing was changed")
    with (directory / piece.old).open("rb") as source:
        source.seek(piece.offset)
        return source.read(piece.length)


def _check_new(
    raw: bytes, signature: bytes, old: Artifact, patch: Patch, update: Path, trust: Trust | None, *, downgrade: bool
) -> Manifest:
    if hashlib.sha256(raw).hexdigest() != patch.new:
        raise ArtifactError(f"{update} is damaged: the manifest that it makes is another than it announces; nothing was changed")
    if trust is not None:
        if not signature:
            raise SignatureError(f"{update} brings an artifact that is not signed, and a key is required; nothing was changed")
        check_signature(raw, signature, trust, str(update))
    manifest = parse_manifest(raw, f"{update}: {MANIFEST}")
    if trust is not None:
        check_release(manifest, trust, str(update))
    here = old.manifest.release
    if here is not None and (manifest.release or 0) < here and not downgrade:
        raise SignatureError(
            f"{update} brings release {manifest.release or 'without a number'}, and {old.directory} is release {here}; "
            "to go back on purpose: --downgrade"
        )
    sizes = {name: info.bytes for name, info in old.manifest.files.items()}
    check_patch(patch, sizes | {name: _size(old.directory / name) for name in (MANIFEST, SIGNATURE)}, manifest, update)
    return manifest


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _write_files(file: BinaryIO, patch: Patch, old: Artifact, staging: Path, progress: Progress) -> None:
    """The manifest last, as in a build: a directory with one is complete. Its bytes come first in the update."""
    total, done = sum(piece.length for pieces in patch.files.values() for piece in pieces), 0
    at = file.tell()
    starts: dict[str, int] = {}
    for name, pieces in patch.files.items():
        starts[name] = at
        at += sum(piece.length for piece in pieces if piece.old is None)
    for name in [*(n for n in patch.files if n != MANIFEST), MANIFEST]:
        path = staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file.seek(starts[name])
        with path.open("xb") as out:
            for piece in patch.files[name]:
                _copy(file, piece, old.directory, out)
                done += piece.length
                progress("update", done, total)


def _copy(file: BinaryIO, piece: Piece, directory: Path, out: BinaryIO) -> None:
    if piece.old is None:
        _copy_bytes(file, out, piece.length)
        return
    with (directory / piece.old).open("rb") as source:
        source.seek(piece.offset)
        _copy_bytes(source, out, piece.length)


def _copy_bytes(source: BinaryIO, out: BinaryIO, length: int) -> None:
    """Raises OSError where the source ends early: it was changed meanwhile."""
    while length:
        block = source.read(min(STEP, length))
        if not block:
            raise OSError(0, "the file ended early", getattr(source, "name", os.devnull))
        out.write(block)
        length -= len(block)

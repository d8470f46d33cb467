"""Where an artifact is written: whole or not at all, by one builder at a time, and put right after one that was killed."""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekit.artifact import MANIFEST, Manifest, read_artifact
from edgekit.errors import ArtifactError, OutputError
from edgekit.files import beside
from edgekit.lock import Held, locked
from edgekit.redact import without_secrets


@contextlib.contextmanager
def writing(output: Path, *, force: bool = False, marker: str = MANIFEST) -> Iterator[Path]:
    """Yields an empty staging directory beside ``output`` that becomes ``output`` by one rename when the block ends well.

    The block ends with ``seal``. Whatever goes wrong, Ctrl-C included, the staging directory is removed and ``output`` is as
    it was; what a process that was killed left of both is put right by the next one. With ``force`` an older artifact there is moved
    away only after the new one is complete. marker: the file by which a directory is known as one of this kind, written last.
    Raises OutputError: the output exists, another process is writing it, the disk is full or read-only, permission is missing.
    """
    check_output(output, force=force, marker=marker)
    with _as_output_error(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with _alone(output):
            _put_right(output, marker)
            check_output(output, force=force, marker=marker)
            staging = _named(output, "partial", os.urandom(4).hex())
            try:
                staging.mkdir()
                yield staging
                if not (staging / marker).is_file():
                    raise RuntimeError(f"the output was left without its {marker}")
                flush(staging)
                check_output(output, force=force, marker=marker)
                _put_in_place(staging, output, marker)
            finally:
                _discard(staging, marker)


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """As ``writing`` over an artifact that is in use: when the block ends well the two change places in one step, so that there is one at
    any moment, and the old one becomes ``NAME.previous``, in place of what was there under that name.

    Raises OutputError, also where the system or the file system cannot do that (``check_exchange``).
    """
    check_exchange(directory)
    previous = previous_of(directory)
    if os.path.lexists(previous):
        _check_output(previous, force=True)
    with _as_output_error(directory), _alone(directory):
        _put_right(directory)
        check_output(directory, force=True)
        staging = _named(directory, "partial", os.urandom(4).hex())
        try:
            staging.mkdir()
            yield staging
            flush(staging)
            exchange(staging, directory)
            if os.path.lexists(previous):
                exchange(staging, previous)  # there is one to go back to at any moment
            else:
                _rename(staging, previous)
            _fsync_directory(directory.parent)
        finally:
            _discard(staging)


@contextlib.contextmanager
def alone_with(directory: Path) -> Iterator[None]:
    """Nobody else writes the artifact meanwhile, and what a killed process left beside it is gone. Raises OutputError."""
    with _as_output_error(directory), _alone(directory):
        _put_right(directory)
        yield


def put_back(previous: Path, directory: Path) -> None:
    """The two change places in one step; where there is no ``directory`` any more, ``previous`` becomes it. Raises OutputError, OSError."""
    flush(previous)
    if os.path.lexists(directory):
        exchange(previous, directory)
    else:
        _rename(previous, directory)
        _fsync_directory(directory.parent)


def check_exchange(directory: Path) -> None:
    """Raises OutputError where ``exchange`` cannot work at all."""
    if _exchange() is None:
        raise OutputError(
            f"{directory} cannot be replaced in one step on this system; write the new artifact beside it and switch yourself: --out DIR"
        )
    if directory.is_symlink():
        raise OutputError(f"{directory} is a symbolic link; give the directory that it names, or a new one: --out DIR")


def exchange(a: Path, b: Path) -> None:
    """Two directories of one file system change names in one step (Linux renameat2, macOS renamex_np). Raises OutputError."""
    call = _exchange()
    if call is None or call(os.fsencode(a), os.fsencode(b)):
        code = ctypes.get_errno()
        raise OutputError(
            f"{b} cannot be replaced in one step ({os.strerror(code)}): its file system does not know how; "
            "write the new artifact beside it and switch yourself: --out DIR"
        )
    _fsync_directory(b.parent)


def _exchange() -> Callable[[bytes, bytes], int] | None:
    if sys.platform == "win32":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        swap = 2  # RENAME_SWAP
        return lambda a, b: int(libc.renamex_np(a, b, swap))
    if not hasattr(libc, "renameat2"):
        return None
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return lambda a, b: int(libc.renameat2(here, a, here, b, swap))


def seal(staging: Path, manifest: Manifest) -> None:
    """Writes the manifest, once all that it lists has reached the disk. Raises OSError."""
    flush(staging)
    (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8", newline="\n")


def check_free(output: Path) -> None:
    """Raises OutputError where another process is writing ``output``; makes nothing."""
    if _lock(output).exists():
        with _as_output_error(output), _alone(output):
            pass


def previous_of(directory: Path) -> Path:
    """Where an update leaves the artifact that it replaced."""
    return beside(directory, "", ".previous")


def _named(output: Path, kind: str, unique: str) -> Path:
    """``.NAME.kind-unique`` beside the output. A long name is cut alike for every kind."""
    longest = "partial-00000000"
    stem = beside(output, ".", f".{longest}").name.removesuffix(longest)
    return output.with_name(f"{stem}{kind}-{unique}")


def _lock(output: Path) -> Path:
    return beside(output, ".", ".lock")


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(_lock(output)))
        except Held as holder:
            raise OutputError(f"{output} is being written by {holder}; wait until that is done, or choose another: --out DIR") from None
        yield


def _put_right(output: Path, marker: str = MANIFEST) -> None:
    """Only with the lock: what lies beside ``output`` under the names of a build is then of one that was killed.

    Killed between its two last renames it left no ``output`` but the old artifact under its other name, which is put back.
    """
    name = re.compile(re.escape(_named(output, "", "").name.removesuffix("-")) + "(partial|old)-[0-9a-f]{8}")
    for path in sorted(output.parent.iterdir()):
        found = name.fullmatch(path.name)
        if found is None or path.is_symlink() or not path.is_dir():
            continue
        if found[1] == "old" and not os.path.lexists(output) and _opens(path, marker):
            _rename(path, output)
        else:
            _discard(path, marker)


def _opens(directory: Path, marker: str) -> bool:
    if marker != MANIFEST:
        return (directory / marker).is_file()
    try:
        read_artifact(directory)
    except ArtifactError:
        return False
    return True


def _discard(directory: Path, marker: str = MANIFEST) -> None:
    """The manifest first: what is half removed is no artifact."""
    with contextlib.suppress(OSError):
        (directory / marker).unlink()
    shutil.rmtree(directory, ignore_errors=True)


def check_output(output: Path, *, force: bool, marker: str = MANIFEST) -> None:
    """Whether ``output`` may be written, without touching anything. Only an artifact (what has ``marker``) or an empty directory is ever
    replaced."""
    with _as_output_error(output):
        _check_output(output, force=force, marker=marker)


def _check_output(output: Path, *, force: bool, marker: str = MANIFEST) -> None:
    if not output.name:
        raise OutputError(f"{str(output)!r} cannot be an output directory; give a new directory: --out DIR")
    _check_writable(next(p for p in output.absolute().parents if p.is_dir()))
    try:
        output.lstat()  # a name that is too long is told before the long job
    except FileNotFoundError:
        return
    if output.is_symlink() or not output.is_dir():
        raise OutputError(f"{output} exists and is no directory; choose another: --out DIR")
    if not any(output.iterdir()):
        return
    if not (output / marker).is_file():
        what = "artifact" if marker == MANIFEST else "package"
        raise OutputError(f"{output} exists and is no {what}, so it will not be replaced; choose another: --out DIR")
    if not force:
        raise OutputError(f"{output} exists; replace it with --force or choose another: --out DIR")


def _check_writable(parent: Path) -> None:
    """Seen here before the long job; writing sees what this cannot (Windows knows no such question)."""
    if not os.access(parent, os.W_OK | os.X_OK):
        read_only = sys.platform != "win32" and os.statvfs(parent).f_flag & os.ST_RDONLY
        raise OSError(errno.EROFS if read_only else errno.EACCES, "may not be written to")


def _put_in_place(staging: Path, output: Path, marker: str) -> None:
    """Windows cannot rename a directory onto another, not even an empty one: the old one steps aside first."""
    aside = _named(output, "old", os.urandom(4).hex())
    try:
        if os.path.lexists(output):
            _rename(output, aside)
        _rename(staging, output)
    finally:
        if os.path.lexists(aside) and not os.path.lexists(output):
            _rename(aside, output)
        _discard(aside, marker)
    _fsync_directory(output.parent)


def _rename(old: Path, new: Path) -> None:
    """On Windows a virus scanner may hold a file that was just written for a moment; a long build is not thrown away for that."""
    for wait in (0.1, 0.3, 1.0, 3.0) if os.name == "nt" else ():
        try:
            old.rename(new)
            return
        except PermissionError:
            time.sleep(wait)
    old.rename(new)


def flush(directory: Path) -> None:
    """Files, then directories, reach the disk before the rename does: after a power cut a manifest still means a complete artifact."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
    for path in [*(p for p in directory.rglob("*") if p.is_dir()), directory]:
        _fsync_directory(path)


def _fsync_directory(path: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or choose another place: --out DIR",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another place: --out DIR",
    errno.EROFS: "the file system is read-only; choose another place: --out DIR",
    errno.EACCES: "permission denied; choose a place you may write to: --out DIR",
    errno.EPERM: "not permitted; choose a place you may write to: --out DIR",
    errno.ENAMETOOLONG: "the name is longer than the file system takes (255 bytes, mostly); choose a shorter one: --out DIR",
    errno.ELOOP: "a part of the path is a symbolic link that leads to itself; choose another place: --out DIR",
    errno.EEXIST: "a part of the path is a file; choose another place: --out DIR",
    errno.ENOTDIR: "a part of the path is a file; choose another place: --out DIR",
    errno.ENOLCK: "its file system has no locks, so another build could write it too; build on a local disk and copy the artifact",
}
_ADVICE[errno.ENOTSUP] = _ADVICE[errno.ENOSYS] = _ADVICE[errno.ENOLCK]


@contextlib.contextmanager
def _as_output_error(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # A file elsewhere, such as the checkpoint's, is named as it is: advice about the output would mislead.
        place = Path(os.fsdecode(error.filename)).absolute() if error.filename is not None else None
        here = place is None or output.absolute().parent in place.parents or place in output.absolute().parents
        advice = _ADVICE.get(error.errno or 0) if here else None
        raise OutputError(f"cannot write {output}: {advice or without_secrets(str(error))}") from error

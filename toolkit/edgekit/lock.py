"""One writer at a time: an operating system's lock on a file, which ends with the process that holds it, however that ends.

No pid is ever guessed at: what the file says of its holder is for people only. Over a network the lock is as good as the file system's.
"""

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from edgekit import strict_json

if sys.platform == "win32":
    import msvcrt

    AT = 1 << 30
    """The byte that is locked, far behind the text: Windows lets nobody read a locked one."""

    def _try(handle: int) -> bool:
        os.lseek(handle, AT, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                return False
            raise
        os.lseek(handle, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _try(handle: int) -> bool:
        try:
            # Of the open file, not of the process as lockf's: two builds in one process exclude each other too.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class Held(Exception):
    """Somebody else has the lock. The message says who, as in "process 4711 on workshop"."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of the file ``path``, which is made for it and removed after it. Waits for nobody.

    Raises Held, and OSError: the file cannot be made there, or the file system has no locks (ENOLCK, ENOTSUP).
    """
    handle = _acquire(path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        _release(handle, path)


def _acquire(path: Path) -> int:
    # A link that somebody laid there would have another file overwritten.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        handle = os.open(path, flags, 0o666)
        try:
            if not _try(handle):
                raise Held(_holder(path))
            if _is_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder removed it after it was opened here


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _release(handle: int, path: Path) -> None:
    if sys.platform != "win32":
        # While it is still held: whoever opened it meanwhile finds that it is gone, and makes a new one.
        path.unlink(missing_ok=True)
        os.close(handle)
        return
    os.close(handle)
    with contextlib.suppress(OSError):  # open in the next one's hands
        path.unlink()


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            said = strict_json.load(file.read(4096))
        return f"process {int(said['pid'])} on {said['host']}"
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return "another process"  # it has just taken the lock, or just gone

"""An artifact's files in the page cache: dropped for a cold load, read for a warm one, and how much of them is there."""

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def drop(paths: Sequence[Path]) -> bool:
    """Asks the kernel to let their pages go. False where one cannot ask (Windows, macOS); ``cached`` tells what came of it."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not on the disk yet is not let go
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def read(paths: Sequence[Path]) -> None:
    """Every byte, into the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def cached(paths: Sequence[Path]) -> float | None:
    """Share of their pages that the page cache holds (mincore); None where the system does not tell."""
    if sys.platform != "linux":
        return None
    found = [_resident(path) for path in paths if path.stat().st_size]
    pages = sum(total for _, total in found)
    return sum(held for held, _ in found) / pages if pages else None


def _resident(path: Path) -> tuple[int, int]:
    """Pages of the file in the cache, and all of them."""
    count = -(-path.stat().st_size // mmap.PAGESIZE)
    held = (ctypes.c_ubyte * count)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), held)
        finally:
            del start  # else the mapping cannot be closed
    return (0, 0) if failed else (sum(page & 1 for page in held), count)

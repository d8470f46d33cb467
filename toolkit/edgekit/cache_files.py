"""Whole files in the cache of quantized blocks: what takes minutes to make of them. Listed, pruned and checked as blocks are.

A group holds the files of one job, each as a block of its own, and last of all ``complete``, which names them: without it nothing counts.
Nothing larger than a piece is ever in memory.
"""

import hashlib
import json
import logging
import mmap
from collections.abc import Mapping
from pathlib import Path

from edgekit import cache as blocks
from edgekit import strict_json
from edgekit.cache import Cache

COMPLETE = "complete"
PIECE = 1 << 22

log = logging.getLogger("edgekit.cache")


def keep(cache: Cache, group: str, files: Mapping[str, Path], about: Mapping[str, str]) -> None:
    """Keeps ``files`` (plain name -> where it is), unless that cannot be done, which is reported once."""
    for name, path in files.items():
        if not path.stat().st_size:  # nothing to map
            blocks.store(cache, group, name, [b""], about)
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            pieces = [view[start : start + PIECE] for start in range(0, len(view), PIECE)]
            try:
                blocks.store(cache, group, name, pieces, about)
            finally:
                for piece in pieces:
                    piece.release()
    if not cache.full.is_set():
        blocks.store(cache, group, COMPLETE, [json.dumps(sorted(files)).encode()], about)


def restore(cache: Cache, group: str, folder: Path) -> bool:
    """Copies the files of ``group`` into ``folder``; False, leaving nothing there, where they are not all in the cache and whole."""
    names = blocks.load(cache, group, COMPLETE, None)
    if names is None:
        return False
    wanted = strict_json.load(bytes(names))
    if all(_copy(cache, group, name, folder / name) for name in wanted):
        return True
    for name in wanted:
        (folder / name).unlink(missing_ok=True)
    return False


def _copy(cache: Cache, group: str, name: str, to: Path) -> bool:
    place = cache.directory / "blocks" / group / name
    digest = hashlib.sha256(f"{group}/{name}\n".encode())
    try:
        source = place.open("rb")
    except OSError:  # pruned, or not to be read
        return False
    with source, to.open("wb") as copy:
        wanted = source.read(32)
        while piece := source.read(PIECE):
            digest.update(piece)
            copy.write(piece)
    if digest.digest() != wanted:
        log.warning("%s in the cache is damaged; it is made anew", place)
        return False
    blocks.touch(place)
    return True

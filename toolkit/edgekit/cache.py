"""The cache of quantized blocks: a second target, a scheme built before or a build broken off begins with what is there.

    blocks/<group>/<begin>-<end>   the rows stored at these bytes of a checkpoint file: a sha256, then codes, scales, zero points
    blocks/<group>/about.json      model and format, for people
    sources/<name>                 sha256 of a checkpoint file, with the size and times it had

A group is a digest of the checkpoint file's sha256, the format and the quantizer's version, so a block's place says all that its bytes
depend on. (Digests of single tensors would also serve a file laid out anew, but cost as much hashing again: 4 s of a core for 7.6 GB.)
Files appear by a rename and are checked as they are read, so any number of builders share a cache; the least recently used go first.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from edgekit import strict_json
from edgekit.artifact import digests
from edgekit.errors import UsageError
from edgekit.files import shown
from edgekit.progress import Progress
from edgekit.records import RecordError, parse
from edgekit.resources import cache_folder

LIMIT = 20_000_000_000
"""Bytes, unless EDGEKIT_CACHE_LIMIT says otherwise: the blocks of some five models of 7 billion weights."""
ABOUT = "about.json"
PARTIAL = ".partial-"
ABANDONED = 24 * 3600.0
"""Seconds after which a partial file belongs to no builder any more."""
TRIES = 20
"""Of writing a file whose directory others remove at the same time."""
SETTLED = 2_000_000_000
"""Nanoseconds a file must have rested before its digest is kept: a change within one tick of a file system's clock would not show."""

log = logging.getLogger("edgekit.cache")


@dataclass(frozen=True)
class Cache:
    """limit: bytes that are kept when a build is over. full: set once nothing more can be kept. told: directories whose trouble was
    reported in this process, however often a cache is opened: once is enough."""

    directory: Path
    limit: int
    full: threading.Event = field(default_factory=threading.Event, compare=False)
    told: ClassVar[set[Path]] = set()

    def trouble(self, text: str, *values: object) -> None:
        """Reported at the first time."""
        if self.directory not in self.told:
            self.told.add(self.directory)
            log.warning(text, *values)


@dataclass(frozen=True)
class Stamp:
    """What changes when a file does."""

    size: int
    modified: int
    changed: int
    device: int
    inode: int


@dataclass(frozen=True)
class SourceFile:
    """A checkpoint file as it was when its digest was taken."""

    path: str
    sha256: str
    stamp: Stamp


@dataclass(frozen=True)
class Group:
    """Blocks of one checkpoint file in one format. used: seconds since 1970, when last."""

    name: str
    model: str
    file: str
    format: str
    blocks: int
    bytes: int
    used: float


@dataclass(frozen=True)
class Pruned:
    """Files and bytes removed, bytes left, and files that should have gone but could not be removed."""

    files: int
    bytes: int
    left: int
    stuck: int


def open_cache() -> Cache:
    """The user's cache: EDGEKIT_CACHE, or the platform's place; EDGEKIT_CACHE_LIMIT or LIMIT. Makes nothing.

    Raises UsageError for a limit that is no size.
    """
    asked = os.environ.get("EDGEKIT_CACHE_LIMIT")
    return Cache(cache_folder(os.environ), parse_size(asked, "EDGEKIT_CACHE_LIMIT") if asked else LIMIT)


def pruning_limit(cache: Cache, asked: str | None, *, everything: bool) -> int:
    """Bytes to prune to: none, or what was ``asked`` for, or the cache's limit. Raises UsageError for two wishes, or for no size."""
    if everything and asked is not None:
        raise UsageError("--all and --limit contradict each other; give one of them")
    if everything:
        return 0
    return cache.limit if asked is None else parse_size(asked, "--limit")


def parse_size(text: str, where: str) -> int:
    """Bytes of ``20GB``, ``500 MB`` or ``1000000``, in powers of 1000. Raises UsageError naming ``where``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kMGT])?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{where}: {text!r} is no size; write it like 20GB, 500MB or 0")
    return int(float(found[1]) * 1000 ** " kmgt".index((found[2] or " ").lower()))


def stamp(path: Path) -> Stamp:
    """Raises OSError."""
    found = path.stat()
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino)


def source_files(paths: Iterable[Path], cache: Cache | None, progress: Progress, threads: int | None) -> dict[Path, SourceFile]:
    """The sha256 of each file. One whose digest the cache holds, and that has not changed since, is not read again. Raises OSError."""
    found: dict[Path, SourceFile] = {}
    stamps = {path: stamp(path) for path in paths}
    for path, now in stamps.items():
        kept = _recall(cache, path) if cache is not None else None
        if kept is not None and kept.stamp == now:
            found[path] = kept
    fresh = {str(path): path for path in stamps if path not in found}
    began = time.time_ns()
    for name, info in digests(fresh, "digest of the model", progress, threads).items():
        path = fresh[name]
        found[path] = SourceFile(name, info.sha256, stamps[path])
        rested = began - max(stamps[path].modified, stamps[path].changed) > SETTLED
        # Windows keeps no time of the last change that a program cannot set back.
        if cache is not None and rested and sys.platform != "win32" and stamp(path) == stamps[path]:
            text = json.dumps({**asdict(found[path]), "path": shown(path)})
            _keep(cache, _source_place(cache, path), [text.encode()])
    return {path: found[path] for path in stamps}


def _source_place(cache: Cache, path: Path) -> Path:
    return cache.directory / "sources" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]


def _recall(cache: Cache, path: Path) -> SourceFile | None:
    place = _source_place(cache, path)
    try:
        kept = parse(SourceFile, strict_json.load(place.read_bytes()), unknown="refuse")
    except (OSError, ValueError, RecordError):  # not there, or damaged: the file is read again, which is always right
        return None
    touch(place)
    return kept


def group_name(facts: Sequence[str | int | bool]) -> str:
    """The directory of the blocks that ``facts`` (the source's digest, format, version) determine."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def load(cache: Cache, group: str, name: str, size: int | None) -> memoryview | None:
    """The ``size`` bytes of a block (None: however many), or None when they are not there. A damaged block counts as not there, and is
    reported."""
    place = cache.directory / "blocks" / group / name
    try:
        raw = memoryview(place.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        cache.trouble("%s in the cache cannot be read (%s); it is made anew", place, error.strerror or error)
        return None
    payload = raw[32:]
    if size not in (None, len(payload)) or _digest(group, name, [payload]) != raw[:32]:
        log.warning("%s in the cache is damaged; it is made anew", place)
        return None
    touch(place)
    return payload


def touch(place: Path) -> None:
    """Used just now. (The time of the last access is often not kept.)"""
    with contextlib.suppress(OSError):  # another user's cache may be read-only; pruned in this moment, it is gone
        os.utime(place)


def store(cache: Cache, group: str, name: str, parts: Sequence[memoryview | bytes], about: Mapping[str, str]) -> None:
    """Keeps a block, unless that cannot be done, which is reported once. ``about``: model, file and format, for ``groups``."""
    folder = cache.directory / "blocks" / group
    if not (folder / ABOUT).is_file():
        _keep(cache, folder / ABOUT, [json.dumps(about).encode()])
    _keep(cache, folder / name, [_digest(group, name, parts), *parts])


def make_room(cache: Cache, size: int) -> None:
    """Before ``size`` bytes are built: where they would not fit within the limit, or not twice on the disk, nothing is kept. Reported."""
    existing = next(p for p in (cache.directory, *cache.directory.parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if size > cache.limit or 2.1 * size > free:
        why = f"the limit is {cache.limit / 1e9:.3g} GB" if size > cache.limit else f"{existing} has {free / 1e9:.3g} GB free"
        cache.full.set()
        log.warning("these weights are not kept in the cache: they take about %.3g GB, %s", size / 1e9, why)


def _digest(group: str, name: str, parts: Sequence[memoryview | bytes]) -> bytes:
    """Of the place too: a block that was moved is a wrong one."""
    digest = hashlib.sha256(f"{group}/{name}\n".encode())
    for part in parts:
        digest.update(part)
    return digest.digest()


def _keep(cache: Cache, place: Path, parts: Sequence[memoryview | bytes]) -> None:
    """Writes the file, complete or not at all."""
    if cache.full.is_set():
        return
    for tries_left in reversed(range(TRIES)):
        partial = place.with_name(f"{PARTIAL}{place.name}-{os.urandom(4).hex()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    for part in parts:
                        file.write(part)
                partial.replace(place)
                return
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            if isinstance(error, PermissionError) and place.is_file():
                return  # Windows: another builder has the same block open
            if tries_left and isinstance(error, (FileNotFoundError, FileExistsError)):
                continue  # somebody prunes: the directory went between two calls, or came back between two others
            cache.full.set()
            cache.trouble("nothing more is kept in the cache %s: %s", cache.directory, error.strerror or error)
            return


def groups(cache: Cache) -> list[Group]:
    """What the cache holds, last used first."""
    found: dict[str, list[os.stat_result]] = {}
    for path, status in _entries(cache):
        if path.parent.parent.name == "blocks":
            found.setdefault(path.parent.name, []).append(status)
    return sorted((_group(cache, name, held) for name, held in found.items()), key=lambda g: (-g.used, g.name))


def _group(cache: Cache, name: str, held: Sequence[os.stat_result]) -> Group:
    try:
        about = strict_json.load((cache.directory / "blocks" / name / ABOUT).read_bytes())
        model, file, form = (str(about[key]) for key in ("model", "file", "format"))
    except (OSError, ValueError, TypeError, KeyError):
        model = file = form = "?"
    return Group(name, model, file, form, len(held), sum(s.st_size for s in held), max(s.st_mtime for s in held))


def _entries(cache: Cache) -> Iterator[tuple[Path, os.stat_result]]:
    """Every block and every kept digest. What vanishes meanwhile (another process prunes) is passed over."""
    for path in _files(cache):
        if path.name == ABOUT or path.name.startswith(PARTIAL):
            continue
        with contextlib.suppress(OSError):
            yield path, path.stat()


def _files(cache: Cache) -> Iterator[Path]:
    for folder in _inside(cache.directory / "blocks"):
        yield from _inside(folder)
    yield from _inside(cache.directory / "sources")


def _inside(folder: Path) -> list[Path]:
    """Nothing of a directory that is none, may not be read, or has just gone: ``glob`` and ``iterdir`` would raise in the middle."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def prune(cache: Cache, limit: int) -> Pruned:
    """Removes the least recently used files until at most ``limit`` bytes are left, and what killed builders left behind.

    A file that cannot be removed (another user's; on Windows one that a build has open) stays.
    """
    entries = sorted(_entries(cache), key=lambda entry: (entry[1].st_mtime, entry[0].name))
    left = total = sum(status.st_size for _, status in entries)
    files = stuck = 0
    for path, status in entries:
        if left <= limit:
            break
        if _remove(path):
            files, left = files + 1, left - status.st_size
        else:
            stuck += 1
    for path in _files(cache):
        if path.name.startswith(PARTIAL):
            _remove_abandoned(path)
    for folder in _inside(cache.directory / "blocks"):
        _remove_empty(folder)
    return Pruned(files, total - left, left, stuck)


def _remove(path: Path) -> bool:
    """False where it may not be: another user's, or open in a builder on Windows."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _remove_abandoned(path: Path) -> None:
    try:
        old = path.stat().st_mtime < time.time() - ABANDONED
    except OSError:
        return
    if old:
        _remove(path)


def _remove_empty(folder: Path) -> None:
    """A builder may be about to write into it: it makes the directory anew, or keeps one block less."""
    if any(path.name != ABOUT for path in _inside(folder)):
        return
    _remove(folder / ABOUT)
    with contextlib.suppress(OSError):  # not empty any more, or another process was faster
        folder.rmdir()

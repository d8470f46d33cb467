"""Files of the hub into huggingface_hub's own cache: resumed where an earlier process stopped, and under their name only once right.

huggingface_hub (2.4) goes on with a file while its process lives, and begins it anew in the next one; nor does it compare what arrived
with the hub's digest. Addresses, tokens, metadata and the layout of the cache are its own.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from edgekit.errors import DownloadError
from edgekit.lock import Held, locked
from edgekit.parallel import in_threads
from edgekit.progress import Progress

T = TypeVar("T")
AT_ONCE = 4
"""Files that are downloaded at the same time."""
WAITS = (1.0, 4.0, 16.0, 30.0)
"""Seconds before another try of what the hub was too busy for (429, 5xx) or broke off, without a byte in between."""
LONGEST = 120.0
"""Seconds; a hub that asks for more patience (Retry-After) is given up."""
BUSY = (408, 429, 500, 502, 503, 504)
TIMEOUT = 10.0
"""Seconds without a byte; as long, at worst, Ctrl-C takes."""
DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
"""The hub's ETag: the sha256 of a large file; of a small one git's name for it, a sha1."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class _File:
    """Where a file is and what it must be. blob: its place in the cache, named after ``digest``."""

    name: str
    url: str
    headers: dict[str, str]
    size: int
    digest: str
    blob: Path


def fetch(api: Any, model: str, commit: str, names: Sequence[str], progress: Progress) -> None:
    """Downloads what the cache lacks of ``names``, telling ``progress`` about stage "download".

    Raises DownloadError (wrong bytes, no digest, another process is at it), huggingface_hub's and httpx's errors, and OSError.
    """
    files = {file.blob: file for file in _files(api, model, commit, names)}
    missing = [file for file in files.values() if not file.blob.exists()]
    total, done = sum(file.size for file in missing), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress("download", min(done, total), total)

    in_threads(lambda file: _one(api, file), missing, AT_ONCE, tell)


def check(api: Any, model: str, commit: str, names: Sequence[str], folder: Path) -> None:
    """Of files that huggingface_hub itself wrote into ``folder``. Raises as ``fetch`` does; what is wrong is removed."""
    for file in _files(api, model, commit, names):
        _check(file, folder / file.name)


def beginning(api: Any, model: str, commit: str, name: str, count: int) -> tuple[bytes, int]:
    """At most ``count`` bytes from the start of a file, and the size of the whole. Nothing is kept, and nothing compared with a digest,
    which is of the whole. Raises as ``fetch`` does."""
    file = patiently(api, partial(_file, api, model, commit, name))

    def get() -> bytes:
        got = bytearray()
        headers = {**file.headers, "Range": f"bytes=0-{count - 1}"}
        with api.utils.get_session().stream("GET", file.url, headers=headers, timeout=TIMEOUT) as response:
            api.utils.hf_raise_for_status(response)
            for chunk in response.iter_bytes():
                got += chunk
                if len(got) >= count:  # it may know no ranges
                    break
        return bytes(got[:count])

    found = patiently(api, get) if file.size else b""
    if len(found) < min(count, file.size):
        raise DownloadError(f"{name} of {model}: {len(found)} bytes arrived of {min(count, file.size)}; run it again")
    return found, file.size


def _files(api: Any, model: str, commit: str, names: Sequence[str]) -> Iterator[_File]:
    for name in names:
        yield patiently(api, partial(_file, api, model, commit, name))


def _file(api: Any, model: str, commit: str, name: str) -> _File:
    url = api.hf_hub_url(model, name, revision=commit)
    found = api.get_hf_file_metadata(url)
    digest = found.etag or ""
    if not DIGEST.fullmatch(digest) or found.size is None:
        raise DownloadError(
            f"{name} of {model}: {urlsplit(url).hostname} does not say its digest and size (ETag {digest!r}), so it could not be checked. "
            "Take another HF_ENDPOINT; or download the model otherwise and build from its directory"
        )
    headers = {**api.utils.build_hf_headers(), "Accept-Encoding": "identity"}
    if _origin(found.location) != _origin(url):
        headers.pop("authorization", None)  # a storage host is not to see the token
    folder = Path(api.constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "blobs"
    return _File(name, found.location, headers, found.size, digest, folder / digest)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _one(api: Any, file: _File) -> Iterator[int]:
    """Yields the bytes as they arrive, and at first those that were there."""
    unfinished = file.blob.with_name(f"{file.blob.name}.edgekit-partial")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(unfinished.with_name(f"{unfinished.name}.lock")):
            if file.blob.exists():
                yield file.size
                return
            yield from _arriving(api, file, unfinished)
            _check(file, unfinished)
            unfinished.replace(file.blob)
    except Held as holder:
        raise DownloadError(f"{file.name} is being downloaded by {holder}; wait until that is done, then run it again") from None


def _arriving(api: Any, file: _File, unfinished: Path) -> Iterator[int]:
    waits = iter(WAITS)
    unfinished.touch()
    have = unfinished.stat().st_size
    yield min(have, file.size)
    while have != file.size:
        before = have
        try:
            for now in _streamed(api, file, unfinished, have if have < file.size else 0):
                yield max(0, now - before)
                have, before = now, max(before, now)
                waits = iter(WAITS)
            if have != file.size:
                raise DownloadError(f"{file.name}: {have} bytes arrived, the hub says {file.size}; run it again")
        except api.errors.HTTPError as error:
            wait = next(waits, None)
            if wait is None or not _passing(api, error):
                raise
            time.sleep(_asked(error, wait))
            yield 0  # here the thread ends after Ctrl-C
            have = unfinished.stat().st_size


def _streamed(api: Any, file: _File, unfinished: Path, have: int) -> Iterator[int]:
    """The file's size after each chunk. Never more is written than the hub said."""
    headers = {**file.headers, "Range": f"bytes={have}-"} if have else file.headers
    with api.utils.get_session().stream("GET", file.url, headers=headers, timeout=TIMEOUT) as response:
        api.utils.hf_raise_for_status(response)
        if have and (response.status_code != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
            have = 0  # it knows no ranges
        with unfinished.open("r+b", buffering=0) as out:
            out.truncate(have)
            out.seek(have)
            for chunk in response.iter_bytes():
                have += len(chunk)
                if have > file.size:
                    out.truncate(0)
                    raise DownloadError(f"{file.name}: more bytes arrive than the {file.size} that the hub says; nothing of it was kept")
                out.write(chunk)
                yield have


def _check(file: _File, unfinished: Path) -> None:
    """Raises DownloadError, and throws away what is wrong."""
    digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with unfinished.open("rb", buffering=0) as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != file.digest:
        unfinished.unlink()
        raise DownloadError(
            f"{file.name}: what arrived is not what the hub has ({digest.name} {digest.hexdigest()}, wanted {file.digest}); it was thrown "
            f"away. Run it again; if it stays so, something between here and {urlsplit(file.url).hostname} changes files"
        )


def patiently(api: Any, call: Callable[[], T]) -> T:
    """``call``, again and again while the hub is busy. Raises its last error."""
    for wait in WAITS:
        try:
            return call()
        except (api.errors.HTTPError, OSError) as error:
            if not _passing(api, error):
                raise
            time.sleep(_asked(error, wait))
    return call()


def chain(error: BaseException) -> Iterator[BaseException]:
    """huggingface_hub wraps the error that matters in others."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _passing(api: Any, error: BaseException) -> bool:
    """Whether it may be over in a moment: the hub is busy, or the connection broke off (no connection at all is another matter)."""
    for each in chain(error):
        response = getattr(each, "response", None)
        if response is not None:
            return response.status_code in BUSY and _asked(each, 0.0) <= LONGEST
    return type(error).__name__ in ("RemoteProtocolError", "ReadError", "ReadTimeout")


def _asked(error: BaseException, wait: float) -> float:
    """Seconds to wait: as many as the hub asks for, else ``wait``."""
    for each in chain(error):
        after = getattr(getattr(each, "response", None), "headers", {}).get("Retry-After", "")
        if after.isdigit():
            return float(after)
    return wait

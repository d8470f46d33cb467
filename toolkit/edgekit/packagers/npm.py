"""JavaScript packages of the npm registry: of pinned versions, by their digests, kept in edgekit's cache."""

import base64
import os
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import DownloadError
from edgekit.files import file_digest
from edgekit.packagers.parts import Component, texts
from edgekit.progress import Progress
from edgekit.records import parse
from edgekit.resources import cache_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TIMEOUT = 60.0
"""Seconds without a byte."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """files: name in the page -> path in the package. provider: the one of an artifact that it is for, None for any. text: its licence, as
    ``parts.texts`` names it, where the package has none."""

    name: str
    version: str
    license: str
    url: str
    integrity: str
    papers: tuple[str, ...]
    files: Mapping[str, str]
    provider: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class _File:
    package: tuple[Package, ...]


def packages() -> tuple[Package, ...]:
    """Those of npm.toml."""
    text = Path(__file__).with_name("npm.toml").read_text(encoding="utf-8")
    return parse(_File, tomllib.loads(text), unknown="refuse").package


def vendor(package: Package, folder: Path, progress: Progress) -> Component:
    """Puts the package's files into ``folder``. Raises DownloadError."""
    path = tarball(package, progress)
    with tarfile.open(path) as archive:

        def read(name: str) -> bytes:
            try:
                member = archive.extractfile(f"package/{name}")
            except KeyError:
                member = None
            if member is None:
                raise DownloadError(f"{package.name} {package.version} has no file {name}; upgrade edgekit")
            return member.read()

        for name, inside in package.files.items():
            (folder / name).write_bytes(read(inside))
        papers = tuple((name, read(name)) for name in package.papers) + (texts(package.text) if package.text else ())
    purl = f"pkg:npm/{package.name.replace('@', '%40')}@{package.version}"
    return Component(package.name, package.version, purl, package.license, file_digest(path, "sha256").hex(), papers)


def place(package: Package) -> Path:
    """Of its tarball in the cache."""
    return cache_folder(os.environ) / "npm" / f"{package.name.replace('/', '_')}-{package.version}.tgz"


def tarball(package: Package, progress: Progress) -> Path:
    """From the cache, else from the registry. What is not of the pinned digest is removed. Raises DownloadError."""
    path = place(package)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            _download(package, partial, progress)
            _check(package, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    _check(package, path)
    return path


def _download(package: Package, partial: Path, progress: Progress) -> None:
    try:
        with urllib.request.urlopen(package.url, timeout=TIMEOUT) as answer, partial.open("wb") as file:
            total, done = int(answer.headers.get("Content-Length") or 0), 0
            while piece := answer.read(CHUNK):
                done += file.write(piece)
                progress(f"download of {package.name}", done, max(done, total))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DownloadError(
            f"{package.url} cannot be fetched: {error}; check the connection, or put the file at {place(package)} yourself"
        ) from None


def _check(package: Package, path: Path) -> None:
    kind, _, wanted = package.integrity.partition("-")
    if base64.b64encode(file_digest(path, kind)).decode() != wanted:
        path.unlink()
        raise DownloadError(f"{package.url} sent something else than {package.name} {package.version} ({kind} differs); try again")

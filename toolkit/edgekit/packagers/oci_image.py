"""OCI image layouts (github.com/opencontainers/image-spec 1.1), read and written without a daemon: plain tar and JSON."""

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import strict_json
from edgekit.errors import UsageError
from edgekit.files import file_digest

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CHUNK = 1 << 20
DOCUMENT = 16 << 20
"""Bytes; a larger index, manifest or configuration is refused before it is parsed."""

Document = dict[str, object]


@dataclass(frozen=True)
class Layer:
    """descriptor: as manifests name it. diff: digest of the tar before it was compressed. made: for the history."""

    descriptor: Document
    diff: str
    made: str


@dataclass(frozen=True)
class Base:
    """An image of a layout for one architecture. folder: of the layout."""

    folder: Path
    layers: tuple[Document, ...]
    config: Mapping[str, object]


class Layout:
    """A layout that is being written."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        self._folder = folder

    def document(self, kind: str, content: Mapping[str, object]) -> Document:
        raw = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(raw).hexdigest()
        (self._blobs / digest).write_bytes(raw)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(raw)}

    def layer(self, files: Mapping[str, Path | bytes], made: str, *, compressed: bool = True) -> Layer:
        """A layer of ``files``, by their place in the image. Owner, time and order say nothing of this machine.

        compressed: not worth it for weights, which look like noise.
        """
        partial = self._blobs / "partial"
        with partial.open("wb") as file:
            counted = _Digest(file)
            packed = gzip.GzipFile("", "wb", 6, counted, mtime=0) if compressed else counted
            inner = _Digest(packed)
            with tarfile.open(fileobj=inner, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                _fill(archive, files)
            if isinstance(packed, gzip.GzipFile):
                packed.close()
        partial.rename(self._blobs / counted.hex)
        kind = f"{LAYER}+gzip" if compressed else LAYER
        return Layer({"mediaType": kind, "digest": f"sha256:{counted.hex}", "size": counted.size}, f"sha256:{inner.hex}", made)

    def take(self, base: Base) -> None:
        """Copies the layers of ``base``, comparing digests. Raises UsageError."""
        for descriptor in base.layers:
            digest = str(descriptor["digest"]).removeprefix("sha256:")
            target = self._blobs / digest
            if not target.exists():
                source = base.folder / "blobs" / "sha256" / digest
                shutil.copyfile(source, target)
                if file_digest(target).hex() != digest:
                    raise UsageError(f"{source} is damaged: its digest is another than its name; copy the base image again")

    def image(self, base: Base, architecture: str, layers: Sequence[Layer], run: Mapping[str, object]) -> Document:
        """An image upon ``base``; ``run``: what its ``config`` says beside the base's. Returns the descriptor, with its platform."""
        held = base.config
        old, old_run = held.get("rootfs"), held.get("config")
        diffs = list(old.get("diff_ids", [])) if isinstance(old, dict) else []
        history = [*_list(held.get("history")), *({"created_by": one.made} for one in layers)]
        config: Document = {
            "architecture": architecture,
            "os": "linux",
            **({"variant": held["variant"]} if "variant" in held else {}),
            "config": {**(old_run if isinstance(old_run, dict) else {}), **run},
            "rootfs": {"type": "layers", "diff_ids": [*diffs, *(one.diff for one in layers)]},
            "history": history,
        }
        described = self.document(CONFIG, config)
        body: Document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described}
        body["layers"] = [*base.layers, *(one.descriptor for one in layers)]
        return {**self.document(MANIFEST, body), "platform": {"architecture": architecture, "os": "linux"}}

    def close(self, images: Sequence[Document], reference: str) -> None:
        """The index of all architectures, under the name ``reference``."""
        index = self.document(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(images)})
        named = {**index, "annotations": {"org.opencontainers.image.ref.name": reference}}
        top = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]}
        (self._folder / "index.json").write_text(json.dumps(top, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
        (self._folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}\n', encoding="utf-8", newline="\n")


class _Digest(io.RawIOBase):
    """Passes on what is written, counts it and takes its sha256."""

    def __init__(self, into: io.BufferedWriter | gzip.GzipFile | io.RawIOBase) -> None:
        self._into = into
        self._sha = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._into.write(data)
        self._sha.update(data)
        self.size += len(data)
        return len(data)

    @property
    def hex(self) -> str:
        return self._sha.hexdigest()


def _fill(archive: tarfile.TarFile, files: Mapping[str, Path | bytes]) -> None:
    folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
    for name in sorted({*folders, *files}):
        entry = tarfile.TarInfo(name)
        if name in folders:
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
            continue
        content = files[name]
        entry.mode = 0o644
        if isinstance(content, bytes):
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        else:
            entry.size = content.stat().st_size
            entry.mode = 0o755 if content.stat().st_mode & 0o100 else 0o644
            with content.open("rb") as file:
                archive.addfile(entry, file)


def read_base(folder: Path, architecture: str) -> Base:
    """The image of a layout for ``architecture`` ("amd64", "arm64"). Raises UsageError: none is there, or it is no layout."""
    try:
        for manifest in _manifests(folder, _parsed((folder / "index.json").read_bytes(), folder), depth=0):
            described = manifest.get("config")
            layers = manifest.get("layers")
            if not isinstance(described, dict) or not isinstance(layers, list):
                continue
            config = _blob(folder, described)
            if (config.get("architecture"), config.get("os")) == (architecture, "linux"):
                _check_layers(folder, layers)
                return Base(folder, tuple(layers), config)
    except OSError as error:
        raise UsageError(f"--base {folder} is no OCI image layout: {error}; make one: {_ADVICE}") from None
    raise UsageError(f"--base {folder} has no image for linux/{architecture}; get one that has, or leave that --platform out")


_ADVICE = "skopeo copy --all docker://python:3.11-slim oci:python:3.11-slim"


def _manifests(folder: Path, index: Document, depth: int) -> list[Document]:
    found: list[Document] = []
    for descriptor in _list(index.get("manifests")):
        held = _blob(folder, descriptor)
        if isinstance(held.get("manifests"), list) and depth < 3:
            found += _manifests(folder, held, depth + 1)
        elif "layers" in held:
            found.append(held)
    return found


def _check_layers(folder: Path, layers: Sequence[Document]) -> None:
    for layer in layers:
        digest = str(layer.get("digest"))
        if not DIGEST.fullmatch(digest) or not (folder / "blobs" / "sha256" / digest[7:]).is_file():
            raise UsageError(f"--base {folder} lacks the layer {digest}; copy the base image again")


def _blob(folder: Path, descriptor: Mapping[str, object]) -> Document:
    digest = str(descriptor.get("digest"))
    if not DIGEST.fullmatch(digest):
        raise UsageError(f"--base {folder}: {digest!r} is no sha256 digest")
    path = folder / "blobs" / "sha256" / digest[7:]
    if path.stat().st_size > DOCUMENT:
        raise UsageError(f"{path} is too large for an index, manifest or configuration")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != digest[7:]:
        raise UsageError(f"{path} is damaged: its digest is another than its name; copy the base image again")
    return _parsed(raw, path)


def _parsed(raw: bytes, where: Path) -> Document:
    try:
        held = strict_json.load(raw)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid JSON: {error}; copy the base image again") from None
    if not isinstance(held, dict):
        raise UsageError(f"{where}: not a JSON object; copy the base image again")
    return held


def _list(value: object) -> list[Document]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []

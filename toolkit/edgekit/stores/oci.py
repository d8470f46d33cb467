"""OCI registries. An artifact is an image manifest with a layer for each file, titled by its name: what ``oras push`` makes and pulls.

A layer's digest is the sha256 that the artifact's manifest lists, so registries keep a file that two artifacts share once, and a pull knows
before it downloads whether a layer is right. (OCI image specification 1.1, "Guidelines for Artifact Usage".)
"""

import contextlib
import functools
import hashlib
import importlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edgekit import strict_json
from edgekit.artifact import MANIFEST, SIGNATURE, Artifact, FileInfo, Manifest
from edgekit.errors import ArtifactError, DownloadError, EngineMissing, ModelNotFound, OutputError
from edgekit.output import writing
from edgekit.progress import Progress
from edgekit.redact import without_secrets
from edgekit.signing import Trust
from edgekit.stores.place import LIMITS, RegistryPlace, check_head

KIND = "application/vnd.edgekit.artifact.v1"
FILE = "application/vnd.edgekit.file"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
LISTING_LIMIT = 4 << 20
"""Bytes of a registry's manifest, as registries themselves limit it."""
WAITS = (1.0, 4.0, 16.0)
"""Seconds before a layer that was cut off goes on where it stopped."""
STEP = 1 << 20


def push(artifact: Artifact, place: RegistryPlace, progress: Progress) -> str:
    """Uploads what the registry lacks, the listing last. Returns the address by digest. Raises DownloadError, EngineMissing."""
    with _client(place) as (client, container):
        heads = [name for name in (MANIFEST, SIGNATURE) if (artifact.directory / name).is_file()]
        infos = {name: _described(artifact.directory / name) for name in heads} | dict(artifact.manifest.files)
        total, done = sum(info.bytes for info in infos.values()), 0
        for name, info in infos.items():
            with (artifact.directory / name).open("rb") as file:
                _upload(client, container, file, info)
            done += info.bytes
            progress("upload", done, total)
        empty = FileInfo(2, hashlib.sha256(b"{}").hexdigest())
        _upload(client, container, b"{}", empty)
        listing = {
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "artifactType": KIND,
            "config": {"mediaType": EMPTY, "digest": f"sha256:{empty.sha256}", "size": 2},
            "layers": [
                {"mediaType": FILE, "digest": f"sha256:{info.sha256}", "size": info.bytes, "annotations": {TITLE: name}}
                for name, info in infos.items()
            ],
        }
        raw = json.dumps(listing).encode()
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        url = f"{client.prefix}://{container.manifest_url(place.reference)}"
        _expect(client.do_request(url, "PUT", headers={"Content-Type": IMAGE}, data=raw), (201,))
    return str(RegistryPlace(place.host, place.repository, digest))


def pull(place: RegistryPlace, output: Path, *, force: bool, trust: Trust | None, progress: Progress) -> Manifest:
    """See ``stores.pull``."""
    with _client(place) as (client, container):
        layers = _layers(client, container, place)
        heads = {name: _small(client, container, layers[name], name) for name in (MANIFEST, SIGNATURE) if name in layers}
        if MANIFEST not in heads:
            raise ArtifactError(f"{place} is no artifact: it has no {MANIFEST}; push one with: edge push DIR {place}")
        manifest = check_head(heads[MANIFEST], heads.get(SIGNATURE), trust, str(place))
        for name, info in manifest.files.items():
            if layers.get(name) != info:
                raise ArtifactError(f"{place}: {name} is missing there, or another one than its {MANIFEST} lists; push the artifact again")
        total, done = sum(info.bytes for info in manifest.files.values()), 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            progress("download", done, total)

        with writing(output, force=force) as staging:
            for name, info in manifest.files.items():
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    for count in _download(client, container, info, file, name):
                        tell(count)
            for name in (SIGNATURE, MANIFEST):
                if name in heads:
                    (staging / name).write_bytes(heads[name])
    return manifest


@contextlib.contextmanager
def _client(place: RegistryPlace) -> Iterator[tuple[Any, Any]]:
    """oras' client, with the credentials of Docker's configuration, and its name for the place; its errors become ours."""
    try:
        provider, containers = importlib.import_module("oras.provider"), importlib.import_module("oras.container")
        requests, urllib3 = importlib.import_module("requests"), importlib.import_module("urllib3")
    except ImportError:
        raise EngineMissing('OCI registries need the package oras: pip install "edgekit[oci]"') from None
    client = provider.Registry(hostname=place.host, insecure=place.plain)
    # As it comes it tries five times over two minutes, whatever the error: a name that is not there or a port that is closed.
    client.do_request = functools.partial(getattr(provider.Registry.do_request, "__wrapped__", provider.Registry.do_request), client)
    container = containers.Container(f"{place.host}/{place.repository}{'@' if ':' in place.reference else ':'}{place.reference}")
    try:
        client.auth.load_configs(container)
        yield client, container
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _unreachable(place, error) from None
    except ValueError as error:
        said = without_secrets(str(error))
        raise DownloadError(f"{place}: the registry refused: {said}. Is the name right, and are you logged in (docker login)?") from None


def _unreachable(place: object, error: Exception) -> DownloadError:
    """Says the kind of error: its text holds addresses, which may hold tokens."""
    return DownloadError(f"{place}: the registry could not be reached: {type(error).__name__}; run it again")


def _expect(response: Any, statuses: tuple[int, ...]) -> Any:
    if response.status_code not in statuses:
        raise ValueError(f"{response.request.method} was answered with {response.status_code} {response.reason}")
    return response


def _described(path: Path) -> FileInfo:
    raw = path.read_bytes()
    return FileInfo(len(raw), hashlib.sha256(raw).hexdigest())


def _upload(client: Any, container: Any, content: BinaryIO | bytes, info: FileInfo) -> None:
    """Streams from the file: oras' own upload reads it into memory."""
    if client.blob_exists({"digest": f"sha256:{info.sha256}"}, container):
        return
    begun = _expect(client.do_request(f"{client.prefix}://{container.upload_blob_url()}", "POST"), (202,))
    place = begun.headers["Location"]
    if not place.startswith("http"):
        place = f"{client.prefix}://{container.registry}{place}"
    url = f"{place}{'&' if '?' in place else '?'}digest=sha256:{info.sha256}"
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(info.bytes)}
    _expect(client.do_request(url, "PUT", data=content, headers=headers), (201,))


def _layers(client: Any, container: Any, place: RegistryPlace) -> dict[str, FileInfo]:
    """Name -> size and digest of what lies there."""
    response = client.do_request(f"{client.prefix}://{container.manifest_url()}", "GET", headers={"Accept": IMAGE}, stream=True)
    if response.status_code == 404:
        raise ModelNotFound(f"{place} is not there")
    raw = _expect(response, (200,)).raw.read(LISTING_LIMIT + 1, decode_content=True)
    if ":" in place.reference and f"sha256:{hashlib.sha256(raw).hexdigest()}" != place.reference:
        raise DownloadError(f"{place}: the registry sent something else than was asked for; do not use it")
    try:
        listing = strict_json.load(raw)
        return {layer["annotations"][TITLE]: _layer(layer) for layer in listing["layers"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ArtifactError(f"{place} is no artifact that `edge push` wrote: its layers are not titled files") from None


def _layer(layer: Mapping[str, Any]) -> FileInfo:
    kind, _, digest = layer["digest"].partition(":")
    if kind != "sha256" or not isinstance(layer["size"], int):
        raise ValueError(layer)
    return FileInfo(layer["size"], digest)


def _small(client: Any, container: Any, info: FileInfo, name: str) -> bytes:
    if not 0 <= info.bytes <= LIMITS[name]:
        raise ArtifactError(f"{container}: {name} of {info.bytes} bytes is none")
    response = _expect(client.get_blob(container, f"sha256:{info.sha256}", stream=True), (200,))
    raw: bytes = response.raw.read(info.bytes + 1)
    if hashlib.sha256(raw).hexdigest() != info.sha256:
        raise DownloadError(f"{container}: {name} arrived with other bytes than the registry announced; run it again")
    return raw


def _download(client: Any, container: Any, info: FileInfo, file: BinaryIO, name: str) -> Iterator[int]:
    """Counts of bytes as they come. What was cut off goes on where it stopped; wrong bytes are an error."""
    requests = importlib.import_module("requests")
    url = f"{client.prefix}://{container.get_blob_url(f'sha256:{info.sha256}')}"
    digest, have, tries = hashlib.sha256(), 0, 0
    while have < info.bytes:
        try:
            response = client.do_request(url, "GET", headers={"Range": f"bytes={have}-"} if have else {}, stream=True)
            _expect(response, (206,) if have else (200,))
            for block in response.iter_content(STEP):
                if have + len(block) > info.bytes:
                    raise DownloadError(f"{container}: {name} is longer than the registry announced")
                _write(file, block)
                digest.update(block)
                have, tries = have + len(block), 0
                yield len(block)
        except requests.exceptions.RequestException as error:
            if tries == len(WAITS):
                # Here, not in ``_client``: these are OSErrors, too, and ``writing`` would take them for the disk's.
                raise _unreachable(container, error) from None
        if have < info.bytes:
            if tries == len(WAITS):
                raise DownloadError(f"{container}: {name} was cut off again and again; run it again")
            time.sleep(WAITS[tries])
            tries += 1
    if digest.hexdigest() != info.sha256:
        raise DownloadError(f"{container}: {name} arrived with other bytes than its digest says; run it again")


def _write(file: BinaryIO, block: bytes) -> None:
    try:
        file.write(block)
    except OSError as error:  # requests' own errors are OSErrors too, and mean something else
        raise OutputError(f"cannot write {file.name}: {error.strerror or error}") from error

"""Pushing and pulling: through the hub's own client to a small hub, and through Debian's docker-registry."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgekit
from edgekit import stores
from edgekit.artifact import MANIFEST, SIGNATURE
from edgekit.errors import ArtifactError, DownloadError, ModelNotFound, OutputError, SignatureError, UsageError
from edgekit.signing import Trust, make_keys, sign
from edgekit.stores.oci import FILE, TITLE
from edgekit.stores.place import HubPlace, RegistryPlace, parse_place
from hub_server import COMMIT, Hub, Repo, serve
from tiny_artifact import build_tiny

TOOLKIT = Path(edgekit.__file__).parent.parent


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys") / "k")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    made = build_tiny(tmp_path_factory.mktemp("stores"), "onnx")
    sign(made, keys[0], release=3)
    return made


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("hf://org/name", HubPlace("org/name", None)),
        ("hf://org/na.me-1@refs/pr/1", HubPlace("org/na.me-1", "refs/pr/1")),
        ("oci://ghcr.io/org/sub/name", RegistryPlace("ghcr.io", "org/sub/name", "latest")),
        ("oci://localhost:5000/name:v1.2", RegistryPlace("localhost:5000", "name", "v1.2")),
        (f"oci://r.io/n:t@sha256:{'a' * 64}", RegistryPlace("r.io", "n", f"sha256:{'a' * 64}")),
    ],
)
def test_addresses(address: str, place: object) -> None:
    assert parse_place(address) == place


@pytest.mark.parametrize(
    "address",
    ["", "org/name", "hf://name", "hf://a/b/c", "oci://host", "oci://h/UPPER", "oci://h/../x", "http://h/x", "oci://h/n@sha256:ab"],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="no address of a store"):
        parse_place(address)


def test_only_this_machine_goes_without_tls() -> None:
    assert [RegistryPlace(host, "n", "t").plain for host in ("localhost:5000", "127.0.0.1", "[::1]:80")] == [True] * 3
    assert [RegistryPlace(host, "n", "t").plain for host in ("ghcr.io", "localhost.evil.org", "10.0.0.1:5000")] == [False] * 3


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "repo").mkdir()
    (tmp_path / "empty").mkdir()
    with serve({"org/name": Repo(tmp_path / "repo"), "org/empty": Repo(tmp_path / "empty")}) as hub:
        yield hub


def ask(hub: Hub, cache: Path, *arguments: object) -> dict[str, Any]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    clean |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "HF_TOKEN": "hf_notARealOne"}
    command = [sys.executable, "-m", "edgekit.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, env=clean | {"PYTHONPATH": str(TOOLKIT)}, capture_output=True, text=True, check=False)
    assert "hf_notARealOne" not in done.stdout + done.stderr
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_hub(hub: Hub, artifact: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", minversion="1.0")
    cache, out = tmp_path / "cache", tmp_path / "out"
    assert ask(hub, cache, "push", artifact, "hf://org/name") == {"address": f"hf://org/name@{COMMIT}"}
    assert contents(tmp_path / "repo") == contents(artifact)
    sent = sum(line.startswith("PUT") for line in hub.log)
    ask(hub, cache, "push", artifact, "hf://org/name")
    assert sum(line.startswith("PUT") for line in hub.log) == sent > 0
    pulled = ask(hub, cache, "pull", "hf://org/name", "--out", out, "--trusted-key", keys[1])
    assert pulled["directory"] == str(out) and contents(out) == contents(artifact)
    assert ask(hub, cache, "pull", "hf://org/name", "--out", out)["error"]["kind"] == "OutputError"
    assert ask(hub, cache, "pull", "hf://org/empty", "--out", tmp_path / "no")["error"]["kind"] == "ModelNotFound"
    assert ask(hub, cache, "push", artifact, "hf://other/name")["error"]["kind"] == "DownloadError"


def test_hub_that_serves_another_manifest(hub: Hub, artifact: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", minversion="1.0")
    shutil.copytree(artifact, tmp_path / "repo", dirs_exist_ok=True)
    path = tmp_path / "repo" / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"release": 3', b'"release": 4'))
    error = ask(hub, tmp_path / "cache", "pull", "hf://org/name", "--out", tmp_path / "out", "--trusted-key", keys[1])["error"]
    assert error["kind"] == "SignatureError" and not (tmp_path / "out").exists()
    assert not any("model.onnx" in line for line in hub.log)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Debian's docker-registry on loopback: its host, and where it keeps blobs."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("no docker-registry here (Debian: apt install docker-registry)")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "config.yml").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"127.0.0.1:{port}", folder / "data"
    finally:
        process.kill()
        process.wait()


def test_registry(registry: tuple[str, Path], artifact: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    host, _ = registry
    exact = stores.push(artifact, f"oci://{host}/org/phi:v1")
    assert exact.startswith(f"oci://{host}/org/phi@sha256:")
    for i, address in enumerate((f"oci://{host}/org/phi:v1", exact)):
        manifest = stores.pull(address, tmp_path / str(i), trust=Trust((keys[1],), release=3))
        assert manifest.release == 3 and contents(tmp_path / str(i)) == contents(artifact)
    assert stores.push(artifact, f"oci://{host}/org/phi:v2") == exact
    with pytest.raises(OutputError, match="exists"):
        stores.pull(exact, tmp_path / "0")
    stores.pull(exact, tmp_path / "0", force=True)
    with pytest.raises(ModelNotFound, match="is not there"):
        stores.pull(f"oci://{host}/org/phi:v9", tmp_path / "x")
    with pytest.raises(SignatureError, match="release 3 is older"):
        stores.pull(exact, tmp_path / "x", trust=Trust((keys[1],), release=4))
    assert not (tmp_path / "x").exists()


def test_the_oras_client_pulls_what_was_pushed(registry: tuple[str, Path], artifact: Path, tmp_path: Path) -> None:
    client = pytest.importorskip("oras.client")
    stores.push(artifact, f"oci://{registry[0]}/theirs:v1")
    client.OrasClient(insecure=True).pull(target=f"{registry[0]}/theirs:v1", outdir=str(tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(artifact)


def test_what_the_oras_client_pushed_is_pulled(
    registry: tuple[str, Path], artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("oras.client")
    monkeypatch.chdir(artifact)
    names = [p.relative_to(artifact).as_posix() for p in artifact.rglob("*") if p.is_file()]
    files = [f"{name}:{FILE}" for name in names]
    client.OrasClient(insecure=True).push(target=f"{registry[0]}/ours:v1", files=files)
    stores.pull(f"oci://{registry[0]}/ours:v1", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(artifact)


def test_a_registry_whose_blob_rotted(registry: tuple[str, Path], artifact: Path, tmp_path: Path) -> None:
    host, data = registry
    stores.push(artifact, f"oci://{host}/rotten:v1")
    digest = hashlib.sha256((artifact / "tokenizer.json").read_bytes()).hexdigest()
    blob = next(p for p in data.rglob("data") if p.parent.name == digest)
    good = blob.read_bytes()
    try:
        blob.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        with pytest.raises(DownloadError, match=r"tokenizer\.json arrived with other bytes"):
            stores.pull(f"oci://{host}/rotten:v1", tmp_path / "out")
    finally:
        blob.write_bytes(good)
    assert not list(tmp_path.iterdir())


def listing(host: str, name: str, layers: list[dict[str, object]]) -> None:
    """Uploads a manifest of such layers, whose blobs are there already."""
    import oras.container
    import oras.provider

    client = oras.provider.Registry(hostname=host, insecure=True)
    container = oras.container.Container(f"{host}/{name}")
    old = client.get_manifest(container)
    response = client.upload_manifest({**{k: v for k, v in old.items() if k != "artifactType"}, "layers": layers}, container)
    assert response.status_code == 201


def test_hostile_listings(registry: tuple[str, Path], artifact: Path, tmp_path: Path) -> None:
    import oras.container
    import oras.provider

    host, _ = registry
    stores.push(artifact, f"oci://{host}/bad:v1")
    client = oras.provider.Registry(hostname=host, insecure=True)
    layers = client.get_manifest(oras.container.Container(f"{host}/bad:v1"))["layers"]
    titled = {layer["annotations"][TITLE]: layer for layer in layers}
    other = {**titled["config.json"], "annotations": {TITLE: "tokenizer.json"}}
    cases = {
        "is missing there": [layer for layer in layers if layer is not titled["tokenizer.json"]],
        "or another one": [layer for layer in layers if layer is not titled["tokenizer.json"]] + [other],
        "has no edgekit.json": [layer for layer in layers if layer is not titled[MANIFEST]],
        "not titled files": [{k: v for k, v in layer.items() if k != "annotations"} for layer in layers],
        "bytes is none": [{**titled["model.onnx.data"], "annotations": {TITLE: SIGNATURE}}, titled[MANIFEST]],
    }
    for message, wrong in cases.items():
        listing(host, "bad:v1", wrong)
        with pytest.raises(ArtifactError, match=message):
            stores.pull(f"oci://{host}/bad:v1", tmp_path / "out")
        assert not list(tmp_path.iterdir())
    listing(host, "bad:v1", [*layers, {**titled["config.json"], "annotations": {TITLE: "../../evil"}}])
    stores.pull(f"oci://{host}/bad:v1", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(artifact) and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_nobody_answers(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("oras.provider")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(DownloadError, match="could not be reached"):
        stores.push(artifact, f"oci://{host}/x")
    with pytest.raises(DownloadError, match="could not be reached"):
        stores.pull(f"oci://{host}/x", tmp_path / "out")


def test_a_storage_host_that_fails_is_no_full_disk_and_tells_no_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """requests' errors are OSErrors, too, and hold the signed address of the storage behind a registry."""
    requests = pytest.importorskip("requests")
    from edgekit.artifact import FileInfo
    from edgekit.output import writing
    from edgekit.stores import oci

    class Client:
        prefix = "https"

        def do_request(self, *_: object, **__: object) -> object:
            raise requests.exceptions.ConnectionError("Max retries exceeded with url: https://s3.example/b?X-Amz-Signature=SECRET")

    class Container:
        def get_blob_url(self, _: str) -> str:
            return "r.io/v2/n/blobs/x"

        def __str__(self) -> str:
            return "r.io/n"

    monkeypatch.setattr(oci, "WAITS", ())
    failing = pytest.raises(DownloadError, match="could not be reached: ConnectionError")
    with failing as caught, writing(tmp_path / "out") as staging, (staging / "x").open("xb") as file:
        list(oci._download(Client(), Container(), FileInfo(3, "0" * 64), file, "x"))
    assert "SECRET" not in str(caught.value) and not (tmp_path / "out").exists()

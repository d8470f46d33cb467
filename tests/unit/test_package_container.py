"""``edge package --for container``: the image is what the OCI specification says, and its root runs."""

import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

import edgekit
from edgekit import packagers
from edgekit.errors import UsageError
from edgekit.packagers import Settings
from edgekit.packagers.oci_image import Base, Layout
from wheelhouse import RUNTIME, fill, for_arm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers are Linux")

SCHEMAS = Path(__file__).parents[1] / "oci_schema"
"""Of opencontainers/image-spec, commit 13cff54902ec9ad6320cbc487a685b66fcd67171."""
KINDS = {"index": "image-index-schema", "manifest": "image-manifest-schema", "config": "config-schema"}
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
NAMES = ["onnxruntime", "llguidance", "prometheus-client", "starlette", "uvicorn"]
PROMPT = "turn on the kitchen light"
MACHINE = os.uname().machine if sys.platform == "linux" else ""


def libraries(path: Path) -> set[Path]:
    """The shared libraries that one needs, by ldd."""
    said = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
    return {Path(name) for name in re.findall(r"(/\S+)", said)}


def python_root() -> dict[str, Path | bytes]:
    """What a base image has: the Python that runs here, its library and the system's that they need."""
    program = Path(sys.executable).resolve()
    home = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Path | bytes] = {"usr/local/bin/python3": program}
    for path in sorted(p for p in home.rglob("*") if p.is_file()):
        name = path.relative_to(home)
        if not {"site-packages", "test", "tests", "__pycache__", "idlelib", "ensurepip", "tkinter"} & set(name.parts):
            found[f"usr/local/lib/python{PYTHON}/{name.as_posix()}"] = path
    compiled = [program, *home.glob("lib-dynload/*.so"), *map(Path, extension_modules())]
    for library in set().union(*map(libraries, compiled)):
        if "site-packages" not in library.parts:
            found[str(library).lstrip("/")] = library
    return found


def extension_modules() -> Iterator[str]:
    """numpy's and the engine's need libraries that Python itself does not."""
    for package in ("numpy", "onnxruntime", "tokenizers"):
        module = sys.modules.get(package) or __import__(package)
        yield from map(str, Path(str(module.__file__)).parent.rglob("*.so"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "layout"
    layout = Layout(folder)
    environment = {"Env": ["PATH=/usr/local/bin:/usr/bin", f"PYTHON_VERSION={PYTHON}.0"]}
    images = []
    for architecture in ("amd64", "arm64"):
        own = {"x86_64": "amd64", "aarch64": "arm64"}.get(MACHINE) == architecture
        layer = layout.layer(python_root() if own else {"etc/hostname": b"empty"}, "test", compressed=False)
        nothing = Base(folder, (), {"config": environment})
        images.append(layout.image(nothing, architecture, [layer], environment))
    layout.close(images, "python")
    return folder


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-phi") / "artifact"
    edgekit.build("tiny-phi", target="cpu", output=directory)
    return directory


@pytest.fixture(scope="module")
def settings(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    if MACHINE != "x86_64" or sys.version_info < (3, 11):
        pytest.skip("made on x86-64, by Python 3.11 or newer")
    wheels = fill(tmp_path_factory.mktemp("wheels"), *RUNTIME, *NAMES)
    for_arm(wheels)
    return Settings(("linux_x86_64", "linux_aarch64"), PYTHON, wheels, base)


@pytest.fixture(scope="module")
def made(artifact: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "package"
    packagers.package(artifact, "container", output, settings)
    return output


def read(layout: Path, descriptor: dict[str, Any], kind: str) -> dict[str, Any]:
    """A document of the layout: it has the size and digest that its descriptor says, and is valid."""
    raw = (layout / "blobs" / "sha256" / descriptor["digest"][7:]).read_bytes()
    assert len(raw) == descriptor["size"]
    assert hashlib.sha256(raw).hexdigest() == descriptor["digest"][7:]
    held: dict[str, Any] = json.loads(raw)
    validate(held, kind)
    return held


def validate(document: object, kind: str) -> None:
    def schema(name: str) -> Any:
        return json.loads((SCHEMAS / name).read_text(encoding="utf-8"))

    top = schema(f"{KINDS[kind]}.json")
    names = [path.name for path in SCHEMAS.iterdir() if path.suffix == ".json"]
    held = [(name, Resource.from_contents({**schema(name), "id": name}, default_specification=DRAFT4)) for name in names]
    registry: Registry[Any] = Registry().with_resources(held)
    without_ids = json.loads(re.sub(r'"id": "https://opencontainers[^"]*",', "", json.dumps(top)))
    jsonschema.Draft4Validator(without_ids, registry=registry).validate(document)


def images(made: Path) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    layout = made / "image"
    assert json.loads((layout / "oci-layout").read_text(encoding="utf-8")) == {"imageLayoutVersion": "1.0.0"}
    top = json.loads((layout / "index.json").read_text(encoding="utf-8"))
    validate(top, "index")
    (named,) = top["manifests"]
    assert named["annotations"]["org.opencontainers.image.ref.name"] == "tiny-phi:latest"
    found = []
    for descriptor in read(layout, named, "index")["manifests"]:
        manifest = read(layout, descriptor, "manifest")
        found.append((descriptor["platform"], manifest, read(layout, manifest["config"], "config")))
    return found


def test_image_is_what_the_specification_says(made: Path) -> None:
    found = images(made)
    assert [platform["architecture"] for platform, _, _ in found] == ["amd64", "arm64"]
    for platform, manifest, config in found:
        assert (config["architecture"], config["os"]) == (platform["architecture"], "linux")
        assert len(manifest["layers"]) == len(config["rootfs"]["diff_ids"]) == 4
        assert config["config"]["User"] == "65532:65532"
        for layer, diff in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
            path = made / "image" / "blobs" / "sha256" / layer["digest"][7:]
            assert path.stat().st_size == layer["size"]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == layer["digest"][7:]
            raw = path.read_bytes()
            plain = gzip.decompress(raw) if layer["mediaType"].endswith("+gzip") else raw
            assert f"sha256:{hashlib.sha256(plain).hexdigest()}" == diff
    weights = [manifest["layers"][2]["digest"] for _, manifest, _ in found]
    assert weights[0] == weights[1]  # once for all architectures


def test_other_tools_read_it(made: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("there is no skopeo here")
    command = [skopeo, "inspect", "--raw", f"oci:{made / 'image'}:tiny-phi:latest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unpacked_root_runs(made: Path, artifact: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "dev").mkdir()
    chroot = shutil.which("chroot") or ""
    alone = ["unshare", "--net", "--pid", "--fork", f"--mount-proc={root / 'proc'}"]
    if not chroot or subprocess.run([*alone, chroot, "/", "true"], check=False).returncode:
        pytest.skip("unshare and chroot are not permitted here")
    try:
        os.mknod(root / "dev" / "null", stat.S_IFCHR, os.makedev(1, 3))  # what runs containers makes it, by the runtime specification
    except PermissionError:
        pytest.skip("devices cannot be made here")
    (root / "dev" / "null").chmod(0o666)
    _, manifest, config = images(made)[0]
    for layer in manifest["layers"]:
        with tarfile.open(made / "image" / "blobs" / "sha256" / layer["digest"][7:]) as archive:
            archive.extractall(root, filter="tar")
    run = config["config"]
    command = [*alone, chroot, f"--userspec={run['User']}", str(root), *run["Entrypoint"], "run", run["Cmd"][1], PROMPT]
    environment = dict(text.split("=", 1) for text in run["Env"])
    environment["PATH"] += ":/bin"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    with edgekit.load(artifact) as runtime:
        wanted = runtime.complete([{"role": "user", "content": PROMPT}]).text
    assert done.stdout.strip() == wanted, done.stderr


def test_same_image_twice_is_equal(made: Path, artifact: Path, settings: Settings, tmp_path: Path) -> None:
    packagers.package(artifact, "container", tmp_path / "again", settings)
    for name in ("SHA256SUMS", "image/index.json"):
        assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_base_that_does_not_fit_is_refused(base: Path, artifact: Path, settings: Settings, tmp_path: Path) -> None:
    def make(where: Path, python: str = PYTHON) -> None:
        packagers.package(artifact, "container", tmp_path / "out", Settings(("linux_x86_64",), python, settings.wheels, where))

    with pytest.raises(UsageError, match="no OCI image layout"):
        make(tmp_path)
    with pytest.raises(UsageError, match="has Python"):
        make(base, "3.9")
    broken = shutil.copytree(base, tmp_path / "broken")
    path = broken / "blobs" / "sha256" / json.loads((broken / "index.json").read_text(encoding="utf-8"))["manifests"][0]["digest"][7:]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UsageError, match="damaged"):
        make(broken)
    assert not (tmp_path / "out").exists()

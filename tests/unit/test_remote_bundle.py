"""What travels to a device beside the artifact, chosen by the real pip from a folder of wheels made here; and what ``--on`` may name."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import wheels as wheels_of_edgekit
from edgekit.artifact import EngineInfo, Manifest, load_artifact
from edgekit.errors import EngineMissing, UsageError
from edgekit.remote import bundle
from edgekit.remote.address import HOME, HubDevice, address
from edgekit.remote.bundle import Platform
from edgekit.remote.ssh import Ssh
from tiny_artifact import build_tiny

PI = Platform(
    implementation="cp",
    tags=("cp310-cp310-manylinux_2_35_aarch64", "py3-none-any"),
    platforms=("manylinux_2_35_aarch64", "manylinux_2_17_aarch64", "linux_aarch64"),
    abis=("cp310", "abi3"),
    markers={
        "python_version": "3.10", "python_full_version": "3.10.12", "sys_platform": "linux", "platform_machine": "aarch64",
        "os_name": "posix", "platform_system": "Linux", "implementation_name": "cpython", "platform_python_implementation": "CPython",
        "implementation_version": "3.10.12", "platform_release": "6", "platform_version": "1",
    },
    installed={"numpy": "9.9"},
)  # fmt: skip
TERMUX = replace(PI, platforms=("linux_aarch64",), tags=("cp310-cp310-linux_aarch64", "py3-none-any"))
Wheels = Callable[..., None]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load_artifact(build_tiny(tmp_path / "made", "null")).manifest


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheels:
    """``wheels("name-version", "tag", *requirements)`` puts one where pip looks, which is nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "EDGEKIT_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)

    def add(named: str, tag: str, *requires: str) -> None:
        name, version = named.split("-")
        with zipfile.ZipFile(folder / f"{named}-{tag}.whl", "w") as archive:
            needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
            archive.writestr(f"{named}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
            archive.writestr(f"{named}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            archive.writestr(f"{named}.dist-info/RECORD", "")

    add("pip-99.0", "py3-none-any")
    return add


def declare(monkeypatch: pytest.MonkeyPatch, *needs: str) -> None:
    monkeypatch.setattr(wheels_of_edgekit, "_declared", lambda: list(needs))


def test_own_wheel_is_the_same_each_time_and_fits_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    first = bundle.blob(bundle.own_wheel())
    assert bundle.blob(bundle.own_wheel()).digest == first.digest and first.size < 2e6
    with zipfile.ZipFile(first.path) as archive:
        names = archive.namelist()
    assert {"edgekit/cli.py", "edgekit/remote/agent.py", "edgekit/data/targets/cpu.toml", "edgekit/catalog.toml"} <= set(names)
    assert not [name for name in names if name.endswith((".so", ".pyc", ".safetensors"))]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path / "there")]
    done = subprocess.run([*install, str(first.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("requires", "wanted", "unwanted"),
    [
        ({}, set[str](), {"onnxruntime", "openvino"}),
        ({"onnxruntime": "1.23"}, {"onnxruntime"}, {"onnxruntime-gpu", "onnxruntime-ep-webgpu", "openvino"}),
        ({"onnxruntime": "1.24", "onnxruntime-gpu": "0"}, {"onnxruntime-gpu"}, {"onnxruntime"}),
        ({"onnxruntime": "1.24.4", "onnxruntime-ep-webgpu": "0"}, {"onnxruntime", "onnxruntime-ep-webgpu"}, {"onnxruntime-gpu"}),
        ({"openvino": "2026.1"}, {"openvino"}, {"onnxruntime"}),
    ],
)
def test_the_engine_that_the_manifest_asks_for(manifest: Manifest, requires: dict[str, str], wanted: set[str], unwanted: set[str]) -> None:
    engine = "openvino" if "openvino" in requires else "onnx" if requires else "null"
    needs = wheels_of_edgekit.requirements(replace(manifest, engine=EngineInfo(engine, requires, {})), PI.markers)
    names = {need.name for need in needs}
    assert wanted | {"numpy", "jinja2", "tokenizers", "typer", "tomli"} <= names, "tomli: the device has Python 3.10"
    assert not names & unwanted and all(need.marker is None for need in needs)


def test_markers_are_those_of_the_device(manifest: Manifest, wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, "alpha>=1")
    wheels("alpha-1.0", "cp310-cp310-manylinux_2_17_aarch64", "gamma>=2; python_version < '3.11'", "delta; sys_platform == 'win32'")
    wheels("alpha-1.1", "cp310-cp310-manylinux_2_17_x86_64")
    wheels("gamma-2.0", "py3-none-any", "epsilon; platform_machine == 'aarch64'")
    wheels("epsilon-1.0", "cp37-abi3-manylinux_2_17_aarch64")
    found = bundle.bundle(manifest, PI, lambda _: None)
    names = sorted(name.split("-")[0] for name in found.wheels)
    assert names == ["alpha", "edgekit", "epsilon", "gamma", "pip"] and found.there == {}
    monkeypatch.setattr(bundle, "_pip", None)  # what was chosen once is locked
    assert bundle.bundle(manifest, PI, lambda _: None).name == found.name


def test_versions_are_those_of_this_machine_or_that_is_said(manifest: Manifest, wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    here = bundle.metadata.version("numpy")
    declare(monkeypatch, "numpy>=1")
    wheels("numpy-999.0", "py3-none-any")
    said = list[str]()
    assert "numpy-999.0-py3-none-any.whl" in bundle.bundle(manifest, PI, said.append).wheels
    assert len(said) == 1 and said[0].startswith("not all versions of this machine exist for cp 3.10 on linux aarch64")
    wheels(f"numpy-{here}", "py3-none-any")
    other = replace(PI, tags=("another",))
    assert f"numpy-{here}-py3-none-any.whl" in bundle.bundle(manifest, other, said.append).wheels and len(said) == 1


def test_no_package_for_the_device(manifest: Manifest, wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, "alpha>=1")
    wheels("alpha-1.0", "cp310-cp310-manylinux_2_17_x86_64")
    with pytest.raises(EngineMissing, match=r"no packages for cp 3.10 on linux aarch64.*alpha"):
        bundle.bundle(manifest, PI, lambda _: None)


def test_a_device_that_nobody_makes_wheels_for_brings_its_own(manifest: Manifest, wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, "numpy>=1", "alpha>=1")
    wheels("alpha-1.0", "py3-none-any", "numpy>=2")
    found = bundle.bundle(manifest, TERMUX, lambda _: None)
    assert sorted(name.split("-")[0] for name in found.wheels) == ["alpha", "edgekit", "pip"] and found.there == {"numpy": "9.9"}
    with pytest.raises(EngineMissing, match=r"no packages for .*install them there"):
        bundle.bundle(manifest, replace(TERMUX, installed={"numpy": "1.5"}), lambda _: None)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ssh://pi", Ssh("pi", None, None, HOME)),
        ("ssh://me@Pi.local:2222/mnt/big disk/", Ssh("Pi.local", "me", 2222, "/mnt/big disk/edgekit")),
        ("ssh://me@[fe80::1%eth0]:22", Ssh("fe80::1%eth0", "me", 22, HOME)),
        ("aihub:Samsung Galaxy S24 (Family)", HubDevice("Samsung Galaxy S24 (Family)", "")),
        ("aihub:Google Pixel 4@11", HubDevice("Google Pixel 4", "11")),
    ],
)
def test_addresses(text: str, wanted: object) -> None:
    assert address(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "pi", "ssh:pi", "ssh://", "ssh://-oProxyCommand=touch pwned", "ssh://-l@host", "ssh://$(touch pwned)@host", "ssh://host;reboot",
        "ssh://a b",
        "ssh://host:99999", "ssh://host:x", "ssh://host/fold\ner", "aihub:", "http://host", "ssh://me@-host",
    ],
)  # fmt: skip
def test_hostile_addresses(text: str) -> None:
    with pytest.raises(UsageError):
        address(text)


def test_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="a password does not belong there") as caught:
        address("ssh://me:hunter2@host")
    assert "hunter2" not in str(caught.value)


def test_what_ssh_gets_is_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    command = Ssh("pi", "me", 2222, HOME).command()
    assert command[-2:] == ["--", "pi"] and "BatchMode=yes" in command
    assert not [part for part in command if "HostKey" in part or "KnownHosts" in part], "what the user's settings say of host keys holds"

"""``edge package``: what every kind has in common, and the kinds that run edgekit itself, installed and run without a network."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgekit
from command import Edge
from edgekit import packagers
from edgekit.errors import OutputError, UsageError
from edgekit.packagers import KINDS, MARKER, Settings
from edgekit.server import service
from edgekit.wheels import own_wheel, place
from tiny_artifact import build_tiny
from wheelhouse import RUNTIME, fill

cyclonedx = pytest.importorskip("cyclonedx.validation.json")

HERE = Settings(python=f"{sys.version_info[0]}.{sys.version_info[1]}")
SERVE = ["llguidance", "prometheus-client", "starlette", "uvicorn"]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="installs for Linux")
PAPERS = {"LICENSE", "NOTICE", "MODEL_CARD.md", "README.md", "sbom.cdx.json", "SHA256SUMS", MARKER}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("wheels"), *RUNTIME, *SERVE, "onnxruntime")


@pytest.fixture(scope="module")
def tiny_phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-phi") / "artifact"
    edgekit.build("tiny-phi", target="cpu", output=directory)
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("small"), "null")


@pytest.fixture(scope="module")
def made(small: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "package"
    packagers.package(small, "python", output, Settings(python=HERE.python, wheels=wheels))
    return output


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_package_has_its_papers(made: Path, small: Path) -> None:
    assert {p.name for p in made.iterdir() if p.is_file()} >= PAPERS
    assert tree(made / "artifact") == tree(small)
    assert any((made / "licences").iterdir())
    assert "numpy" in (made / "NOTICE").read_text(encoding="utf-8")


def test_checksums_are_read_by_sha256sum(made: Path) -> None:
    listed = dict(reversed(line.split("  ", 1)) for line in (made / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    assert listed == {name: digest for name, digest in tree(made).items() if name != "SHA256SUMS"}
    if shutil.which("sha256sum"):
        assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=made, check=False).returncode == 0


def test_bill_of_materials_is_cyclonedx(made: Path) -> None:
    from cyclonedx.schema import SchemaVersion

    text = (made / "sbom.cdx.json").read_text(encoding="utf-8")
    assert cyclonedx.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    libraries = {one["name"] for one in bill["components"] if one["type"] == "library"}
    assert libraries == {path.name.partition("-")[0].replace("_", "-") for path in (made / "wheels").glob("*.whl")}
    (model,) = (one for one in bill["components"] if one["type"] == "machine-learning-model")
    assert {one["name"] for one in model["components"]} == {p.name for p in (made / "artifact").iterdir()} - {"edgekit.json"}


def test_same_package_twice_is_equal(made: Path, small: Path, wheels: Path, tmp_path: Path) -> None:
    packagers.package(small, "python", tmp_path / "again", Settings(python=HERE.python, wheels=wheels))
    assert tree(made) == tree(tmp_path / "again")


def test_only_a_package_is_replaced_and_only_with_force(made: Path, small: Path, wheels: Path, tmp_path: Path) -> None:
    settings = Settings(python=HERE.python, wheels=wheels)
    with pytest.raises(OutputError, match="--force"):
        packagers.package(small, "python", made, settings)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(OutputError, match="is no package"):
        packagers.package(small, "python", tmp_path / "mine", settings, force=True)
    assert [p.name for p in tmp_path.iterdir() if p.name != "mine" and not p.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--for", "toaster"], "there are: python"),
        (["--for", "web"], "runs on onnx"),
        (["--for", "ios"], "runs on mlx"),
        (["--for", "container"], "--base"),
        (["--for", "python", "--platform", "vax"], "linux_aarch64"),
        (["--for", "python", "--python", "2"], "3.11"),
        (["--for", "python", "--platform", "linux_aarch64", "--platform", "linux_x86_64"], "make one for each"),
        (["--for", "linux-service", "--platform", "macosx_arm64"], "no systemd"),
        (["--for", "python", "--base", "x"], "--for container"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else None,
)
def test_what_cannot_be_meant_is_refused(edge: Edge, small: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    ended = edge("package", str(small), "--out", str(tmp_path / "out"), *arguments)
    assert ended.code == 2
    assert said in ended.err
    assert not (tmp_path / "out").exists()


def test_a_damaged_artifact_is_not_packaged(edge: Edge, small: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small, tmp_path / "copy")
    path = copy / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    ended = edge("package", str(copy), "--for", "python", "--out", str(tmp_path / "out"))
    assert ended.code == 6
    assert "tokenizer.json" in ended.err


def test_missing_wheels_are_named(edge: Edge, small: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    ended = edge("package", str(small), "--for", "python", "--out", str(tmp_path / "out"), "--wheels", str(tmp_path / "none"))
    assert ended.code == 5
    assert "--wheels" in ended.err


def test_own_wheel_is_the_same_each_time_and_complete(tmp_path: Path) -> None:
    first = own_wheel(tmp_path, ()).read_bytes()
    assert own_wheel(tmp_path, ()).read_bytes() == first
    assert b"edgekit/packagers/templates/python/install.sh.j2" in first


@LINUX
def test_own_wheel_has_kernels_for_machines_like_this_one_only(tmp_path: Path) -> None:
    """Not the quantizer's, which no device needs."""
    machine = platform.machine()
    package = Path(edgekit.__file__).parent
    compiled = {f"edgekit/{path.relative_to(package).as_posix()}" for path in package.rglob("*.so")}
    compiled -= {"edgekit/quant/_kernel.so", "edgekit/engines/qnn/_turns.so"}
    for name, wanted in ((f"linux_{machine}", compiled), ("linux_riscv64", set()), ("macosx_arm64", set())):
        made = own_wheel(tmp_path, (name,))
        assert made.name.endswith(f"-py3-none-{name}.whl" if wanted else "-py3-none-any.whl")
        with zipfile.ZipFile(made) as archive:
            assert {held for held in archive.namelist() if held.endswith(".so")} == wanted
            assert not any(held.endswith((".c", ".h")) for held in archive.namelist())
            said = next(archive.read(held) for held in archive.namelist() if held.endswith("/WHEEL")).decode()
        assert f"Tag: {made.stem[made.stem.index('py3') :]}\n" in said


def test_every_kind_has_its_module_and_templates() -> None:
    for kind, module in KINDS.items():
        assert (Path(packagers.__file__).parent / f"{module.rpartition('.')[2]}.py").exists()
        assert (Path(packagers.__file__).parent / "templates" / kind / "README.md.j2").exists()


@pytest.mark.parametrize("name", ["linux_aarch64", "manylinux_2_35_x86_64", "macosx_arm64"])
def test_places_have_tags(name: str) -> None:
    assert place(name, "3.12").tags
    with pytest.raises(UsageError):
        place(name, "3")


@pytest.fixture(scope="module")
def installed(tiny_phi: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package for a service, installed by its script where there is no network; its wheel-house is that of ``python``, and more."""
    folder = tmp_path_factory.mktemp("service")
    packagers.package(tiny_phi, "linux-service", folder / "package", Settings(python=HERE.python, wheels=wheels))
    (folder / "units").mkdir()
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "UNIT_DIR": str(folder / "units"), "START": "no"}
    command = [*alone(), "sh", str(folder / "package" / "install-service.sh"), str(folder / "opt")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def alone() -> list[str]:
    """In a network of its own, with nothing in it but a loopback that is up, where this user may make one."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare -n is not permitted here")
    return ["unshare", "-n", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]


@LINUX
def test_installed_app_answers_as_edgekit_does_here(installed: Path, tiny_phi: Path) -> None:
    command = [*alone(), str(installed / "opt" / "venv" / "bin" / "python"), str(installed / "opt" / "app.py"), "turn on the kitchen light"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, check=False)
    with edgekit.load(tiny_phi) as runtime:
        wanted = runtime.complete([{"role": "user", "content": "turn on the kitchen light"}]).text
    assert done.stdout == f"{wanted}\n", done.stderr


@LINUX
def test_installer_refuses_a_used_directory_and_damaged_files(installed: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable}
    script = installed / "package" / "install.sh"
    done = subprocess.run(["sh", str(script), str(installed / "opt")], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    copy = shutil.copytree(installed / "package", tmp_path / "copy")
    with (copy / "artifact" / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    done = subprocess.run(
        ["sh", str(copy / "install.sh"), str(tmp_path / "to")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert not (tmp_path / "to").exists()


@LINUX
def test_example_installs_and_asks(small: Path, wheels: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "offline_install.sh"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHON": sys.executable}
    options = ["--wheels", str(wheels), "--python", str(HERE.python)]
    command = ["sh", str(script), str(small), str(tmp_path / "new"), "What is 12 plus 30?", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1]


@LINUX
def test_unit_is_what_systemd_reads(installed: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    (unit,) = (installed / "units").iterdir()
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(unit) not in done.stderr
    assert "@PREFIX@" not in unit.read_text(encoding="utf-8")


@contextlib.contextmanager
def told(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(path))
        made.settimeout(120)
        yield made


@LINUX
def test_service_runs_alone_tells_systemd_and_is_well(installed: Path, tmp_path: Path) -> None:
    """The unit's own ExecStart and settings, in a network of its own."""
    (unit,) = (installed / "units").iterdir()
    lines = dict(line.split("=", 1) for line in unit.read_text(encoding="utf-8").splitlines() if "=" in line and line[0] != "#")
    assert (lines["Type"], lines["WatchdogSec"]) == ("notify", "30")
    settings = dict(pair.split("=", 1) for pair in lines["Environment"].split())
    start = lines["ExecStart"].replace("${EDGE_HOST}", settings["EDGE_HOST"]).replace("${EDGE_PORT}", settings["EDGE_PORT"])
    with told(tmp_path / "notify") as heard:
        check = f"{installed}/opt/venv/bin/python {installed}/opt/healthcheck.py"
        script = f"{start} & server=$!\nread line\n{check}\ncode=$?\nkill -TERM $server\nwait $server && exit $code"
        environment = {"PATH": os.environ["PATH"], **settings, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        process = subprocess.Popen(
            [*alone(), "sh", "-c", script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        said = [heard.recv(100) for _ in range(3)]
        assert b"READY=1" in said
        assert b"WATCHDOG=1" in said
        out, _ = process.communicate("go on\n", timeout=300)
        assert process.returncode == 0
        assert "is well" in out
        while heard.recv(100) != b"STOPPING=1":
            pass


def test_healthcheck_ends_with_1_where_nobody_serves(installed: Path) -> None:
    command = [sys.executable, str(installed / "opt" / "healthcheck.py"), "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not well" in done.stderr


def test_watchdog_is_for_the_process_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert service.watchdog() is None
    monkeypatch.setenv("WATCHDOG_USEC", "5000000")
    assert service.watchdog() == 5.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    assert service.watchdog() is None
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    service.tell("READY=1")

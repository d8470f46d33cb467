"""``install-service.sh`` over an older version, really run: beside it, in one step, and back again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import packagers
from edgekit.artifact import load_artifact
from edgekit.packagers import Settings
from tiny_artifact import build_tiny
from wheelhouse import RUNTIME, fill

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="installs for Linux")
SERVE = ["llguidance", "prometheus-client", "starlette", "uvicorn"]
MINE = "EDGE_PORT=9\n"
"""Of service.env, as its user left it: nothing answers there."""


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions of the service of one model."""
    folder = tmp_path_factory.mktemp("kits")
    wheels = fill(folder / "wheels", *RUNTIME, *SERVE)
    settings = Settings(python=f"{sys.version_info[0]}.{sys.version_info[1]}", wheels=wheels)
    made = []
    for number, variant in enumerate(("phi3-longrope", "llama")):
        artifact = build_tiny(folder / f"{number}", "null", variant)
        packagers.package(artifact, "linux-service", folder / f"kit-{number}", settings)
        made.append(folder / f"kit-{number}")
    return made


def install(kit: Path, place: Path, *options: str, start: str = "no", path: str = "") -> subprocess.CompletedProcess[str]:
    (place / "units").mkdir(parents=True, exist_ok=True)
    search = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    environment = {"PATH": search, "PYTHON": sys.executable, "UNIT_DIR": str(place / "units"), "START": start}
    command = ["sh", str(kit / "install-service.sh"), *options, str(place / "opt")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def architecture(place: Path) -> str:
    """Of the model that is current."""
    return load_artifact(place / "opt" / "artifact").manifest.model.architecture


def releases(place: Path) -> set[str]:
    return {path.name for path in (place / "opt" / "releases").iterdir()}


def runs(place: Path) -> None:
    """The program that the unit starts works, with the model that is current."""
    (unit,) = (place / "units").glob("*.service")
    start = next(line for line in unit.read_text(encoding="utf-8").splitlines() if line.startswith("ExecStart="))
    edge, _, artifact = start.removeprefix("ExecStart=").split()[:3]
    done = subprocess.run([edge, "inspect", artifact], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_upgrade_keeps_the_old_one_and_goes_back(kits: list[Path], tmp_path: Path) -> None:
    """From what an edgekit without releases/ installed, over two newer kits, back, and to one that does not answer."""
    old_layout(kits[0], tmp_path)
    assert install(kits[1], tmp_path).returncode == 0
    assert (architecture(tmp_path), (tmp_path / "opt" / "service.env").read_text(encoding="utf-8")) == ("llama", MINE)
    runs(tmp_path)
    back = install(kits[1], tmp_path, "--back")
    assert (back.returncode, architecture(tmp_path)) == (0, "phi3"), back.stderr
    runs(tmp_path)
    assert install(kits[1], tmp_path, "--back").returncode == 0
    again = install(kits[0], tmp_path)
    assert (again.returncode, architecture(tmp_path), len(releases(tmp_path))) == (0, "phi3", 2), again.stderr
    assert "--back" in again.stdout
    runs(tmp_path)
    # Nothing answers at that port, so that the one before has to come back.
    said = tmp_path / "systemctl.log"
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "systemctl").write_text(f'#!/bin/sh\necho "$@" >>{said}\n', encoding="utf-8")
    (fake / "systemctl").chmod(0o755)
    failed = install(kits[1], tmp_path, start="yes", path=str(fake))
    assert failed.returncode == 1
    assert "does not answer" in failed.stderr
    assert architecture(tmp_path) == "phi3"
    runs(tmp_path)
    assert [line.split()[0] for line in said.read_text(encoding="utf-8").splitlines()] == ["daemon-reload", "enable", "restart"] * 2
    assert not list((tmp_path / "opt").glob("*.new"))


def old_layout(kit: Path, place: Path) -> None:
    """As edgekit's kits were installed before: everything in the directory itself."""
    opt = place / "opt"
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable}
    subprocess.run(["sh", str(kit / "install.sh"), str(opt)], check=True, env=environment, stdout=subprocess.DEVNULL)
    (opt / "service.env").write_text(MINE, encoding="utf-8")
    (opt / "healthcheck.py").write_bytes((kit / "healthcheck.py").read_bytes())
    (place / "units").mkdir()
    name = next(line for line in (kit / "install-service.sh").read_text(encoding="utf-8").splitlines() if line.startswith("unit="))
    unit = place / "units" / name.rpartition("/")[2]
    unit.write_text((kit / "service.in").read_text(encoding="utf-8").replace("@PREFIX@", str(opt)), encoding="utf-8")


def test_a_broken_off_installation_is_begun_anew_and_foreign_directories_are_left_alone(kits: list[Path], tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "photo").touch()
    refused = install(kits[0], tmp_path)
    assert (refused.returncode, "holds no such service" in refused.stderr) == (1, True)
    (tmp_path / "opt" / "photo").unlink()
    assert install(kits[0], tmp_path, "--back").returncode == 1
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in kits[1].iterdir():
        (damaged / path.name).symlink_to(path)
    (damaged / "app.py").unlink()
    (damaged / "app.py").write_text("another", encoding="utf-8")
    assert install(damaged, tmp_path).returncode == 1
    assert not (tmp_path / "opt" / "current").exists()
    ended = install(kits[1], tmp_path)
    assert (ended.returncode, architecture(tmp_path)) == (0, "llama"), ended.stderr

"""``edge doctor``: one real look at this machine, and every kind of trouble by itself."""

import importlib.metadata
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from command import Edge
from edgekit import child, doctor, drivers
from edgekit.doctor import ANSWER, Package, Probe
from edgekit.errors import EngineError, EngineMissing, TargetError
from edgekit.target import target_names

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and scripts")


def test_a_look_at_this_machine(edge: Edge) -> None:
    ended = edge("doctor", "--json")
    found = json.loads(ended.out)
    assert ended.code == (0 if found["well"] else 11)
    assert sorted(name for probe in found["probes"] for name in probe["targets"]) == target_names()
    assert found["well"], [probe for probe in found["probes"] if probe["outcome"] == "fails"]
    cpu = next(probe for probe in found["probes"] if "cpu" in probe["targets"])
    assert cpu["outcome"] in ("works", "missing"), cpu
    names = {package["name"] for package in found["packages"]}
    assert names >= {"numpy", "tokenizers"} or not names, "none where edgekit runs from its sources, not installed"
    assert all(package["fits"] for package in found["packages"] if package["extra"] is None)
    assert found["places"][0]["name"] == "quantized weights"


def told(edge: Edge, monkeypatch: pytest.MonkeyPatch, *probes: Probe) -> tuple[int, str]:
    monkeypatch.setattr(doctor, "_probes", lambda: iter(probes))
    ended = edge("doctor")
    return ended.code, ended.out


def test_what_works_what_is_missing_and_what_fails(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    works = Probe("a", ("t", "u"), "works", "9 tokens/s")
    missing = Probe("b", ("v",), "missing", "install it: pip install it")
    code, shown = told(edge, monkeypatch, works, missing)
    assert code == 0
    assert "t, u: works: 9 tokens/s" in shown and "v: missing\n" in shown and "v: install it: pip install it" in shown
    code, shown = told(edge, monkeypatch, Probe("b", ("v",), "fails", "it was ended by SIGSEGV"))
    assert code == 11
    assert "v: it was ended by SIGSEGV" in shown and "no engine works here" in shown


@posix
def test_a_native_crash_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    monkeypatch.setattr(child, "command", lambda module: [sys.executable, "-c", code])
    probe = doctor._probe("x", ("cpu",))
    assert (probe.outcome, "SIGSEGV" in probe.detail) == ("fails", True)


def test_an_engine_that_hangs_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    monkeypatch.setattr(child, "command", lambda module: [sys.executable, "-c", "import time; time.sleep(600)"])
    assert doctor._probe("x", ("cpu",)).detail == "it did not answer within 0 s"
    monkeypatch.setattr(doctor, "PATIENCE", 60)
    monkeypatch.setattr(child, "command", lambda module: [sys.executable, "-c", "raise ImportError('libcudart.so.12: no such file')"])
    probe = doctor._probe("x", ("cpu",))
    assert probe.outcome == "fails" and "libcudart.so.12: no such file" in probe.detail


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(EngineMissing("pip install x"), "missing"), (TargetError("not this model"), "does not apply"), (EngineError("no"), "fails")],
)
def test_errors_of_an_engine(monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str) -> None:
    def refuse(module: str, request: object, patience: float) -> None:
        raise error

    monkeypatch.setattr(child, "ask", refuse)
    assert doctor._probe("x", ("cpu",)) == Probe("x", ("cpu",), outcome, str(error))  # type: ignore[arg-type]


def test_a_wrong_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "ask", lambda *asked, patience: {"answer": "!!!!!!!!", "rate": 9.0})
    probe = doctor._probe("x", ("cpu",))
    assert probe.outcome == "fails" and "'!!!!!!!!' instead of" in probe.detail
    monkeypatch.setattr(child, "ask", lambda *asked, patience: {"answer": ANSWER, "rate": 9.0})
    assert doctor._probe("x", ("cpu",)).outcome == "works"


def test_an_extra_for_other_systems_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ["numpy>=1.26", "one>=1; (sys_platform == 'plan9') and extra == 'nine'", "two>=1; extra == 'any'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: listed)
    monkeypatch.setattr(doctor, "_extras", lambda: ["nine", "any"])
    assert doctor._elsewhere('pip install "edgekit[nine]"') == f"edgekit[nine] is for other systems than {sys.platform}"
    assert doctor._elsewhere("pip install 'edgekit[build,any]'") is None
    assert doctor._elsewhere("upgrade edgekit") is None


@pytest.mark.parametrize(
    ("installed", "wanted", "fits"),
    [
        ("1.26.4", ">=1.26", True),
        ("1.9", ">=1.26", False),
        ("2.0.0rc1", ">=1.26,<2", False),
        ("1.31.1+cu12", "==1.31", True),
        ("3", "", True),
    ],
)
def test_versions(installed: str, wanted: str, fits: bool) -> None:
    assert doctor._fits(installed, wanted) is fits


def test_markers() -> None:
    assert doctor._applies("") and doctor._applies(f"sys_platform == '{sys.platform}'")
    assert not doctor._applies("python_version < '3.10'") and doctor._applies("(python_version >= '3.10') and extra == 'x'")


def test_packages_too_old_absent_and_in_each_others_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def advice(*packages: Package, kernel: bool = True) -> Sequence[str]:
        return list(doctor._advice(kernel, packages, [Probe("a", ("t",), "works", "")], []))

    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"run": ["run-gpu", "run"], "other": ["x", "y"]})
    assert advice(Package("build", "hub", ">=2", "1.0", False)) == [
        'edgekit[build] needs hub>=2, and 1.0 is installed: pip install --upgrade "edgekit[build]"'
    ]
    assert "and it is missing" in advice(Package(None, "numpy", ">=2", None, False))[0]
    assert advice(Package("a", "run", "", "1", True)) == [
        "run and run-gpu both fill the folder run: pip uninstall run run-gpu, then install the one you want"
    ]
    assert advice(Package("cuda", "run-gpu2", "", None, False)) == [], "nobody has to have every extra"
    assert "Install a C compiler" in advice(kernel=False)[0]


def test_secrets_and_passwords_are_not_shown() -> None:
    proxy = "http://me:secret@proxy:8080"
    shown = doctor._settings({"HF_TOKEN": "hf_secret", "HTTPS_PROXY": proxy, "HF_ENDPOINT": "https://mirror", "X": "y"})
    assert shown == {"HF_TOKEN": "set", "HTTPS_PROXY": "http://***@proxy:8080", "HF_ENDPOINT": "https://mirror"}


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux shows of its devices")
def test_devices_of_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert drivers.devices(tmp_path) == []
    for place, vendor, driver in (
        ("drm/renderD128", "0x8086", "i915"),
        ("accel/accel0", "0x8086", "intel_vpu"),
        ("drm/renderD129", "0xffff", None),
    ):
        device = tmp_path / "sys/class" / place / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n", encoding="utf-8")
        if driver is not None:
            (tmp_path / "drivers" / driver).mkdir(parents=True)
            (device / "driver").symlink_to(tmp_path / "drivers" / driver)
    (tmp_path / "dev/dri").mkdir(parents=True)
    (tmp_path / "dev/dri/renderD128").touch()
    (tmp_path / "dev/fastrpc-cdsp").touch()
    (tmp_path / "usr/share/vulkan/icd.d").mkdir(parents=True)
    (tmp_path / "usr/share/vulkan/icd.d/lvp_icd.x86_64.json").touch()
    found = drivers.devices(tmp_path)
    assert found is not None
    assert [(d.kind, d.name, d.driver, d.usable) for d in found[:4]] == [
        ("GPU", "Intel (renderD128)", "i915", True),
        ("GPU", "0xffff (renderD129)", None, None),
        ("NPU", "Intel (accel0)", "intel_vpu", None),
        ("NPU", "Qualcomm Hexagon (fastrpc-cdsp)", "fastrpc", True),
    ]
    assert (found[4].kind, found[4].name) == ("Vulkan", "lvp_icd.x86_64")


@posix
@pytest.mark.parametrize(
    ("script", "name", "driver", "usable"),
    [
        ("echo 'NVIDIA H200, 570.1, 143771 MiB'", "NVIDIA H200, 143771 MiB", "nvidia 570.1", True),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "NVIDIA", "nvidia-smi says: NVIDIA-SMI has failed", False),
    ],
)
def test_nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, name: str, driver: str, usable: bool) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(drivers._nvidia()) == [drivers.Device("GPU", name, driver, usable)]

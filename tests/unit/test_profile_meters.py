"""Meters, sensors and memory counters, against trees of files as kernels lay them out (none of them is on a machine of the tests)."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.profile import energy, files, machine, memory

RAPL = "class/powercap/intel-rapl:"


def tree(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    return root


def test_rapl_counts_packages_and_begins_again(tmp_path: Path) -> None:
    """Documentation/power/powercap/powercap.rst. Sub-domains (core, dram) are parts of a package, or not of its figure."""
    sockets = {f"{RAPL}{n}/{key}": value for n in (0, 1) for key, value in (("name", f"package-{n}"), ("max_energy_range_uj", "1000"))}
    counts = {f"{RAPL}0/energy_uj": "100", f"{RAPL}1/energy_uj": "990", f"{RAPL}0:0/name": "core", f"{RAPL}0:0/energy_uj": "77"}
    root = tree(tmp_path, sockets | counts)
    meter, reason = energy.find(root=root)
    assert meter is not None and reason == "" and (meter.name, meter.covers) == ("RAPL", "2 processor package(s)")
    assert meter.joules() == 0
    tree(root, {f"{RAPL}0/energy_uj": "300", f"{RAPL}1/energy_uj": "5"})
    assert meter.joules() == pytest.approx((200 + 15) / 1e6)


def test_the_whole_platform_is_preferred(tmp_path: Path) -> None:
    zones = {
        f"{RAPL}{n}/{key}": value for n, name in ((0, "package-0"), (1, "psys")) for key, value in (("name", name), ("energy_uj", "1"))
    }
    meter, _ = energy.find(root=tree(tmp_path, zones))
    assert meter is not None and "psys" in meter.covers


def test_rapl_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {f"{RAPL}0/name": "package-0", f"{RAPL}0/energy_uj": "1"})
    real = Path.read_text

    def read(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(path, encoding=encoding, errors=errors)

    monkeypatch.setattr(Path, "read_text", read)
    meter, reason = energy.find(root=root)
    assert meter is None and "root only" in reason


def test_power_is_summed_over_time(tmp_path: Path) -> None:
    root = tree(tmp_path, {"class/hwmon/hwmon0/name": "ina3221", "class/hwmon/hwmon0/power1_input": "4000000"})
    found, _ = energy.find(root=root)
    assert isinstance(found, energy.Gauge) and "ina3221" in found.covers
    times: Iterator[float] = iter([10.0, 11.0, 13.0])
    found.clock = lambda: next(times)
    assert found.joules() == 0
    tree(root, {"class/hwmon/hwmon0/power1_input": "6000000"})
    assert found.joules() == pytest.approx(5.0)
    assert found.joules() == pytest.approx(17.0)


def test_energy_of_a_sensor_chip(tmp_path: Path) -> None:
    chip = "class/hwmon/hwmon1"
    root = tree(tmp_path, {f"{chip}/name": "amd_energy", f"{chip}/energy1_input": "5000000", f"{chip}/energy2_input": "1000000"})
    meter, _ = energy.find(root=root)
    assert meter is not None and meter.joules() == 0
    tree(root, {f"{chip}/energy2_input": "2500000"})
    assert meter.joules() == pytest.approx(1.5)


def test_a_battery_counts_while_it_is_used(tmp_path: Path) -> None:
    supply = "class/power_supply/BAT0"
    root = tree(tmp_path, {f"{supply}/type": "Battery", f"{supply}/status": "Charging", f"{supply}/power_now": "9000000"})
    meter, reason = energy.find(root=root)
    assert meter is None and "unplug" in reason
    tree(root, {f"{supply}/status": "Discharging"})
    meter, _ = energy.find(root=root)
    assert isinstance(meter, energy.Gauge) and meter.watts() == 9.0
    (root / supply / "power_now").unlink()
    tree(root, {f"{supply}/current_now": "-2000000", f"{supply}/voltage_now": "3800000"})
    assert meter.watts() == pytest.approx(7.6), "the sign of a current differs from driver to driver"


def test_tools_that_print() -> None:
    """Lines of Jetson Orin and Xavier, and of macOS 14."""
    orin = (
        "RAM 2345/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [12%@1510,8%@1510] GR3D_FREQ 0% cpu@48.5C VDD_IN 5012mW/4990mW "
        "VDD_CPU_GPU_CV 900mW/880mW VDD_SOC 1500mW/1500mW"
    )
    assert energy.parse_tegrastats(orin) == 5.012
    assert energy.parse_tegrastats("RAM 1/2MB CPU [1%@1] GPU 300/300 CPU 700/650 SOC 1000/1000 CV 0/0") == 2.0
    assert energy.parse_tegrastats("RAM 2345/7620MB (lfb 4x4MB)") is None
    assert energy.parse_powermetrics("Combined Power (CPU + GPU + ANE): 1234 mW") == 1.234
    assert energy.parse_powermetrics("CPU Power: 1000 mW") is None


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_tool_is_read_while_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "tegrastats"
    script.write_text("#!/bin/sh\nwhile :; do echo 'VDD_IN 5000mW/5000mW'; sleep 0.05; done\n", encoding="ascii")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    meter, _ = energy.find(root=tmp_path)
    assert isinstance(meter, energy.Gauge) and meter.name == "tegrastats" and meter.watts() == 5.0
    meter.close()


def test_no_meter(tmp_path: Path) -> None:
    meter, reason = energy.find(root=tmp_path)
    assert meter is None and ("no meter" in reason or "root" in reason)


def test_clock_and_temperature(tmp_path: Path) -> None:
    cpus = {f"devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq": "1800000" for n in range(256)}
    zones = {"class/thermal/thermal_zone0/type": "cpu-thermal", "class/thermal/thermal_zone0/temp": "61500"}
    zones |= {"class/thermal/thermal_zone1/type": "battery", "class/thermal/thermal_zone1/temp": "99000"}
    chip = {
        "class/hwmon/hwmon0/name": "coretemp",
        "class/hwmon/hwmon0/temp1_label": "Package id 0",
        "class/hwmon/hwmon0/temp1_input": "72000",
    }
    assert machine.temperature(tree(tmp_path, zones)) == 61.5
    assert machine.temperature(tree(tmp_path, chip)) == 72.0
    assert machine.temperature(tmp_path / "nothing") is None
    (tmp_path / "proc").mkdir()
    if sys.platform == "linux":
        assert machine.clock(tree(tmp_path, cpus), tmp_path / "proc") == 1800
    (tmp_path / "proc" / "cpuinfo").write_text("cpu MHz\t\t: 2400.5\ncpu MHz\t\t: 2600.5\n", encoding="ascii")
    assert machine.clock(tmp_path / "nothing", tmp_path / "proc") == 2500.5


def test_memory_of_an_accelerator(tmp_path: Path) -> None:
    """Documentation/gpu/drm-usage-stats.rst: two files of one client count once; older drivers say drm-memory-."""
    card = "drm-driver:\tamdgpu\ndrm-client-id:\t7\ndrm-pdev:\t0000:03:00.0\ndrm-total-vram:\t2 MiB\n"
    card += "drm-resident-vram:\t1024 KiB\ndrm-resident-gtt:\t4096\n"
    tree(tmp_path, {"fdinfo/3": card, "fdinfo/4": card, "fdinfo/5": "pos:\t0\nflags:\t02\n"})
    assert memory.device(tmp_path) == (1 << 20) + 4096
    tree(tmp_path, {"fdinfo/6": "drm-driver:\tintel_vpu\ndrm-client-id:\t1\ndrm-memory-vram:\t3 MiB\n"})
    assert memory.device(tmp_path) == (1 << 20) + 4096 + (3 << 20)
    assert memory.device(tmp_path / "nothing") is None
    (tmp_path / "none" / "fdinfo").mkdir(parents=True)
    assert memory.device(tmp_path / "none") is None


@pytest.mark.skipif(sys.platform != "linux", reason="mincore of Linux")
def test_pages_in_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * (1 << 20))
    files.read([path])
    assert files.cached([path]) == 1.0
    assert files.drop([path])
    held = files.cached([path])
    assert (held is not None and held < 1.0) or "tmpfs" in Path("/proc/mounts").read_text(encoding="utf-8")
    empty = tmp_path / "empty"
    empty.touch()
    assert files.cached([empty]) is None

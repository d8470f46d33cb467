"""Meters of energy: what the machine has, read as joules since the meter was opened.

Counters (Intel and AMD's RAPL, hwmon's energy files, NVML) are exact over any span; gauges of power (hwmon, batteries, tegrastats,
powermetrics) are summed up over time, so they have to be read often while something runs.
"""

import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgekit.profile.machine import SYS

Watts = Callable[[], float | None]


class Meter(Protocol):
    """covers: what its figure includes. window: seconds over which it tells something."""

    name: str
    covers: str
    window: float

    def joules(self) -> float:
        """Since it was opened."""

    def close(self) -> None: ...


@dataclass
class Counter:
    """wrap: microjoules at which the counter of each file begins again from 0, None where it does not."""

    name: str
    covers: str
    window: float
    files: Sequence[tuple[Path, int | None]]
    _last: list[int] = field(default_factory=list)
    _sum: int = 0

    def joules(self) -> float:
        now = [int(path.read_text(encoding="ascii")) for path, _ in self.files]
        for value, last, (_, wrap) in zip(now, self._last, self.files, strict=False):
            self._sum += value - last + (wrap if wrap is not None and value < last else 0)
        self._last = now
        return self._sum / 1e6

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Gauge:
    """Power, summed up by the trapezoidal rule over the readings. ended: called when it is closed."""

    name: str
    covers: str
    window: float
    watts: Watts
    ended: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter
    _last: tuple[float, float] | None = None
    _sum: float = 0.0

    def joules(self) -> float:
        value, now = self.watts(), self.clock()
        if value is not None:
            if self._last is not None:
                self._sum += (now - self._last[0]) * (value + self._last[1]) / 2
            self._last = now, value
        return self._sum

    def close(self) -> None:
        self.ended()


def find(*, graphics: bool = False, root: Path = SYS) -> tuple[Meter | None, str]:
    """The best meter here, and why there is none. graphics: the model runs on a graphics card, whose own meter is the one that counts."""
    # Where the model does not run on it, a graphics card's meter tells nothing of it.
    makers = [*([nvidia] if graphics else []), rapl, tegrastats, hwmon, battery, powermetrics]
    for make in makers:
        if (meter := make(root)) is not None:
            return meter, ""
    return None, why_none(root)


def why_none(root: Path) -> str:
    """What would have to change."""
    if any((root / "class/powercap").glob("intel-rapl:*/energy_uj")):
        return "RAPL's counters are for root only: sudo chmod o+r /sys/class/powercap/intel-rapl:*/energy_uj, or run as root"
    if any(_text(supply / "type") == "Battery" for supply in (root / "class/power_supply").glob("*")):
        return "the battery tells its power only while it is used: unplug the charger"
    if sys.platform == "darwin":
        return "powermetrics is for root only: run with sudo"
    return "no meter: no RAPL, hwmon energy or power, battery, tegrastats or powermetrics here"


def rapl(root: Path) -> Meter | None:
    """Intel and AMD, all packages; the whole platform (psys) where there is such a domain."""
    domains = [path for path in sorted((root / "class/powercap").glob("intel-rapl:*")) if path.name.count(":") == 1]
    named = [(_text(path / "name") or "", path) for path in domains]
    chosen = [path for name, path in named if name == "psys"] or [path for name, path in named if name.startswith("package")]
    files = [(path / "energy_uj", int(_text(path / "max_energy_range_uj") or 0) or None) for path in chosen]
    if not files or any(_text(path) is None for path, _ in files):
        return None
    covers = "the whole platform (psys)" if any(name == "psys" for name, _ in named) else f"{len(files)} processor package(s)"
    return Counter("RAPL", covers, 1.0, files)


def hwmon(root: Path) -> Meter | None:
    """A sensor chip: its energy counters, else its power gauges. Chips that measure a battery or a charger are another meter's."""
    for chip in sorted((root / "class/hwmon").glob("hwmon*")):
        name = _text(chip / "name") or chip.name
        if "bat" in name.lower() or name.lower() == "ac":
            continue
        energy = [(path, None) for path in sorted(chip.glob("energy*_input")) if _text(path)]
        if energy:
            return Counter(f"hwmon {name}", f"{len(energy)} sensor(s) of {name}", 2.0, energy)
        power = [path for path in sorted(chip.glob("power*_input")) or sorted(chip.glob("power*_average")) if _text(path)]
        if power:
            return Gauge(f"hwmon {name}", f"{len(power)} sensor(s) of {name}", 5.0, functools.partial(_sum, power))
    return None


def battery(root: Path) -> Meter | None:
    """The whole device, while it runs on its battery."""
    for supply in sorted((root / "class/power_supply").glob("*")):
        if _text(supply / "type") == "Battery" and _text(supply / "status") == "Discharging" and _battery(supply) is not None:
            covers = "the whole device, screen and radio included"
            return Gauge(f"battery {supply.name}", covers, 60.0, functools.partial(_battery, supply))
    return None


def _battery(supply: Path) -> float | None:
    """Watts. The sign of a current differs from driver to driver."""
    power, current, voltage = (_text(supply / name) for name in ("power_now", "current_now", "voltage_now"))
    if power:
        return abs(int(power)) / 1e6
    return abs(int(current)) / 1e6 * int(voltage) / 1e6 if current and voltage else None


def _sum(paths: Sequence[Path]) -> float | None:
    texts = [_text(path) for path in paths]
    return sum(int(text) for text in texts if text) / 1e6 if all(texts) else None


class Lines:
    """A tool that prints its readings: the last one, in watts."""

    def __init__(self, command: Sequence[str], parse: Callable[[str], float | None]) -> None:
        self._value: float | None = None
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread = threading.Thread(target=self._follow, args=(parse,), daemon=True)
        self._thread.start()

    def _follow(self, parse: Callable[[str], float | None]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            value = parse(line)
            self._value = self._value if value is None else value

    def watts(self) -> float | None:
        return self._value

    def wait(self, seconds: float) -> bool:
        """Whether a reading came in so many seconds."""
        end = time.monotonic() + seconds
        while self._value is None and self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        return self._value is not None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _tool(name: str, covers: str, command: Sequence[str], parse: Callable[[str], float | None]) -> Meter | None:
    if shutil.which(command[0]) is None:
        return None
    lines = Lines(command, parse)
    if lines.wait(5.0):
        return Gauge(name, covers, 5.0, lines.watts, lines.close)
    lines.close()
    return None


def tegrastats(root: Path) -> Meter | None:
    """NVIDIA Jetson."""
    return _tool("tegrastats", "the whole module (its input rail)", ("tegrastats", "--interval", "100"), parse_tegrastats)


def parse_tegrastats(line: str) -> float | None:
    """``... VDD_IN 5012mW/4990mW ...``: now / mean. The input rail has several names; where there is none, all rails together."""
    rails = {
        name: int(now) for name, now in re.findall(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/\d+(?:mW)?", line) if name not in ("RAM", "SWAP")
    }
    whole = next((rails[name] for name in ("VDD_IN", "POM_5V_IN", "SYS5V") if name in rails), None)
    return (whole if whole is not None else sum(rails.values())) / 1e3 if rails else None


def powermetrics(root: Path) -> Meter | None:
    """macOS, for root."""
    if sys.platform != "darwin" or os.geteuid() != 0:
        return None
    command = ("powermetrics", "--samplers", "cpu_power,gpu_power,ane_power", "--sample-rate", "200")
    return _tool("powermetrics", "CPU, GPU and neural engine", command, parse_powermetrics)


def parse_powermetrics(line: str) -> float | None:
    """``Combined Power (CPU + GPU + ANE): 1234 mW``."""
    found = re.match(r"Combined Power \(.*\): (\d+) mW", line)
    return int(found[1]) / 1e3 if found else None


def nvidia(root: Path) -> Meter | None:
    """The first NVIDIA card's counter (nvmlDeviceGetTotalEnergyConsumption, Volta and newer, millijoules)."""
    try:
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        handle, value = ctypes.c_void_p(), ctypes.c_ulonglong()
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
            return None
        read = library.nvmlDeviceGetTotalEnergyConsumption
    except (OSError, AttributeError):
        return None
    if read(handle, ctypes.byref(value)):
        return None
    return Millijoules(lambda: int(value.value) if not read(handle, ctypes.byref(value)) else None)


@dataclass
class Millijoules:
    """A counter that a library reads."""

    read: Callable[[], int | None]
    name: str = "NVML"
    covers: str = "the graphics card"
    window: float = 1.0
    _first: int | None = None
    _last: int = 0

    def joules(self) -> float:
        value = self.read()
        self._last = self._last if value is None else value
        self._first = self._last if self._first is None else self._first
        return (self._last - self._first) / 1e3

    def close(self) -> None:
        """The library stays open until the process ends."""


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None

"""What machine this is, how fast it reads its memory, and how fast and hot its processor runs."""

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import numpy as np

from edgekit.parallel import cores
from edgekit.profile.report import Machine

SYS, PROC = Path("/sys"), Path("/proc")
STREAM, LEAST = 1 << 28, 1 << 26
"""Bytes that each thread reads to measure the bandwidth, and the fewest: a cache must not hold them."""
TRIES = 7


def describe(packages: Iterable[str]) -> Machine:
    """This machine, and the versions of ``packages`` and of the runtime's own."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Machine(
        processor=processor(),
        architecture=platform.machine(),
        cores=cores(),
        memory=memory(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=dict(_versions(["numpy", "tokenizers", *packages])),
        load_average=load,
        governor=_text(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )


def processor() -> str:
    """Its name: of the CPU on x86 and Apple, of the board or phone elsewhere on Linux."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    info = (_text(PROC / "cpuinfo") or "").splitlines()
    named = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "")
    board = (_text(PROC / "device-tree/model") or "").rstrip("\0")
    phone = " ".join(filter(None, (_output("getprop", f"ro.{key}") for key in ("product.model", "soc.model")))) if _android() else ""
    return phone or board or named or platform.processor() or platform.machine()


def memory() -> int | None:
    """Bytes of RAM."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def clock(root: Path = SYS, proc: Path = PROC) -> float | None:
    """MHz now, the mean over the cores this process may use; None where the system does not tell."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    found = [_text(root / f"devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq") for n in mine]
    khz = [float(text) for text in found if text]
    if khz:
        return sum(khz) / len(khz) / 1e3
    lines = (_text(proc / "cpuinfo") or "").splitlines()
    mhz = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return sum(mhz) / len(mhz) if mhz else None


HOT = ("cpu", "core", "pkg", "soc", "package", "tctl", "tdie", "big", "little", "mid", "gpu", "npu")
"""In the names of sensors that lie in a processor, not in a battery, a disk or a radio."""


def temperature(root: Path = SYS) -> float | None:
    """Degrees Celsius of the hottest sensor of a processor; None where there is none (or none that may be read)."""
    pairs = [(_text(zone / "type"), _text(zone / "temp")) for zone in sorted((root / "class/thermal").glob("thermal_zone*"))]
    for chip in sorted((root / "class/hwmon").glob("hwmon*")):
        for sensor in sorted(chip.glob("temp*_input")):
            label = _text(sensor.with_name(sensor.name.replace("_input", "_label"))) or ""
            pairs.append((f"{_text(chip / 'name')} {label}", _text(sensor)))
    values = [int(value) / 1e3 for name, value in pairs if name and value and any(word in name.lower() for word in HOT)]
    return max((value for value in values if 0 < value < 150), default=None)


def bandwidth(threads: int) -> list[float]:
    """Bytes a second read from memory in each of several tries: every thread takes the dot product of its own array with itself."""
    each = max(LEAST, min(STREAM, (memory() or 0) // 8 // threads))
    arrays = [np.ones(each // 4, np.float32) for _ in range(threads)]
    return [sum(array.nbytes for array in arrays) / _together(arrays) for _ in range(TRIES)]


METHOD = "numpy dot product of float32 arrays, one a thread"


def _together(arrays: "list[np.ndarray[tuple[int], np.dtype[np.float32]]]") -> float:
    workers = [threading.Thread(target=np.dot, args=(array, array)) for array in arrays]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # under another name (onnxruntime-gpu) or run from its sources


def _android() -> bool:
    return hasattr(sys, "getandroidapilevel") or "ANDROID_ROOT" in os.environ


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None

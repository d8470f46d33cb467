"""What the benches share: a command's time and memory, an environment of its own, and a line that says on what it ran.

Imports nothing heavy: on Linux a child's peak memory is never below its parent's at the moment of the fork.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STAMP = "bench.json"


@dataclass(frozen=True)
class Usage:
    """Of one command. Seconds and bytes; ``status`` as subprocess gives it (negative: the signal that ended it).

    peak:      the largest resident set of any of its processes, pages of mapped files included, as the kernel counts it.
    anonymous: the most that was its own memory rather than a file's, looked at every 20 ms (0 where there is no /proc).
    load:      the machine's load average over the last minute, just before it began: others' work, on an otherwise idle machine 0.
    """

    wall: float
    user: float
    system: float
    peak: int
    anonymous: int
    status: int
    load: float


def run(command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None) -> Usage:
    """Runs ``command``, both its outputs going to ``log``. On Linux it is the first to go when memory runs out."""
    load = os.getloadavg()[0]
    with log.open("wb") as out:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment)
        give_up_first(child.pid)
        watch = Watch(child.pid)
        watch.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        wall = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    watch.stop()
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * unit, watch.peak, child.returncode, load)


def give_up_first(pid: int) -> None:
    """So that a converter that takes all memory ends itself, not whatever else runs here."""
    path = Path(f"/proc/{pid}/oom_score_adj")
    if path.exists():
        path.write_text("1000", encoding="ascii")


class Watch(threading.Thread):
    """Looks at the anonymous memory of a process until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._path = Path(f"/proc/{pid}/status")
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.02):
            self.peak = max(self.peak, status_bytes("RssAnon", self._path))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def status_bytes(key: str, path: Path = Path("/proc/self/status")) -> int:
    """A line such as ``VmHWM`` of a process's status, 0 where it has none (any more)."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), 0)


def environment(directory: Path, requirements: Sequence[str], without: Sequence[str] = ()) -> Path:
    """The Python of a virtual environment that holds ``requirements``, ``without`` taken out again; made unless it is there already."""
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = directory / STAMP
    wanted = json.dumps(list(requirements))
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(directory, ignore_errors=True)
    print(f"making an environment with {', '.join(requirements)}", file=sys.stderr, flush=True)
    venv.create(directory, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True, stdout=sys.stderr)
    if without:
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *without], check=True, stdout=sys.stderr)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Those of the packages that are installed there."""
    code = (
        "import sys, json, importlib.metadata as m\n"
        "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))"
    )
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code, *packages], check=True, capture_output=True, text=True).stdout)
    return found


def disk_bytes(directory: Path) -> int:
    """Bytes of all files below ``directory``, each counted once."""
    files = {(s.st_dev, s.st_ino): s.st_size for p in directory.rglob("*") if p.is_file() and not p.is_symlink() for s in [p.stat()]}
    return sum(files.values())


def warm(directory: Path) -> None:
    """Reads every file, so that all find them in the page cache alike, and lets earlier writes reach the disk first."""
    os.sync()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def chill(directory: Path) -> None:
    """Drops the files from the page cache, where the system lets one: what reads them next reads the disk."""
    os.sync()
    if not hasattr(os, "posix_fadvise"):
        return
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def quiet_environment(scratch: Path) -> dict[str, str]:
    """No hub, no telemetry, and the caches of all tools in the scratch folder."""
    home = {"HF_HOME": str(scratch / "hf"), "XDG_CACHE_HOME": str(scratch / "cache")}
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**inherited, **home, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def machine() -> dict[str, str | int | float]:
    """Where this runs: processor, cores, memory, system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": f"{model} ({platform.machine()})",
        "cores": os.cpu_count() or 1,
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])

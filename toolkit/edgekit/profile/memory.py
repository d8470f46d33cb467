"""What this process holds, by the kernel's own count of it: whatever else runs on the machine does not show."""

import ctypes
import sys
from pathlib import Path

SELF = Path("/proc/self")


def peak() -> int | None:
    """Bytes: the most that was ever resident since the program was started (not what it was forked from). None where nothing tells."""
    if sys.platform == "win32":
        return _windows_peak()
    if (SELF / "status").exists():
        return _status("VmHWM", SELF)
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def anonymous() -> int | None:
    """Bytes resident now that are no file's pages. None where nothing tells."""
    return _status("RssAnon", SELF)


def device(process: Path = SELF) -> int | None:
    """Bytes of an accelerator's own memory that this process holds now, by the kernel's DRM drivers: what each open device file says
    (Documentation/gpu/drm-usage-stats.rst: a client with several files counts once). None where there is no such file, or no such key."""
    found: dict[tuple[str, str], int] = {}
    try:
        files = list((process / "fdinfo").iterdir())
    except OSError:
        return None
    for file in files:
        try:
            lines = dict(line.split(":", 1) for line in file.read_text(encoding="ascii", errors="replace").splitlines() if ":" in line)
        except OSError:
            continue  # closed meanwhile
        if "drm-driver" not in lines:
            continue
        client = (lines.get("drm-pdev", file.name).strip(), lines.get("drm-client-id", file.name).strip())
        resident = {key: value for key, value in lines.items() if key.startswith("drm-resident-")}
        held = resident or {key: value for key, value in lines.items() if key.startswith("drm-memory-")}
        if held:
            found[client] = sum(_bytes(value) for value in held.values())
    return sum(found.values()) if found else None


def _bytes(value: str) -> int:
    """``"  1024 KiB"`` as the kernel writes it: KiB, MiB or plain bytes."""
    words = value.split()
    return int(words[0]) * {"KiB": 1 << 10, "MiB": 1 << 20}.get(words[1] if len(words) > 1 else "", 1)


def _status(key: str, process: Path) -> int | None:
    try:
        lines = (process / "status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of psapi.h."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        *((f"Quota{name}PoolUsage", ctypes.c_size_t) for name in ("PeakPaged", "Paged", "PeakNonPaged", "NonPaged")),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    )


def _windows_peak() -> int | None:
    counters = _Counters()
    counters.cb = ctypes.sizeof(counters)
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined, unused-ignore]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    if not kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
        return None
    return int(counters.PeakWorkingSetSize)

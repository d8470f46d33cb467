"""GPUs and NPUs that the operating system shows, and the drivers in charge of them. Reads names; opens no device."""

import ctypes.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel", "0x106b": "Apple", "0x17cb": "Qualcomm", "0x1414": "Microsoft"}
"""PCI vendor ids (https://pci-ids.ucw.cz)."""
PATIENCE = 20.0
"""Seconds for a driver's own tool, which hangs where the driver does."""


@dataclass(frozen=True)
class Device:
    """driver: its name, and version where it is told. usable: whether this user may open it; None where that cannot be seen."""

    kind: Literal["GPU", "NPU", "Vulkan"]
    name: str
    driver: str | None
    usable: bool | None = None


def devices(root: Path = Path("/")) -> list[Device] | None:
    """All that is seen, on Linux below ``root``; None on a system where edgekit does not know where to look."""
    found = list(_nvidia())
    if sys.platform == "linux":
        return [*found, *_render_nodes(root, skip_nvidia=bool(found)), *_accelerators(root), *_fastrpc(root), *_vulkan(root)]
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return [*found, Device("GPU", "Apple GPU", "Metal", True)]
    return found or None


def _nvidia() -> Iterator[Device]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return
    command = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Device("GPU", "NVIDIA", f"nvidia-smi does not answer: {error}", False)
        return
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[:1] or ["nothing"]
        yield Device("GPU", "NVIDIA", f"nvidia-smi says: {said[0]}", False)
        return
    for line in done.stdout.strip().splitlines():
        name, driver, memory = [*(part.strip() for part in line.split(",")), "", ""][:3]
        yield Device("GPU", f"{name}, {memory}", f"nvidia {driver}", True)


def _render_nodes(root: Path, *, skip_nvidia: bool) -> Iterator[Device]:
    for node in sorted((root / "sys/class/drm").glob("renderD*")):
        vendor = _text(node / "device/vendor")
        name = VENDORS.get(vendor or "", vendor or "unknown")
        if not (skip_nvidia and name == "NVIDIA"):
            yield Device("GPU", f"{name} ({node.name})", _driver(node), _usable(root / "dev/dri" / node.name))


def _accelerators(root: Path) -> Iterator[Device]:
    for node in sorted((root / "sys/class/accel").glob("accel*")):
        vendor = _text(node / "device/vendor")
        name = VENDORS.get(vendor or "", vendor or "unknown")
        yield Device("NPU", f"{name} ({node.name})", _driver(node), _usable(root / "dev/accel" / node.name))


def _fastrpc(root: Path) -> Iterator[Device]:
    """Hexagon, by the channel that Qualcomm's libraries speak to it through."""
    for node in sorted((root / "dev").glob("fastrpc-cdsp*")):
        yield Device("NPU", f"Qualcomm Hexagon ({node.name})", "fastrpc", _usable(node))


def _vulkan(root: Path) -> Iterator[Device]:
    """What a WebGPU engine goes through: drivers that are registered with the Vulkan loader."""
    folders = [root / place / "vulkan/icd.d" for place in ("usr/share", "usr/local/share", "etc")]
    names = sorted({file.stem for folder in folders for file in folder.glob("*.json")})
    if names:
        loader = "is there" if ctypes.util.find_library("vulkan") else "(libvulkan) is missing"
        yield Device("Vulkan", ", ".join(names), f"the loader {loader}")


def _driver(node: Path) -> str | None:
    try:
        return (node / "device/driver").resolve(strict=True).name
    except OSError:
        return None


def _usable(path: Path) -> bool | None:
    return os.access(path, os.R_OK | os.W_OK) if path.exists() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None

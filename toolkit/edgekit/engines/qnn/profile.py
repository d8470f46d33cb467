"""What the profiler asks of Qualcomm's NPUs."""

from collections.abc import Callable
from pathlib import Path

from edgekit.artifact import Manifest
from edgekit.engines.observing import Operation
from edgekit.errors import EngineError
from edgekit.runtime.session import Session


def host_memory(manifest: Manifest) -> bool:
    """See ``Observer``. The NPU reads the same memory as the CPU, though by a path of its own."""
    return True


def cache_bytes(manifest: Manifest) -> int:
    """See ``Observer``. Float16, or codes of 16 bits."""
    return 2


def device_memory() -> tuple[int, str] | None:
    """See ``Observer``. Nothing tells what the NPU has mapped."""
    return None


def trace(directory: Path, manifest: Manifest, threads: int | None, work: Callable[[Session], None]) -> list[Operation]:
    """See ``Observer``. A part is one operator to ONNX Runtime; what is in it, only Qualcomm's own tools show."""
    raise EngineError("the NPU does not tell what its operators take; record it on the device with Qualcomm's Snapdragon Profiler")

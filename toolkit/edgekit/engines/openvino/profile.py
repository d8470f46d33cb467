"""What the profiler asks of OpenVINO."""

from edgekit.artifact import Manifest


def host_memory(manifest: Manifest) -> bool:
    """See ``Observer``. A graphics card may have memory of its own."""
    return manifest.engine.details["device"] != "GPU"


def cache_bytes(manifest: Manifest) -> int:
    """See ``Observer``."""
    return {"float32": 4, "float16": 2, "uint8": 1}[str(manifest.engine.details["kv_cache"])]


def device_memory() -> tuple[int, str] | None:
    """See ``Observer``. The kernel's DRM drivers tell for a GPU and an NPU."""
    return None

"""What the profiler asks of ONNX Runtime."""

from edgekit.artifact import Manifest
from edgekit.engines.onnx.providers import provider


def host_memory(manifest: Manifest) -> bool:
    """See ``Observer``."""
    return provider(manifest.engine.details.get("provider")).device is None


def cache_bytes(manifest: Manifest) -> int:
    """See ``Observer``."""
    return 2 if manifest.engine.details["kv_dtype"] == "float16" else 4


def device_memory() -> tuple[int, str] | None:
    """See ``Observer``. ONNX Runtime's Python does not tell what its allocators hold."""
    return None

"""What the profiler asks of MLX."""

from collections.abc import Callable
from pathlib import Path

from edgekit.artifact import Manifest
from edgekit.engines.observing import Operation
from edgekit.errors import EngineError
from edgekit.runtime.session import Session


def host_memory(manifest: Manifest) -> bool:
    """See ``Observer``. An Apple GPU reads the same memory as the CPU, though more of its bandwidth."""
    return True


def cache_bytes(manifest: Manifest) -> int:
    """See ``Observer``."""
    return 2 if manifest.engine.details["kv_dtype"] == "float16" else 4


def device_memory() -> tuple[int, str] | None:
    """See ``Observer``."""
    from edgekit.engines.mlx.model import on_gpu

    if not on_gpu():
        return None
    import mlx.core as mx

    return int(mx.get_peak_memory()), "mlx.core.get_peak_memory"


def trace(directory: Path, manifest: Manifest, threads: int | None, work: Callable[[Session], None]) -> list[Operation]:
    """See ``Observer``. MLX has no counters of its own; its kernels show in Xcode."""
    raise EngineError(
        "MLX does not tell what its operators take; record the GPU with Xcode's Instruments (Metal System Trace) while `edge run` decodes"
    )

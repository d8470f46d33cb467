"""What the profiler asks of MLX."""

from edgekit.artifact import Manifest


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

"""What the profiler asks of ONNX Runtime."""

import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from edgekit.artifact import Manifest
from edgekit.engines.observing import Operation
from edgekit.engines.onnx.providers import provider
from edgekit.engines.onnx.session import open_session
from edgekit.runtime.session import Session

HOLDS = ("If", "Loop", "Scan")


def host_memory(manifest: Manifest) -> bool:
    """See ``Observer``."""
    return provider(manifest.engine.details.get("provider")).device is None


def cache_bytes(manifest: Manifest) -> int:
    """See ``Observer``."""
    return np.dtype(str(manifest.engine.details["kv_dtype"])).itemsize


def device_memory() -> tuple[int, str] | None:
    """See ``Observer``. ONNX Runtime's Python does not tell what its allocators hold."""
    return None


def trace(directory: Path, manifest: Manifest, threads: int | None, work: Callable[[Session], None]) -> list[Operation]:
    """See ``Observer``: ONNX Runtime's own profiling, of which the time of each node's kernel counts."""
    with (
        tempfile.TemporaryDirectory(prefix="edgekit-trace-", ignore_cleanup_errors=True) as folder,
        closing(open_session(directory, manifest, threads=threads, trace=Path(folder) / "ort")) as session,
    ):
        work(session)
        path, began = session.end_trace()
        events = json.loads(path.read_text(encoding="utf-8"))
    found = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return [
        Operation(
            event["name"].removesuffix("_kernel_time"),
            event["args"]["op_name"],
            began + event["ts"] / 1e6,
            event["dur"] / 1e6,
            event["args"]["op_name"] in HOLDS,
        )
        for event in found
    ]

"""What the profiler asks of OpenVINO."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Manifest
from edgekit.engines.observing import Operation
from edgekit.engines.openvino.session import open_session
from edgekit.runtime.session import Session

if TYPE_CHECKING:
    import openvino


ATTENTION = "ScaledDotProductAttention"


def host_memory(manifest: Manifest) -> bool:
    """See ``Observer``. A graphics card may have memory of its own."""
    return manifest.engine.details["device"] != "GPU"


def cache_bytes(manifest: Manifest) -> int:
    """See ``Observer``."""
    return {"float32": 4, "float16": 2, "uint8": 1}[str(manifest.engine.details["kv_cache"])]


def device_memory() -> tuple[int, str] | None:
    """See ``Observer``. The kernel's DRM drivers tell for a GPU and an NPU."""
    return None


def trace(directory: Path, manifest: Manifest, threads: int | None, work: Callable[[Session], None]) -> list[Operation]:
    """See ``Observer``: the plugin's counters after each inference. They hold no moments, so operators stand one after the other in the
    order of the graph, from the beginning of their inference on."""
    found: list[Operation] = []
    with closing(open_session(directory, manifest, threads=threads, watch=lambda request: Watched(request, found))) as session:
        work(session)
    return found


class Watched:
    """A request whose every inference is written down."""

    def __init__(self, request: "openvino.InferRequest", found: list[Operation]) -> None:
        self._request = request
        self._found = found

    def infer(self, inputs: object, share_inputs: bool = False) -> object:
        began = time.perf_counter()
        outputs = self._request.infer(inputs, share_inputs=share_inputs)
        at = began
        for counter in self._request.get_profiling_info():
            seconds = counter.real_time.total_seconds()
            if seconds > 0:
                self._found.append(Operation(counter.node_name, kind(counter.node_type, counter.node_name), at, seconds))
                at += seconds
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def kind(plugins: str, name: str) -> str:
    """Of an operator. The plugin calls ours (operators.py) references; they keep the names of those whose place they take."""
    if plugins != "Reference":
        return plugins
    return ATTENTION if name.startswith(ATTENTION) else "MatMul"

"""Qualcomm's compiler, in a process of its own (``main``): it takes gigabytes, and a graph it does not like may end it.

A part's two graphs (graph.py) become two small ONNX files, each with one EPContext node, and the binary file that they name. Where
turns.c was compiled when edgekit was installed, the compiler's threads take turns, and the same part gives the same bytes. Imports
nothing of the rest of the build.
"""

import functools
import os
import platform
import re
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekit import child
from edgekit.errors import EdgekitError, EngineError, EngineMissing, TargetError

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "QNNExecutionProvider"
REQUIRES = {"onnxruntime": "1.31", "onnxruntime-qnn": "2.7", "onnxruntime-genai": "0.18"}
INSTALL = "pip install 'edgekit[build,qnn]' (x86-64 or arm64, Linux or Windows, Python 3.11 or newer)"
PR_SET_PDEATHSIG = 1
TURNS_VERSION = "edgekit turns 1"
"""In turns.c: a library that was compiled from another one is not used."""
FINALIZATION = "3"
"""The compiler's effort; "1" fails with 8 layers of Phi-3.5 (error 1002)."""


@dataclass(frozen=True)
class Compiled:
    """What a compiled file says of itself. sdk: the version of Qualcomm's AI Runtime. compatibility: as ONNX Runtime compares it."""

    sdk: str
    compatibility: str


@functools.cache
def turns() -> Path | None:
    """turns.c, compiled: where edgekit was installed with a C compiler on x86-64 Linux, in a path that the dynamic linker takes (it
    parts a list of them at spaces and colons)."""
    path = Path(__file__).with_name("_turns.so")
    try:
        fits = TURNS_VERSION.encode() + b"\0" in path.read_bytes()
    except OSError:
        return None
    here = sys.platform == "linux" and platform.machine() == "x86_64"
    return path if fits and here and not re.search(r"[\s:$]", str(path)) else None


def compile_part(
    folder: Path,
    graphs: dict[str, str],
    soc_model: int,
    *,
    sharing: bool,
    reproducible: bool,
    memory: int,
    what: str,
    tell: Callable[[int], None],
) -> None:
    """Compiles ``graphs`` (file in ``folder`` -> file to make there) for one chip, each whole on the NPU.

    sharing: all of them into one binary. reproducible: in ``turns``, where there are any. memory: bytes the compiler may take.
    what: for messages, such as "layers 0 to 7".
    tell: gets every second how many graphs are done.
    Raises EngineMissing; TargetError where the NPU does not take every operator; EngineError where the compiler crashes or runs out
    of memory, or fails otherwise.
    """
    library = turns() if reproducible else None
    request: child.Json = {"folder": str(folder), "graphs": graphs, "soc_model": soc_model, "sharing": sharing, "memory": memory}
    request["turns"] = library is not None
    environment = None if library is None else {**os.environ, "LD_PRELOAD": str(library)}
    try:
        # Left in this order: the process is ended, so that its answer comes, whatever it is.
        with ThreadPoolExecutor(1) as pool, child.asking("edgekit.engines.qnn.compiler", request, environment=environment) as answer:
            waiting = pool.submit(answer)
            while not wait([waiting], timeout=1).done:
                tell(sum((folder / output).exists() for output in graphs.values()))
            waiting.result()
    except EngineError as error:
        raise EngineError(
            f"compiling {what} failed: {error} (allowed: {memory / 1e9:.1f} GB). What was compiled before is kept: run the same command "
            "again to go on, with fewer layers to a part or more memory_mb in the target's [options] if memory was the reason"
            + ("" if library is None else "; if not, try reproducible = false there")
        ) from None


def read_compiled(path: Path) -> Compiled:
    """Of an ONNX file that ``compile_part`` made. Raises EngineError."""
    raw = path.read_bytes()
    sdk = re.search(rb"ep_sdk_version[^v]{1,8}v(\d+\.\d+\.\d+(?:\.\d+)?)", raw)
    compatibility = re.search(rb"ep_compatibility_info\." + PROVIDER.encode() + rb"\x12.([\w.:]+)", raw, re.DOTALL)
    if sdk is None or compatibility is None:
        raise EngineError(f"{path} does not say which version compiled it; this onnxruntime-qnn is not known to edgekit")
    return Compiled(sdk[1].decode(), compatibility[1].decode())


def main() -> None:
    """The compiler's process."""
    child.serve(_serve)


def _serve(request: child.Json) -> child.Json:
    folder, graphs = Path(str(request["folder"])), cast(dict[str, str], request["graphs"])
    if bool(request["turns"]) != in_turns():
        raise EngineError(
            f"the dynamic linker did not load {turns()} as it was asked to; set reproducible = false in the target's [options]"
        )
    _bound(int(cast(int, request["memory"])))
    # Names in compiled files derive from the path that ONNX Runtime is given: without the folder they are always the same.
    os.chdir(folder)
    for i, (source, output) in enumerate(graphs.items()):
        _compile(source, output, int(cast(int, request["soc_model"])), sharing=bool(request["sharing"]), last=i == len(graphs) - 1)
    return {}


def in_turns() -> bool:
    """Whether this process runs with turns.c."""
    if sys.platform != "linux":
        return False
    import ctypes

    return hasattr(ctypes.CDLL(None), "edgekit_turns")


def _bound(memory: int) -> None:
    """Memory beyond this is not given to this process, so that the compiler fails rather than the machine; and it ends with its parent,
    even one that was killed."""
    if sys.platform == "linux":
        import ctypes
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _compile(source: str, output: str, soc_model: int, *, sharing: bool, last: bool) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    entries = {
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": output,
        "session.disable_cpu_ep_fallback": "1",
        "session.record_ep_graph_assignment_info": "1",
    }
    if sharing:
        entries |= {"ep.share_ep_contexts": "1"} | ({"ep.stop_share_ep_contexts": "1"} if last else {})
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    settings = {
        "backend_type": "htp",
        "soc_model": str(soc_model),
        "htp_graph_finalization_optimization_mode": FINALIZATION,
    }
    options.add_provider_for_devices(devices(), settings)
    try:
        session = onnxruntime.InferenceSession(source, options, enable_fallback=0)
    except Exception as error:  # the library raises nothing narrower
        raise _refusal(source, error) from None
    assigned = session.get_provider_graph_assignment_info()
    stray = sorted({node.op_type for part in assigned if part.ep_name != PROVIDER for node in part.get_nodes()})
    if stray or len(assigned) != 1:
        raise TargetError(f"{source}: the NPU does not take all of it in one piece: {len(assigned)} pieces, not on it: {stray}")


def _refusal(source: str, error: Exception) -> EdgekitError:
    if "fallback to CPU EP has been explicitly disabled" in str(error):
        return TargetError(f"{source}: the NPU does not take every operator of this graph, and nothing is left to the CPU: {error}")
    return EngineError(f"{source}: {error}")


def devices() -> "list[onnxruntime.OrtEpDevice]":
    """The provider's, registered. Raises EngineMissing."""
    try:
        import onnxruntime
        import onnxruntime_qnn
    except ImportError as error:
        raise EngineMissing(f"Qualcomm's compiler is not installed ({error}); run: {INSTALL}") from None
    if not any(device.ep_name == PROVIDER for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]

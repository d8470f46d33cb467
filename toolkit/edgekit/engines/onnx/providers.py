"""ONNX Runtime's execution providers that artifacts are built for: which package brings each, and opening a session on one.

Device side: imports nothing of the build. Never a fallback: ONNX Runtime itself would put a graph on the CPU without a word where a
device does not start or lacks a kernel; here the one is EngineMissing and the other EngineError.
"""

import base64
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EngineError, EngineMissing

if TYPE_CHECKING:
    import onnxruntime

HEAVY = frozenset({"MatMulNBits", "GroupQueryAttention"})
"""Operators that must run on the provider itself; the arithmetic of a few lengths ONNX Runtime rightly leaves to the CPU."""
PROBE = base64.b64decode("CAg6LwoQCgF4EgF5IghJZGVudGl0eRIBcFoLCgF4EgYKBAgBEgBiCwoBeRIGCgQIARIAQgQKABAN")
"""A model of one Identity: whether a provider starts here, apart from whether it can run the artifact."""


@dataclass(frozen=True)
class Provider:
    """package: what brings it, by ``requires`` of the manifest. extra: edgekit's extra for it. device: ONNX Runtime's name of its memory,
    None for that of numpy's arrays.

    appends: more than one token may be added to a sequence at once. DirectML's GroupQueryAttention takes all but a single token for
    the beginning of a sequence. plugin: the package adds to onnxruntime; else it takes its place.
    windows: exists for Windows alone.
    """

    name: str
    package: str
    extra: str
    device: str | None
    appends: bool = True
    plugin: bool = False
    windows: bool = False


PROVIDERS: dict[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider", "onnxruntime", "onnx", None),
    "cuda": Provider("CUDAExecutionProvider", "onnxruntime-gpu", "cuda", "cuda"),
    "dml": Provider("DmlExecutionProvider", "onnxruntime-directml", "directml", "dml", appends=False, windows=True),
    "webgpu": Provider("WebGpuExecutionProvider", "onnxruntime-ep-webgpu", "webgpu", "gpu", plugin=True),
}


def provider(name: object) -> Provider:
    """By its name in the manifest (``engine.details.provider``; the CPU where there is none). Raises EngineError for an unknown one."""
    if name is None:
        return PROVIDERS["cpu"]
    if name not in PROVIDERS:
        raise EngineError(f"this artifact is for the provider {name!r}, known here: {', '.join(PROVIDERS)}; upgrade edgekit")
    return PROVIDERS[str(name)]


def open_on(chosen: Provider, path: Path, options: "onnxruntime.SessionOptions") -> "onnxruntime.InferenceSession":
    """The model at ``path`` on this provider. Raises EngineMissing (not installed, or no such device here) and EngineError (it refuses
    the file, or has no kernel for an operator that matters)."""
    if chosen is PROVIDERS["cpu"]:
        return _load(path, options, [chosen.name])
    names = _register(chosen, options)
    _probe(chosen, names)
    import onnxruntime

    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = _load(path, options, names)
    stray = sorted(
        {
            f"{node.op_type} on {part.ep_name}"
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
            if node.op_type in HEAVY and part.ep_name != chosen.name
        }
    )
    if stray or session.get_providers()[0] != chosen.name:
        raise EngineError(
            f"ONNX Runtime {onnxruntime.__version__} puts {', '.join(stray) or path.name} instead of on {chosen.name}; "
            f'upgrade it: pip install --upgrade "{chosen.package}"'
        )
    return session


def _register(chosen: Provider, options: "onnxruntime.SessionOptions") -> Sequence[str] | None:
    """Names to give a session; None where a plug-in's devices were put into ``options`` instead."""
    import onnxruntime

    if chosen.name in onnxruntime.get_available_providers():
        return [chosen.name]
    try:
        if not chosen.plugin:
            raise ImportError(chosen.package)
        plugin = importlib.import_module(chosen.package.replace("-", "_"))
    except ImportError:
        if chosen.windows and sys.platform != "win32":
            raise EngineMissing(
                f"this artifact runs on {chosen.name}, which exists for Windows alone; run it there (edge package --for windows)"
            ) from None
        place = "" if chosen.plugin else ", in place of onnxruntime"
        raise EngineMissing(
            f"this artifact runs on {chosen.name}, which the installed onnxruntime {onnxruntime.__version__} lacks; "
            f'install {chosen.package}{place}: pip install "edgekit[{chosen.extra}]"'
        ) from None
    if not any(device.ep_name == chosen.name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(chosen.package, plugin.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == chosen.name]
    if not devices:
        raise EngineMissing(
            f"this artifact runs on {chosen.name}; {chosen.package} is installed and finds no device for it on this machine"
        )
    options.add_provider_for_devices(devices[:1], {})
    return None


def _probe(chosen: Provider, names: Sequence[str] | None) -> None:
    if names is None:
        return  # a plug-in has found its device already
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    try:
        found = onnxruntime.InferenceSession(PROBE, quiet, providers=list(names), enable_fallback=0).get_providers()[0]
        reason = f"got {found}"
    except Exception as error:  # the library raises nothing narrower
        found, reason = "", str(error)
    if found != chosen.name:
        raise EngineMissing(
            f"this artifact runs on {chosen.name}, which does not start on this machine (no such device or driver): {reason}"
        )


def _load(path: Path, options: "onnxruntime.SessionOptions", names: Sequence[str] | None) -> "onnxruntime.InferenceSession":
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(path, options, providers=names, enable_fallback=0)
    except Exception as error:  # the library raises nothing narrower
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}; build the artifact again") from error

"""OpenVINO itself, and whether the device of an artifact is here.

Device side: imports nothing of the build. Never a fallback: OpenVINO's AUTO would take another device without a word; here the one that
the artifact is for is there, or the session is refused.
"""

import importlib
import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from edgekit.child import signal_name
from edgekit.errors import EngineError, EngineMissing

if TYPE_CHECKING:
    import openvino

PROBE = """
import sys
sys.path[:] = sys.argv[2:]
from edgekit.engines.openvino.plugins import probe
probe(sys.argv[1])
"""
"""The process that first touches a device: what crashes there is not the caller."""


def import_openvino() -> ModuleType:
    """The package ``openvino``. Raises EngineMissing."""
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise EngineMissing(f'this artifact runs on OpenVINO ({error}); install it: pip install "edgekit[openvino]"') from None


def probe(device: str) -> None:
    """Compiles and runs a model of one operator on a device. What this raises, or whether it ends the process, is what it is for."""
    openvino = import_openvino()
    ops = importlib.import_module("openvino.opset13")
    value = ops.parameter([1, 16], openvino.Type.f32)
    model = openvino.Model([ops.relu(value)], [value], "probe")
    openvino.Core().compile_model(model, device).create_infer_request().infer()


def check_device(core: "openvino.Core", device: str) -> None:
    """Whether a device other than the CPU is here and its driver works, tried in a process of its own.

    Raises EngineMissing (none here) or EngineError (it fails, or its driver crashes).
    """
    if device == "CPU":
        return
    found = [name.split(".")[0] for name in core.available_devices]
    if device not in found:
        raise EngineMissing(
            f"this artifact is for OpenVINO's {device}; found here: {', '.join(found) or 'no device'}. Install Intel's driver for it, or "
            "build for another target (edge targets)"
        )
    done = subprocess.run([sys.executable, "-c", PROBE, device, *sys.path], capture_output=True, text=True, check=False, errors="replace")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        how = f"crashed ({signal_name(-done.returncode)})" if done.returncode < 0 else f"failed: {last[:300]}"
        raise EngineError(f"OpenVINO's {device} driver {how} on a model of one operator; update Intel's driver, or build for intel-cpu")

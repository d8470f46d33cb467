"""How a CPU computes fastest: measured once with one product of the artifact's kind, then kept in the user's cache.

OpenVINO's own choice is by the CPU's features, and wrong where these are slow: its bf16 may decode at half the speed of float32
(docs/openvino.md). Device side: imports nothing of the build.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import strict_json
from edgekit.files import replace_file
from edgekit.resources import cache_folder

if TYPE_CHECKING:
    import openvino

FILE = "openvino-settings.json"
SHAPE = (8192, 3072)
"""[N, K] of the product: 12.5 MB of codes."""
PROMPT = 64
BETTER = 0.95
"""A faster setting must take at most this part of the time of a more exact one."""


@dataclass(frozen=True)
class Settings:
    """precision: OpenVINO's name of a float type. dynamic: group of activations that become int8 before a product, 0 for none."""

    precision: str
    dynamic: int
    threads: int

    @property
    def properties(self) -> dict[str, str]:
        """For ``compile_model`` on a CPU."""
        return {
            "INFERENCE_PRECISION_HINT": self.precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(self.dynamic),
            "INFERENCE_NUM_THREADS": str(self.threads),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
        }


def choose(core: "openvino.Core", wanted: Sequence[Settings], group: int) -> Settings:
    """The fastest of ``wanted`` (the most exact first) for weights in groups of ``group``; measured where there is a choice and it is not
    known yet for this CPU, OpenVINO and choice."""
    if len(wanted) == 1:
        return wanted[0]
    here = [core.get_property("CPU", "FULL_DEVICE_NAME"), core.get_versions("CPU")["CPU"].build_number]
    key = json.dumps([*here, group, *(f"{s.precision} {s.dynamic} {s.threads}" for s in wanted)])
    path = cache_folder(os.environ) / FILE
    known = _read(path)
    found = next((s for s in wanted if asdict(s) == known.get(key)), None)
    if found is None:
        found = fastest(wanted, [cost(core, settings, group) for settings in wanted])
        _write(path, {**known, key: asdict(found)})
    return found


def fastest(wanted: Sequence[Settings], costs: Sequence[float]) -> Settings:
    """Of the most exact first: another only where it is clearly faster."""
    best = 0
    for i in range(1, len(wanted)):
        if costs[i] < BETTER * costs[best]:
            best = i
    return wanted[best]


def cost(core: "openvino.Core", settings: Settings, group: int) -> float:
    """Seconds for a token decoded and four tokens of a prompt (in a chat, several are read for each that is written)."""
    request = core.compile_model(product(group), "CPU", settings.properties).create_infer_request()

    def seconds(rows: int, times: int) -> float:
        x = np.ones((1, rows, SHAPE[1]), np.float32)
        request.infer([x])  # the weights are laid out anew with the first
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            request.infer([x])
            taken.append(time.perf_counter() - began)
        return min(taken)

    return seconds(1, 15) + 4 / PROMPT * seconds(PROMPT, 3)


def product(group: int) -> "openvino.Model":
    """One decompressed 4-bit product as in the artifact's graph."""
    import openvino
    from openvino import opset13 as op

    n, k = SHAPE
    shape = [n, k // group, group]
    random = np.random.default_rng(0)

    def packed(*dims: int) -> "openvino.Node":
        data = random.integers(0, 256, int(np.prod(dims)) // 2, np.uint8)
        held = openvino.Tensor(data, openvino.Shape(list(dims)), openvino.Type.u4)
        return op.convert(openvino.op.Constant(held, shared_memory=False), openvino.Type.f16)

    scales = op.constant(np.full((n, k // group, 1), 2.0**-7, np.float16))
    weight = op.multiply(op.subtract(packed(*shape), packed(n, k // group, 1)), scales)
    rows = op.convert(op.reshape(weight, op.constant(np.array([n, k], np.int64)), special_zero=False), openvino.Type.f32)
    x = op.parameter(openvino.PartialShape([-1, -1, k]), openvino.Type.f32)
    return openvino.Model([op.matmul(x, rows, False, True)], [x], "product")


def _read(path: Path) -> Mapping[str, object]:
    try:
        found = strict_json.load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, known: Mapping[str, object]) -> None:
    """Not to be able to costs a measurement the next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(known, indent=1) + "\n").encode())

"""What a target's ``[options]`` may set for this engine."""

from dataclasses import dataclass
from typing import Literal

from edgekit.engines.onnx_format.proto import DataType
from edgekit.errors import TargetError
from edgekit.target import Target, parse_options


@dataclass(frozen=True)
class OnnxOptions:
    """accuracy_level: MatMulNBits computes in int8 (4) or in the type of the activations (0). Int8 is about three times as fast on a
    CPU and adds a relative rounding of some 0.5 % to a product; the weights are the same. CUDA and DirectML take no notice of it.
    provider: ONNX Runtime's execution provider; the graph takes the form that its kernels compute right (kernels.py).
    precision: of activations and KV cache. The quantized weights are the same bits in both.
    kv_cache: "int8" holds keys and values in a quarter of the memory, rounded by scales that are fitted to text (kv_cache.py); the CPU's
    kernels alone have it, in float32. "activations" holds them in the precision of these.
    """

    accuracy_level: Literal[0, 4] = 4
    provider: Literal["cpu", "cuda", "dml", "webgpu"] = "cpu"
    precision: Literal["float32", "float16"] = "float32"
    kv_cache: Literal["activations", "int8"] = "activations"

    @property
    def floats(self) -> DataType:
        return DataType.FLOAT16 if self.precision == "float16" else DataType.FLOAT

    @property
    def cached(self) -> DataType:
        return DataType.INT8 if self.kv_cache == "int8" else self.floats


def onnx_options(target: Target) -> OnnxOptions:
    """Raises TargetError naming the unknown key or the wrong value."""
    options = parse_options(target.options, OnnxOptions, f"target {target.name}")
    if options.kv_cache == "int8" and (options.provider, options.precision) != ("cpu", "float32"):
        raise TargetError(
            f'target {target.name}: kv_cache = "int8" is for provider = "cpu" and precision = "float32", these are '
            f'"{options.provider}" and "{options.precision}"; leave it out'
        )
    return options

"""What a target's ``[options]`` may set for this engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgekit.target import Target, parse_options

CACHE_TYPES = {"float32": "f32", "float16": "f16", "uint8": "u8"}


@dataclass(frozen=True)
class OpenvinoOptions:
    """device: the plugin that the artifact is for.
    precision: of activations. "measured": on each CPU that of float32 and bfloat16 which is faster there (settings.py).
    dynamic_quantization: whether activations become int8, in the groups of the weights, before a product: faster where a CPU has dot
    products of bytes, and adds a relative rounding of some 0.5 % to a product; the weights are the same.
    kv_cache: precision of keys and values.
    tokenizer: write openvino_genai's tokenizer; the session needs none.
    symmetric: 4-bit weights are stored signed, without zero points; asks for a scheme that has none.
    group: the only group size that the device takes; 0 any.
    prompt: NPU only: most tokens of one call. parts: NPU only: the device that its plugin compiles the graph's parts for; "CPU" runs the
    very same graphs where there is no NPU.
    """

    device: Literal["CPU", "GPU", "NPU"] = "CPU"
    precision: Literal["measured", "float32", "bfloat16", "float16"] = "measured"
    dynamic_quantization: Literal["measured", "off", "on"] = "measured"
    kv_cache: Literal["float32", "float16", "uint8"] = "float16"
    tokenizer: bool = True
    symmetric: bool = False
    group: int = 0
    prompt: int = 0
    parts: Literal["NPU", "CPU"] = "NPU"

    def runtime(self, group: int) -> Mapping[str, str]:
        """What plugins take from the graph itself where their caller, such as openvino_genai, says nothing else.

        group: of the weights; OpenVINO's own groups of 32 are right with any, and slower.
        """
        dynamic = 0 if self.dynamic_quantization == "off" else group
        return {"KV_CACHE_PRECISION": CACHE_TYPES[self.kv_cache], "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(dynamic)}


def openvino_options(target: Target) -> OpenvinoOptions:
    """Raises TargetError naming the unknown key or the wrong value."""
    return parse_options(target.options, OpenvinoOptions, f"target {target.name}")

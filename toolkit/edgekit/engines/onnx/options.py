"""What a target's ``[options]`` may set for this engine."""

from dataclasses import dataclass
from typing import Literal

from edgekit.target import Target, parse_options


@dataclass(frozen=True)
class OnnxOptions:
    """accuracy_level: MatMulNBits computes in int8 (4) or in float32 (0). Int8 is about three times as fast and adds a relative
    rounding of some 0.5 % to a product; the weights are the same.
    """

    accuracy_level: Literal[0, 4] = 4


def onnx_options(target: Target) -> OnnxOptions:
    """Raises TargetError naming the unknown key or the wrong value."""
    return parse_options(target.options, OnnxOptions, f"target {target.name}")

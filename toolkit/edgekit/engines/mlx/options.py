"""What a target's ``[options]`` may set for this engine."""

from dataclasses import dataclass
from typing import Literal

from edgekit.target import Target, parse_options


@dataclass(frozen=True)
class MlxOptions:
    """precision: of norms, activations and KV cache, and of the scales and biases by which MLX chooses the type of activations.

    INT4 weights are exact in both. An INT8 embedding is exact in float32 only (``weights.scale_type`` says what float16 does to it).
    """

    precision: Literal["float16", "float32"] = "float16"


def mlx_options(target: Target) -> MlxOptions:
    """Raises TargetError naming the unknown key or the wrong value."""
    return parse_options(target.options, MlxOptions, f"target {target.name}")

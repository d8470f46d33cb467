"""``config.json`` as mlx-lm and mlx-swift read it, and how far their own classes compute what the model does."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.artifact import TokenInfo
from edgekit.models import Model, rope
from edgekit.models.decoder import DecoderConfig
from edgekit.quant.scheme import Format, QuantScheme

OURS = "edgekit"
"""The key under which ``session.py`` finds what mlx-lm's classes have no place for. Other loaders pass over a key they do not know."""
ROPE = {"rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
DROPPED = ROPE | {"auto_map", "dtype", "layer_types"}
"""auto_map: that code is not here. layer_types: mlx-lm's llama (which is its mistral) cannot load a model that slides in every layer."""


@dataclass(frozen=True)
class Reach:
    """length: most tokens for which mlx-lm's and mlx-swift's own classes compute what the model does. reason: why no more, or None."""

    length: int
    reason: str | None


def mlx_config(model: Model, scheme: QuantScheme, formats: Mapping[str, Format], tokens: TokenInfo, precision: str) -> dict[str, object]:
    """The checkpoint's config.json with every default written out, the quantization of each module, and rotary settings under the names
    that mlx-lm reads. ``formats``: module -> format.
    """
    decoder = model.decoder
    kept = {key: value for key, value in model.checkpoint.config.items() if key not in DROPPED and value is not None}
    quantization: dict[str, object] = {"group_size": scheme.linear.group, "bits": scheme.linear.bits, "mode": "affine"}
    quantization |= {name: {"group_size": f.group, "bits": f.bits} for name, f in sorted(formats.items()) if f != scheme.linear}
    plain = {
        "num_key_value_heads": decoder.kv_heads,
        "rms_norm_eps": decoder.norm_eps,
        "tie_word_embeddings": decoder.tied,
        "torch_dtype": precision,
        "eos_token_id": list(tokens.stop),
        "quantization": quantization,
    }
    if tokens.bos is not None:
        plain["bos_token_id"] = tokens.bos
    return {**kept, **plain, **mlx_rope(model), OURS: ours(decoder)}


def mlx_rope(model: Model) -> dict[str, object]:
    """LongRoPE: the short factors stand for both sets, since mlx-lm rotates with the long ones at every length."""
    settings, decoder = rope.settings(model.checkpoint.config), model.decoder
    found: dict[str, object] = {"rope_theta": settings.get("rope_theta", 10000.0), "rope_scaling": None}
    if decoder.model_type == "phi3":
        found |= {"partial_rotary_factor": settings.get("partial_rotary_factor", 1.0)}
        # mlx-swift asks for it in every phi3
        found |= {"original_max_position_embeddings": decoder.rope.switch or decoder.context}
    if decoder.rope.switch is not None:
        short = settings["short_factor"]
        found["rope_scaling"] = {"type": "longrope", "short_factor": short, "long_factor": short}
    elif settings["rope_type"] != "default":
        found["rope_scaling"] = {k: v for k, v in settings.items() if k not in ("type", "rope_theta", "partial_rotary_factor")}
    return found


def ours(decoder: DecoderConfig) -> dict[str, Any]:
    """What ``model.py`` reads. Wavelengths are MLX's way to say frequencies: 1 / inv_freq."""
    turn = decoder.rope
    return {
        "windows": list(decoder.windows),
        "rope": {
            "wavelengths": _wavelengths(turn.inv_freq),
            "long_wavelengths": None if turn.long_inv_freq is None else _wavelengths(turn.long_inv_freq),
            "switch": turn.switch,
            "scale": turn.scale,
        },
    }


def _wavelengths(inv_freq: tuple[float, ...]) -> list[float]:
    return [float(w) for w in np.float32(1) / np.array(inv_freq, np.float32)]


def reach(decoder: DecoderConfig, context: int) -> Reach:
    """How far mlx-lm (and mlx-swift, which is written after it) can be trusted with what ``mlx_config`` writes."""
    turn = decoder.rope
    if turn.switch is not None and not math.isclose(turn.scale, longrope_scale(decoder.context, turn.switch), rel_tol=1e-6):
        return Reach(0, f"their LongRoPE scales by {longrope_scale(decoder.context, turn.switch):.4f}, not by {turn.scale:.4f}")
    limits: list[tuple[int, str | None]] = [(context, None)]
    if turn.switch is not None:
        limits.append((turn.switch, "they rotate with one set of LongRoPE factors, here the short one"))
    limits += [(window, "they ignore the sliding window") for window in decoder.windows if window is not None]
    return Reach(*min(limits, key=lambda limit: limit[0]))


def longrope_scale(context: int, original: int) -> float:
    """The attention factor that mlx-lm's ``SuScaledRoPE`` derives."""
    return math.sqrt(1 + math.log(context / original) / math.log(original)) if context > original else 1.0

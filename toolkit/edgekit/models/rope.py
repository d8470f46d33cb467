"""Frequencies of rotary position embeddings, plain and scaled, in float32 and in the order of operations of transformers
(``modeling_rope_utils.py``), so that both give the same bits but for the last of ``pow``.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ConfigError
from edgekit.models import fields
from edgekit.models.decoder import Rope

ORIGINAL = "original_max_position_embeddings"
BY_ORIGINAL = ("longrope", "su", "llama3")
"""Kinds of RoPE that depend on the length that a model was first trained for; others have the key without using it."""
MEANT = ("mscale", "mscale_all_dim", "short_mscale", "long_mscale")
"""Of Phi-3-small and other models: transformers ignores them in a LongRoPE of these architectures, but whoever wrote them meant a scale."""


def settings(config: Mapping[str, object]) -> dict[str, object]:
    """The RoPE settings of config.json as one dict with a ``rope_type``: transformers 5 keeps them all in ``rope_parameters``, older
    ones in ``rope_scaling`` and keys beside it. Raises ConfigError where two places disagree.
    """
    found: dict[str, object] = {}
    for place in ("rope_parameters", "rope_scaling"):
        value = config.get(place)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"config.json: {place} is {value!r}; an object is needed")
        _merge(found, {k: v for k, v in value.items() if v is not None}, place)
    _merge(found, {k: config[k] for k in ("rope_theta", "partial_rotary_factor") if config.get(k) is not None}, "the top level")
    kind = found.setdefault("rope_type", found.get("type", "default"))
    if not isinstance(kind, str):
        raise ConfigError(f"config.json: rope_type is {kind!r}; a name is needed")
    if kind in BY_ORIGINAL and config.get(ORIGINAL) is not None:
        _merge(found, {ORIGINAL: config[ORIGINAL]}, "the top level")
    nested = sorted(key for key, value in found.items() if isinstance(value, dict))
    if nested:
        raise ConfigError(f"config.json: RoPE by kind of layer, {nested[0]!r} is not implemented; known are settings for all layers")
    return found


def _merge(into: dict[str, object], more: Mapping[str, object], place: str) -> None:
    for key, value in more.items():
        if key in into and into[key] != value:
            raise ConfigError(f"config.json gives two values for {key}: {into[key]!r}, and {value!r} in {place}. Remove the wrong one.")
        into[key] = value


def refused(model_type: str, rope: Mapping[str, object], known: str) -> ConfigError:
    return ConfigError(f"config.json: rope_type {rope['rope_type']!r} is not implemented for {model_type}; implemented: {known}")


def dims(rope: Mapping[str, object], head_dim: int) -> int:
    """How many dims of a head are rotated. Raises ConfigError unless that is an even number from 2 to head_dim."""
    factor = fields.number(rope, "partial_rotary_factor", 1.0)
    rotated = int(head_dim * factor)
    if rotated % 2 or not 2 <= rotated <= head_dim:
        raise ConfigError(
            f"config.json: partial_rotary_factor {factor:g} of head_dim {head_dim} is {rotated} rotary dims, which is odd or too many"
        )
    return rotated


def frequencies(theta: float, rotated: int) -> NDArray[np.float32]:
    """Plain inverse frequencies ``theta ** (-2i / rotated)``, float32 [rotated / 2] (Su et al. 2021)."""
    plain_frequencies: NDArray[np.float32] = np.reciprocal(np.power(np.float32(theta), _exponents(rotated)))
    return plain_frequencies


def _exponents(rotated: int) -> NDArray[np.float32]:
    return np.arange(0, rotated, 2).astype(np.float32) / np.float32(rotated)


def plain(rope: Mapping[str, object], head_dim: int, default_theta: float) -> Rope:
    """RoPE without scaling. Settings of other kinds do nothing, here and below, as in transformers."""
    return _rope(frequencies(fields.number(rope, "rope_theta", default_theta), dims(rope, head_dim)))


def linear(rope: Mapping[str, object], head_dim: int, default_theta: float) -> Rope:
    """Linear scaling: every frequency divided by ``factor`` (position interpolation, Chen et al. 2023)."""
    plain_frequencies = frequencies(fields.number(rope, "rope_theta", default_theta), dims(rope, head_dim))
    return _rope(plain_frequencies / np.float32(fields.number(rope, "factor")))


def llama3(rope: Mapping[str, object], head_dim: int, default_theta: float) -> Rope:
    """Llama 3.1 scaling: long wavelengths divided by ``factor``, short ones kept, those between interpolated."""
    inv_freq = frequencies(fields.number(rope, "rope_theta", default_theta), dims(rope, head_dim))
    factor, low, high = (fields.number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = fields.integer(rope, ORIGINAL)
    if high <= low:
        raise ConfigError(f"config.json: high_freq_factor {high:g} must be greater than low_freq_factor {low:g}")
    f32 = np.float32
    wavelength = f32(2 * math.pi) / inv_freq
    scaled = np.where(wavelength > f32(original / low), inv_freq / f32(factor), inv_freq)
    smooth = (f32(original) / wavelength - f32(low)) / f32(high - low)
    between = (f32(1) - smooth) * scaled / f32(factor) + smooth * scaled
    medium = (wavelength >= f32(original / high)) & (wavelength <= f32(original / low))
    return _rope(np.where(medium, between, scaled))


def longrope(rope: Mapping[str, object], head_dim: int, default_theta: float, context: int) -> Rope:
    """LongRoPE (Ding et al. 2024): one divisor for each frequency, a short and a long set.

    cos and sin are scaled by ``attention_factor``, where given, else ``sqrt(1 + ln(factor) / ln(original))`` with factor =
    context / original unless given; both sets use the same, as in transformers.
    """
    for key in MEANT:
        if key in rope:
            raise ConfigError(f"config.json: RoPE setting {key!r} is not implemented for rope_type {rope['rope_type']!r}")
    rotated = dims(rope, head_dim)
    base = np.power(np.float32(fields.number(rope, "rope_theta", default_theta)), _exponents(rotated))
    original = fields.integer(rope, ORIGINAL)
    if original < 2:
        raise ConfigError(f"config.json: original_max_position_embeddings is {original}; at least 2 is needed for LongRoPE")
    factor = fields.number(rope, "factor", context / original)
    inferred = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (
        np.float32(1.0) / (np.array(fields.numbers(rope, key, rotated // 2), dtype=np.float32) * base)
        for key in ("short_factor", "long_factor")
    )
    return Rope(
        inv_freq=tuple(short.tolist()),
        long_inv_freq=tuple(long.tolist()),
        switch=original,
        scale=fields.number(rope, "attention_factor", inferred),
    )


def _rope(inv_freq: NDArray[np.float32]) -> Rope:
    return Rope(inv_freq=tuple(inv_freq.astype(np.float32).tolist()))

"""What may be moved between the weights of a layer without changing what it computes, and where that is kept.

    input_norm -> q, k, v      post_attention_norm -> gate, up      v -> o      up -> down

The columns of the later matrices are multiplied by factors, and the norm's gain or the rows of the matrix before (a bias too) divided by
them. Between the values and the output there are only means over tokens, between up and down only a product: both are linear in it.
Every engine then reads the folded weights (``Model.folded``) as if the checkpoint held them.

A folded norm is a float16 value, so engines of either precision get the same one: of ``gain / f`` the nearest, and the columns take
exactly ``gain`` over that. Factors between matrices are powers of two, so that the first of them keeps its codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.models import Folded, Model
from edgekit.models.decoder import DecoderConfig
from edgekit.quant.rtn import F32

SHARED = {
    "q_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
"""Matrices that meet the same inputs, by the first of them."""
FIRST = {part: first for first, parts in SHARED.items() for part in parts}
NORMS = {"q_proj": "input_norm", "gate_proj": "post_attention_norm"}
SMALLEST = 2.0**-14
"""Float16's smallest normal number: smaller gains are left as they are."""


@dataclass(frozen=True)
class LayerFolds:
    """columns: by the first of ``SHARED``, factors [K]. vectors: of the layer's norms and biases, those that are other than before."""

    columns: Mapping[str, F32]
    vectors: Mapping[str, F32]


def folded_norm(gain: F32, factors: F32) -> tuple[F32, F32]:
    """The folded gain, and the factors that the columns really take."""
    with np.errstate(over="ignore", under="ignore"):
        new = (gain / factors).astype(np.float16).astype(np.float32)
    sound = np.isfinite(new) & (np.abs(new) >= SMALLEST)
    new = np.where(sound, new, gain)
    return new, np.where(sound, gain / np.where(sound, new, 1), np.float32(1)).astype(np.float32)


def value_heads(decoder: DecoderConfig) -> NDArray[np.intp]:
    """For each input of o the output of v that it is a mean of."""
    head, dim = np.divmod(np.arange(decoder.heads * decoder.head_dim), decoder.head_dim)
    found: NDArray[np.intp] = (head // (decoder.heads // decoder.kv_heads)) * decoder.head_dim + dim
    return found


def rows(decoder: DecoderConfig, part: str, columns: Mapping[str, F32]) -> F32 | None:
    """What the rows of a matrix are multiplied by, or None."""
    if part == "up_proj" and "down_proj" in columns:
        return np.float32(1) / columns["down_proj"]
    if part == "v_proj" and "o_proj" in columns:
        found = np.ones(decoder.kv_heads * decoder.head_dim, np.float32)
        found[value_heads(decoder)] = np.float32(1) / columns["o_proj"]
        return found
    return None


def folded(decoder: DecoderConfig, layers: Sequence[LayerFolds]) -> Folded:
    """All of a model's."""
    vectors, by_row, by_column = dict[str, F32](), dict[str, F32](), dict[str, F32]()
    for i, layer in enumerate(layers):
        vectors |= {f"layers.{i}.{name}": values for name, values in layer.vectors.items()}
        for part, first in FIRST.items():
            if first in layer.columns:
                by_column[f"layers.{i}.{part}"] = layer.columns[first]
            factors = rows(decoder, part, layer.columns)
            if factors is not None:
                by_row[f"layers.{i}.{part}"] = factors
    return Folded(vectors, by_row, by_column)


def packed(model: Model, index: int, layer: LayerFolds) -> list[memoryview]:
    """The folds of layer ``index`` for a cache: ones, or what the checkpoint has, where nothing is folded."""
    held = {**layer.columns, **layer.vectors}
    every = sizes(model.decoder)
    found = [
        held[n] if n in held else np.ones(size, np.float32) if n in SHARED else model.tensor(f"layers.{index}.{n}")
        for n, size in every.items()
    ]
    return [memoryview(values.astype("<f4")).cast("B") for values in found]


def packed_bytes(decoder: DecoderConfig) -> int:
    return 4 * sum(sizes(decoder).values())


def unpacked(model: Model, index: int, payload: memoryview) -> LayerFolds:
    """What was ``packed``."""
    every, values = sizes(model.decoder), np.frombuffer(payload, "<f4").astype(np.float32)
    held = dict(zip(every, np.split(values, np.cumsum(list(every.values()))[:-1]), strict=True))
    columns = {n: v for n, v in held.items() if n in SHARED and (v != 1).any()}
    return LayerFolds(columns, {n: v for n, v in held.items() if n not in SHARED and (v != model.tensor(f"layers.{index}.{n}")).any()})


def sizes(decoder: DecoderConfig) -> dict[str, int]:
    """Of all that a layer's folds may hold, by the names of ``columns`` and then of ``vectors``, in the order that they are stored in."""
    shapes = decoder.weight_shapes()
    found = {first: shapes[f"layers.0.{first}"][1] for first in SHARED}
    names = (*NORMS.values(), *(("q_proj.bias", "k_proj.bias", "v_proj.bias") if decoder.qkv_bias else ()))
    return found | {name: shapes[f"layers.0.{name}"][0] for name in names}

"""The scales of an INT8 KV cache: symmetric, one for each channel of a head, fixed in the graph. ONNX Runtime clips what exceeds them
without a word, so they are fitted to text, with room to spare.

Keys are cached rotated, and a rotation keeps the length of the pair that it turns: so the scale of both is made of that length, and holds
at every position, on either side of the LongRoPE switch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.calibration_text import calibration_text
from edgekit.companions import Companions
from edgekit.conformance import text_vectors
from edgekit.errors import CheckpointError
from edgekit.models import Model
from edgekit.models.decoder import DecoderConfig
from edgekit.progress import Progress
from edgekit.quant.scheme import QuantScheme
from edgekit.quantized import Quantizer, dequantizer
from edgekit.reference import apply_layer, embedded

F32 = NDArray[np.float32]
SEQUENCES, LENGTH = 8, 128
"""Of the text in sixteen languages that --calibrate takes: pieces that lie far from each other, and tokens of each."""
MARGIN = 1.5
"""Room above the greatest value that was seen: it costs 0.6 of a bit. Of random tokens in models of random weights it leaves one value in
180,000 to be clipped, 1.25 one in 4,000."""
TOP = 127


@dataclass(frozen=True)
class Scales:
    """Of one layer: float32 [KV * head_dim], what a step of the cached keys and values stands for."""

    keys: F32
    values: F32


def fit_scales(model: Model, scheme: QuantScheme, companions: Companions, quantizer: Quantizer, progress: Progress) -> list[Scales]:
    """By layer, of the quantized weights; one matrix in memory at a time.

    Raises CheckpointError for weights whose keys or values are not finite, and from reading them.
    """
    decoder, tensor = model.decoder, dequantizer(model, scheme, quantizer)
    greatest: dict[str, F32] = {}

    def note(name: str, inputs: F32) -> None:
        layer, _, part = name.rpartition(".")
        if part not in ("k_proj", "v_proj"):
            return
        found = inputs @ tensor(name).T
        if decoder.qkv_bias:
            found += tensor(f"{name}.bias")
        if not np.isfinite(found).all():
            raise CheckpointError(f"{name} gives values that are not finite; an INT8 cache cannot hold them: check the checkpoint")
        greatest[name] = key_lengths(found, decoder) if part == "k_proj" else np.abs(found).max(axis=0)
        if part == "v_proj":
            progress("calibrate the KV cache", int(layer.removeprefix("layers.")) + 1, decoder.layers)

    hidden, spans = embedded(tensor, sequences(companions, decoder.context))
    for i in range(decoder.layers):
        apply_layer(decoder, tensor, i, hidden, spans, note)
    return [Scales(*(steps(greatest[f"layers.{i}.{part}"]) for part in ("k_proj", "v_proj"))) for i in range(decoder.layers)]


def sequences(companions: Companions, context: int) -> list[list[int]]:
    """Pieces of the text, each begun as a sequence of this model is, and chats: what begins a conversation is like nothing in a text."""
    tokens, opening = companions.tokenizer.encode(calibration_text()), list(companions.tokens.opening)
    length = min(LENGTH, context - len(opening))
    starts = np.linspace(0, len(tokens) - length, SEQUENCES).astype(int)
    chats = [companions.tokenizer.encode(chat.rendered)[:context] for chat in text_vectors(companions).chat]
    return [*([*opening, *tokens[start : start + length]] for start in starts), *chats]


def key_lengths(keys: F32, decoder: DecoderConfig) -> F32:
    """The greatest that any rotation makes of each channel. keys: [T, KV * head_dim], not rotated yet."""
    split = np.abs(keys.reshape(len(keys), decoder.kv_heads, decoder.head_dim))
    half = decoder.rope.dims // 2
    pairs = np.hypot(split[..., :half], split[..., half : 2 * half]) * np.float32(decoder.rope.scale)
    lengths: F32 = np.concatenate([pairs, pairs, split[..., 2 * half :]], axis=-1).max(axis=0).reshape(-1)
    return lengths


def steps(greatest: F32) -> F32:
    """Scales for values up to MARGIN times these, rounded up to eight bits so that the last bits of a sum seldom show in them."""
    wanted = greatest * np.float32(MARGIN / TOP)
    wanted[wanted == 0] = 1
    mantissa, exponent = np.frexp(wanted)
    rounded: F32 = np.ldexp(np.ceil(mantissa * 256) / 256, exponent).astype(np.float32)
    return rounded

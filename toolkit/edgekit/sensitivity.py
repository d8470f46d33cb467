"""How much each matrix may be rounded: the KL divergence that its rounding alone makes at the end of the model, measured.

One pass over the layers carries the model's own hidden states and beside them one copy for each unit already passed, in which that unit,
and nothing else, is quantized. So every weight is read once, and a model never is in memory. Other formats of a unit follow from the error
they leave in its outputs, on the same inputs: a small error's divergence grows with its square (docs/quantization.md has the check).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.divergence import compare
from edgekit.models import Model
from edgekit.models.decoder import DecoderConfig
from edgekit.progress import Progress
from edgekit.quant import dequantize, quantize
from edgekit.quant.rtn import F32
from edgekit.quant.scheme import Format
from edgekit.reference import apply_layer, embedded, head

VERSION = 2
"""Of what is measured: raised by whoever changes it, or kept figures would be taken for new."""
LENGTH, SEQUENCES = 128, 2
"""Tokens of a sequence, and sequences: more would take hours for a large model, and fewer already order the matrices alike."""
PARTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


@dataclass(frozen=True)
class Unit:
    """Matrices that get one format, as some engines hold them as one: canonical names."""

    weights: tuple[str, ...]


def units(decoder: DecoderConfig) -> list[Unit]:
    """In the order of a forward pass: the layers' matrices. Embedding and lm_head keep the scheme's format, as no method fits them."""
    return [Unit(tuple(f"layers.{i}.{part}" for part in parts)) for i in range(decoder.layers) for parts in PARTS]


def sensitivities(
    model: Model, every: Sequence[Unit], forms: Sequence[Format], sequences: Sequence[Sequence[int]], progress: Progress
) -> list[list[float]]:
    """For each unit the mean KL divergence, in nats, with it alone in each of ``forms``; the first form is the one that is measured.

    sequences: of tokens; all positions count. Raises CheckpointError.
    """
    decoder = model.decoder
    hidden, spans = embedded(model.tensor, sequences)
    copies: list[F32] = []
    ratios: list[list[float]] = []
    for i in range(decoder.layers):
        mine = [unit for unit in every if unit.weights[0].startswith(f"layers.{i}.")]
        weights = {name: model.tensor(name) for name in decoder.weight_shapes() if name.startswith(f"layers.{i}.")}
        forked, found = _forked(decoder, weights, i, mine, forms, hidden, spans)
        ratios += found
        joined = np.concatenate([hidden, *copies])
        apply_layer(decoder, weights.__getitem__, i, joined, _repeated(spans, 1 + len(copies)))
        hidden, *copies = np.split(joined, 1 + len(copies))
        copies += forked
        progress("sensitivity", i + 1, decoder.layers + 1)
    last = {"norm": model.tensor("norm")}
    name = "embed_tokens" if decoder.tied else "lm_head"
    last[name] = model.tensor(name)
    reference = head(decoder, last.__getitem__, hidden)

    def divergence(found: F32) -> float:
        return float(compare(reference, found, [token for tokens in sequences for token in tokens]).kl.mean())

    kl = [divergence(head(decoder, last.__getitem__, copy)) for copy in copies]
    progress("sensitivity", decoder.layers + 1, decoder.layers + 1)
    return [[k * ratio for ratio in r] for k, r in zip(kl, ratios, strict=True)]


def _repeated(spans: Sequence[slice], copies: int) -> list[slice]:
    """The rows of each sequence in so many copies, one after the other."""
    total = spans[-1].stop
    return [slice(span.start + c * total, span.stop + c * total) for c in range(copies) for span in spans]


def _forked(
    decoder: DecoderConfig,
    weights: Mapping[str, F32],
    i: int,
    mine: Sequence[Unit],
    forms: Sequence[Format],
    hidden: F32,
    spans: list[slice],
) -> tuple[list[F32], list[list[float]]]:
    """After layer ``i``, for each unit of it, the hidden states with that unit in the first form; and of each form the error that it leaves
    in the unit's outputs, over that of the first."""
    inputs: dict[str, F32] = {}
    apply_layer(decoder, weights.__getitem__, i, hidden.copy(), spans, inputs.__setitem__)
    states, ratios = list[F32](), list[list[float]]()
    for unit in mine:
        errors = []
        rounded: dict[str, F32] = {}
        for form in reversed(forms):
            rounded = {name: dequantize(quantize(weights[name], form, name=name)) for name in unit.weights}
            errors.append(sum(float(np.square(inputs[n] @ (rounded[n] - weights[n]).T, dtype=np.float64).sum()) for n in unit.weights))
        errors.reverse()
        ratios.append([error / errors[0] if errors[0] else 0.0 for error in errors])
        state = hidden.copy()
        apply_layer(decoder, (dict(weights) | rounded).__getitem__, i, state, spans)
        states.append(state)
    return states, ratios

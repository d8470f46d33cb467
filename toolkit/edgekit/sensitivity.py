"""How much each matrix may be rounded: the KL divergence that its rounding alone makes at the end of the model, measured.

One pass over the layers carries the model's own hidden states and beside them one copy for each unit already passed, in which that unit,
and nothing else, is quantized. So every weight is read once, and a model never is in memory. Other formats of a unit follow from the error
they leave in its outputs, on the same inputs: a small error's divergence grows with its square (docs/quantization.md has the check).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.models import Model
from edgekit.models.decoder import DecoderConfig
from edgekit.progress import Progress
from edgekit.quant import dequantize, quantize
from edgekit.quant.rtn import F32
from edgekit.quant.scheme import Format
from edgekit.reference import apply_layer, embedded, head

VERSION = 3
"""Of what is measured: raised by whoever changes it, or kept figures would be taken for new."""
LENGTH, SEQUENCES = 128, 2
"""Tokens of a sequence, and sequences: more would take hours for a large model, and fewer already order the matrices alike."""
SCORED = 256
"""Positions that divergences are measured at, evenly spread: with a large vocabulary they would take longer than all the layers."""
LARGEST = 80.0
"""Of differences of logits: beyond it float32 has no exponential."""
TOGETHER = 16
"""Copies that go through a layer at a time: activations of an MLP are wide."""
PARTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


@dataclass(frozen=True)
class Unit:
    """Matrices that get one format, as some engines hold them as one: canonical names."""

    weights: tuple[str, ...]


def units(decoder: DecoderConfig) -> list[Unit]:
    """In the order of a forward pass: the layers' matrices. Embedding and lm_head keep the scheme's format, as no method fits them."""
    return [Unit(tuple(f"layers.{i}.{part}" for part in parts)) for i in range(decoder.layers) for parts in PARTS]


def sensitivities(
    model: Model, every: Sequence[Unit], forms: Sequence[Sequence[Format]], sequences: Sequence[Sequence[int]], progress: Progress
) -> list[list[float]]:
    """For each unit the mean KL divergence, in nats, with it alone in each of its ``forms``; the first form is the one that is measured.

    sequences: of tokens; ``SCORED`` positions of them count, all where there are no more. Raises CheckpointError.
    """
    decoder = model.decoder
    hidden, spans = embedded(model.tensor, sequences)
    copies: list[F32] = []
    ratios: list[list[float]] = []
    for i in range(decoder.layers):
        mine = [(unit, listed) for unit, listed in zip(every, forms, strict=True) if unit.weights[0].startswith(f"layers.{i}.")]
        weights = {name: model.tensor(name) for name in decoder.weight_shapes() if name.startswith(f"layers.{i}.")}
        forked, found = _forked(decoder, weights, i, mine, hidden, spans)
        ratios += found
        carried = [hidden, *copies]
        for at in range(0, len(carried), TOGETHER):
            part = carried[at : at + TOGETHER]
            joined = np.concatenate(part)
            apply_layer(decoder, weights.__getitem__, i, joined, _repeated(spans, len(part)))
            for state, after in zip(part, np.split(joined, len(part)), strict=True):
                state[...] = after
        copies += forked
        progress("sensitivity", i + 1, decoder.layers + 1)
    last = {"norm": model.tensor("norm")}
    name = "embed_tokens" if decoder.tied else "lm_head"
    last[name] = model.tensor(name)
    scored = np.unique(np.linspace(0, len(hidden) - 1, min(SCORED, len(hidden))).round().astype(np.intp))
    reference = head(decoder, last.__getitem__, hidden[scored])
    shares = softmax(reference)
    kl = [_divergence(reference, shares, head(decoder, last.__getitem__, copy[scored])) for copy in copies]
    progress("sensitivity", decoder.layers + 1, decoder.layers + 1)
    return [[k * ratio for ratio in r] for k, r in zip(kl, ratios, strict=True)]


def softmax(logits: F32) -> F32:
    """Shares [n, V] of the tokens, for logits [n, V]."""
    shares: F32 = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _divergence(reference: F32, shares: F32, found: F32) -> float:
    """The mean KL divergence of logits [n, V] that lie close to the reference's: ``ln(sum p exp(d)) - sum p d`` of their difference d, in
    float32 about its mean, where nothing large cancels."""
    np.subtract(found, reference, out=found)
    found -= np.einsum("nv,nv->n", shares, found)[:, None]
    drift = np.einsum("nv,nv->n", shares, found, dtype=np.float64)
    np.expm1(np.minimum(found, LARGEST, out=found), out=found)
    kl = np.log1p(np.einsum("nv,nv->n", shares, found, dtype=np.float64)) - drift
    return float(np.maximum(kl, 0.0).mean())


def _repeated(spans: Sequence[slice], copies: int) -> list[slice]:
    """The rows of each sequence in so many copies, one after the other."""
    total = spans[-1].stop
    return [slice(span.start + c * total, span.stop + c * total) for c in range(copies) for span in spans]


def _forked(
    decoder: DecoderConfig,
    weights: Mapping[str, F32],
    i: int,
    mine: Sequence[tuple[Unit, Sequence[Format]]],
    hidden: F32,
    spans: list[slice],
) -> tuple[list[F32], list[list[float]]]:
    """After layer ``i``, for each unit of it, the hidden states with that unit in the first form; and of each form the error that it leaves
    in the unit's outputs, over that of the first."""
    inputs: dict[str, F32] = {}
    apply_layer(decoder, weights.__getitem__, i, hidden.copy(), spans, inputs.__setitem__)
    states, ratios = list[F32](), list[list[float]]()
    for unit, forms in mine:
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

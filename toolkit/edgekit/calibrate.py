"""Quantizing by what the weights will meet: one pass of text through the reference decoder, each matrix settled as its turn comes.

As a matrix's turn comes, the second moments of its inputs are known, *as the quantized layers before it give them*, so that later ones can
make up for earlier ones. Factors may be moved into it from its neighbours (``quant/awq.py``, ``folds.py``), then it is rounded for these
inputs (``quant/gptq.py``); a bias, where there is one, takes up the mean error. What comes out is portable INT4 like any other and goes,
layer by layer, into a store from which every export reads it; a calibration that is broken off goes on with the layer it was at.

In memory at a time: the activations, the codes of a layer, one matrix and the moments of its inputs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from edgekit import cache as kept
from edgekit.errors import OutputError, UsageError
from edgekit.folds import FIRST, NORMS, SHARED, LayerFolds, folded, folded_norm, packed, packed_bytes, rows, unpacked, value_heads
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant import concatenate, dequantize, quantize
from edgekit.quant.awq import factors
from edgekit.quant.gptq import F64, Inputs, quantize_for
from edgekit.quant.rtn import F32, GRIDS, SMALLEST
from edgekit.quant.scheme import QuantizedTensor, QuantScheme
from edgekit.quantized import Kept, Matrix, cuts, load_block, matrices, store_block
from edgekit.reference import reference_logits_many

VERSION = 3
"""Of the methods: raised by whoever changes what they give, or kept blocks would be taken for new."""
LENGTH, SEQUENCES = 512, 64
"""Tokens of a sequence, and sequences at most: 32,768 tokens."""
ROWS = 16384
"""Inputs whose moments are summed in float32 before they are added up in float64."""
Fitting = Literal["awq", "gptq", "awq-gptq"]


def calibration_tokens(ids: Sequence[int], bos: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """``ids`` cut into sequences of ``length`` tokens, ``bos`` first; the remainder is left out. Raises UsageError for too short a text."""
    step = min(LENGTH, length) - len(bos)
    found = [(*bos, *ids[at : at + step]) for at in range(0, len(ids) - step + 1, step)][:SEQUENCES]
    if not found:
        raise UsageError(f"the calibration text has {len(ids)} tokens; a sequence takes {step}: give a longer text (10,000 tokens or more)")
    return found


def kept_as(scheme: QuantScheme, model: Model, fitting: Fitting, sequences: Sequence[Sequence[int]]) -> str:
    """Names everything that a calibrated weight depends on beside the checkpoint: what is before it in the model, too."""
    formats = [[m.weight, m.format.bits, m.format.group] for m in matrices(model, scheme)]
    return "fitted " + hashlib.sha256(json.dumps([VERSION, fitting, formats, [list(s) for s in sequences]]).encode()).hexdigest()


def calibrate(
    model: Model, scheme: QuantScheme, fitting: Fitting, sequences: Sequence[Sequence[int]], store: Kept, progress: Progress
) -> Model:
    """Fills ``store`` with every matrix of the layers of ``model``, fitted to ``sequences``, and returns the model with what was folded.

    What the store holds already is not computed again. Raises CheckpointError; OutputError when a block cannot be kept.
    """
    steps = _Pass(model, {m.weight: m for m in matrices(model, scheme)}, fitting, store, progress)
    found = [steps.load(i) for i in range(model.decoder.layers)]
    if any(layer is None for layer in found):
        reference_logits_many(model.decoder, steps.tensor, sequences, last=1, seen=steps.seen)
        found = [steps.load(i) for i in range(model.decoder.layers)]
    layers = [layer for layer in found if layer is not None]
    if len(layers) < len(found):
        place = store.cache.directory
        raise OutputError(f"calibrated weights cannot be kept in {place}: free space there, or set EDGEKIT_CACHE to another place")
    return replace(model, folded=folded(model.decoder, [layer.folds for layer in layers]))


@dataclass
class _Layer:
    """made: matrices by their part, as they are stored. inputs, mean: of what the next ones meet, after the folds (for ``awq`` the moments'
    diagonal)."""

    index: int
    made: dict[str, QuantizedTensor] = field(default_factory=dict)
    columns: dict[str, F32] = field(default_factory=dict)
    vectors: dict[str, F32] = field(default_factory=dict)
    inputs: Inputs | None = None
    mean: F64 | None = None
    settled: bool = False

    @property
    def folds(self) -> LayerFolds:
        return LayerFolds(self.columns, self.vectors)


class _Pass:
    """What the reference asks for and shows, ``tensor`` and ``seen``, in the order of its layers."""

    def __init__(self, model: Model, every: Mapping[str, Matrix], fitting: Fitting, store: Kept, progress: Progress) -> None:
        self._model, self._every, self._fitting, self._store, self._progress = model, every, fitting, store, progress
        self._layer = _Layer(-1)

    def tensor(self, name: str) -> F32:
        """Weights as quantized, but nothing folded: a resumed pass gives the same numbers as one that was not broken off."""
        model = self._model
        if not name.startswith("layers."):
            weight = model.tensor(name)
            return dequantize(quantize(weight, self._every[name].format, name=name)) if name in self._every else weight
        index, part = name.removeprefix("layers.").split(".", 1)
        if self._layer.index != int(index):
            self._layer = self.load(int(index)) or _Layer(int(index))
        layer = self._layer
        if part.endswith(".bias"):
            return _unfolded_bias(model, layer, part)
        if part in NORMS.values():
            return model.tensor(name)
        if not layer.settled:
            self._settle(layer, part)
        weight = _unfolded(model, layer, part)
        self._progress("calibrate", int(index) * len(FIRST) + list(FIRST).index(part) + 1, model.decoder.layers * len(FIRST))
        if part == "down_proj" and not layer.settled:
            self._finish(layer)
        return weight

    def seen(self, name: str, inputs: F32) -> None:
        part, layer = name.split(".", 2)[2], self._layer
        if layer.settled or part not in SHARED:
            return
        layer.inputs = None  # those before take gigabytes
        whole = self._fitting != "awq"
        moments, mean = (
            _moments(inputs) if whole else np.square(inputs).sum(axis=0, dtype=np.float64),
            inputs.mean(axis=0, dtype=np.float64),
        )
        if f"{name}.bias" in self._model.decoder.weight_shapes():  # it takes up the mean, and codes have only the rest to care for
            moments -= len(inputs) * (np.outer(mean, mean) if whole else mean**2)
        if self._fitting != "gptq":
            self._fold(layer, part, np.diag(moments) if whole else moments)
        by = layer.columns.get(part)
        if by is not None:
            exact = by.astype(np.float64)
            mean /= exact
            moments /= exact if not whole else exact[:, None]
            moments /= exact
        layer.inputs, layer.mean = Inputs(moments), mean

    def _fold(self, layer: _Layer, first: str, moments: F64) -> None:
        """Chooses the factors of the matrices that share these inputs, and what they are taken from."""
        model, at = self._model, f"layers.{layer.index}"
        weights, form = [model.tensor(f"{at}.{part}") for part in SHARED[first]], self._every[f"{at}.{first}"].format
        if first in NORMS:
            gain = model.tensor(f"{at}.{NORMS[first]}")
            layer.vectors[NORMS[first]], layer.columns[first] = folded_norm(gain, factors(weights, moments, form))
            return
        before, tied = ("v_proj", value_heads(model.decoder)) if first == "o_proj" else ("up_proj", np.arange(len(moments)))
        found = factors(weights, moments, form, tied=tied, powers_of_two=True)
        least, most = (limit[tied] for limit in _reach(layer.made[before]))
        layer.columns[first] = np.clip(found, least, most)

    def _settle(self, layer: _Layer, part: str) -> None:
        """Rounds a matrix, its columns folded already and its rows not yet."""
        name = f"layers.{layer.index}.{part}"
        weight, form = self._model.tensor(name), self._every[name].format
        if layer.inputs is None or layer.mean is None:
            raise ValueError(f"{name} was asked for before its inputs were seen")
        by = layer.columns.get(FIRST[part])
        if by is not None:
            weight = weight * by
        if form.bits == 4:
            made = quantize_for(weight, layer.inputs, form, compensate=self._fitting != "awq")
        else:
            made = quantize(weight, form, name=name)
        layer.made[part] = made
        if f"{name}.bias" in self._model.decoder.weight_shapes():
            lost = (weight - dequantize(made)) @ layer.mean.astype(np.float32)
            # A float16 value, so that engines of either precision get the same one.
            layer.vectors[f"{part}.bias"] = (self._model.tensor(f"{name}.bias") + lost).astype(np.float16).astype(np.float32)

    def _finish(self, layer: _Layer) -> None:
        """Folds the rows of v and up, and keeps the layer: its factors last, as they say that it is complete."""
        model, store = self._model, self._store
        for part in ("v_proj", "up_proj"):
            by = rows(model.decoder, part, layer.columns)
            if by is not None:
                layer.made[part] = _times(layer.made[part], by)
                if f"{part}.bias" in layer.vectors:
                    layer.vectors[f"{part}.bias"] = layer.vectors[f"{part}.bias"] * by
        for part, made in layer.made.items():
            m = self._every[f"layers.{layer.index}.{part}"]
            for start, stop in cuts(m.shape):
                block = QuantizedTensor(
                    (stop - start, m.shape[1]), m.format, made.codes[start:stop], made.scales[start:stop], made.zeros[start:stop]
                )
                store_block(model, m, start, stop, block, store)
        layer.settled = True
        parts = packed(model, layer.index, layer.folds)
        about = {"model": model.checkpoint.source.name, "file": "calibration", "format": "folds"}
        kept.store(store.cache, self._group(), f"layer-{layer.index}", parts, about)
        if self.load(layer.index) is None:
            raise OutputError(f"calibrated weights cannot be kept in {store.cache.directory}: free space there, or set EDGEKIT_CACHE")

    def _group(self) -> str:
        digests = sorted(source.sha256 for source in self._store.sources.values())
        return kept.group_name((*digests, self._store.method, "folds"))

    def load(self, index: int) -> _Layer | None:
        """A settled layer as the store holds it, or None."""
        model = self._model
        payload = kept.load(self._store.cache, self._group(), f"layer-{index}", packed_bytes(model.decoder))
        if payload is None:
            return None
        folds = unpacked(model, index, payload)
        made: dict[str, QuantizedTensor] = {}
        for part in FIRST:
            m = self._every[f"layers.{index}.{part}"]
            blocks = [load_block(model, m, start, stop, self._store) for start, stop in cuts(m.shape)]
            there = [block for block in blocks if block is not None]
            if len(there) < len(blocks):
                return None
            made[part] = concatenate(there)
        return _Layer(index, made, dict(folds.columns), dict(folds.vectors), settled=True)


def _unfolded(model: Model, layer: _Layer, part: str) -> F32:
    weight = dequantize(layer.made[part])
    if FIRST[part] in layer.columns:
        weight /= layer.columns[FIRST[part]]
    by = rows(model.decoder, part, layer.columns) if layer.settled else None
    return weight if by is None else weight / by[:, None]


def _unfolded_bias(model: Model, layer: _Layer, name: str) -> F32:
    if name not in layer.vectors:
        return model.tensor(f"layers.{layer.index}.{name}")
    by = rows(model.decoder, name.removesuffix(".bias"), layer.columns) if layer.settled else None
    return layer.vectors[name] if by is None else layer.vectors[name] / by


def _moments(inputs: F32) -> F64:
    """Sum of ``x x'`` over the rows x, [K, K]."""
    total = np.zeros((inputs.shape[1], inputs.shape[1]))
    for at in range(0, len(inputs), ROWS):
        part = inputs[at : at + ROWS]
        total += part.T @ part
    return total


def _empty(made: QuantizedTensor) -> "np.ndarray[tuple[int, int], np.dtype[np.bool_]]":
    """Groups of zeros alone, [N, G]: their scale says nothing."""
    zeros = made.zeros[:, :, None]
    fill = zeros * np.uint8(17) if made.format.bits == 4 else zeros
    empty: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = (made.codes == fill).all(axis=2)
    return empty


def _reach(made: QuantizedTensor) -> tuple[F32, F32]:
    """The least and the greatest power of two, [N], that each row may be divided by, its scales staying within the format."""
    scales, empty = made.scales.astype(np.float32), _empty(made)
    low = np.where(empty, np.inf, scales).min(axis=1)
    high = np.where(empty, 0, scales).max(axis=1)
    with np.errstate(divide="ignore"):
        most = np.exp2(np.clip(np.floor(np.log2(low / SMALLEST)), 0, 30))
        least = np.exp2(np.clip(np.ceil(np.log2(high / GRIDS[made.format.bits].largest)), -30, 0))
    return least.astype(np.float32), most.astype(np.float32)


def _times(made: QuantizedTensor, by: F32) -> QuantizedTensor:
    """Rows times powers of two within ``_reach``: the codes stay."""
    scales = np.where(_empty(made), made.scales, made.scales.astype(np.float32) * by[:, None])
    return replace(made, scales=scales.astype(np.float16))

"""Quantizing by what the weights will meet: one pass of text through the reference decoder, each matrix settled as its turn comes.

A matrix is rounded (``quant/gptq.py``) for the inputs that the layers before it give *as quantized*, so that later ones can make up for
earlier ones. What comes out is portable INT4 like any other and goes, block by block, into a store from which every export reads it; a
calibration that is broken off goes on from there. In memory at a time: the activations, one matrix and the moments of its inputs.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import OutputError, UsageError
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant import concatenate, dequantize, quantize
from edgekit.quant.gptq import quantize_for
from edgekit.quant.scheme import QuantizedTensor, QuantScheme
from edgekit.quantized import Kept, Matrix, cuts, load_block, matrices, store_block
from edgekit.reference import reference_logits_many

F32 = NDArray[np.float32]
VERSION = 1
"""Of the method: raised by whoever changes what it gives, or kept blocks would be taken for new."""
LENGTH, SEQUENCES = 512, 64
"""Tokens of a sequence, and sequences at most: 32,768 tokens."""
ROWS = 4096
"""Inputs whose moments are summed in float32 before they are added up in float64."""


def calibration_tokens(ids: Sequence[int], bos: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """``ids`` cut into sequences of ``length`` tokens, ``bos`` first; the remainder is left out. Raises UsageError for too short a text."""
    step = min(LENGTH, length) - len(bos)
    found = [(*bos, *ids[at : at + step]) for at in range(0, len(ids) - step + 1, step)][:SEQUENCES]
    if not found:
        raise UsageError(f"the calibration text has {len(ids)} tokens; a sequence takes {step}: give a longer text (10,000 tokens or more)")
    return found


def method(sequences: Sequence[Sequence[int]]) -> str:
    """Names everything that a calibrated weight depends on beside the checkpoint and its format."""
    return "gptq " + hashlib.sha256(json.dumps([VERSION, [list(s) for s in sequences]]).encode()).hexdigest()


def calibrate(model: Model, scheme: QuantScheme, sequences: Sequence[Sequence[int]], store: Kept, progress: Progress) -> None:
    """Fills ``store`` with every 4-bit matrix of ``model``, calibrated on ``sequences``. What it holds already is not computed again.

    Raises CheckpointError; OutputError when a block cannot be kept.
    """
    every = {m.weight: m for m in matrices(model, scheme)}
    wanted = {name: m for name, m in every.items() if m.format.bits == 4}
    missing = {name for name, m in wanted.items() if _load(model, m, store) is None}
    moments: dict[str, NDArray[np.float64]] = {}
    last: list[F32] = []
    done = 0

    def seen(name: str, inputs: F32) -> None:
        if name not in missing:
            return
        if not (last and last[0] is inputs):  # q, k and v meet the same ones, and so do gate and up
            moments["last"], last[:] = _moments(inputs), [inputs]
        moments[name] = moments["last"]

    def tensor(name: str) -> F32:
        nonlocal done
        if name not in wanted:
            weight = model.tensor(name)
            return dequantize(quantize(weight, every[name].format, name=name)) if name in every else weight
        m = wanted[name]
        made = None if name in missing else _load(model, m, store)
        if made is None:
            made = quantize_for(model.tensor(name), moments.pop(name), m.format)
            _keep(model, m, made, store)
        done += 1
        progress("calibrate", done, len(wanted))
        return dequantize(made)

    if missing:
        reference_logits_many(model.decoder, tensor, sequences, last=1, seen=seen)


def _moments(inputs: F32) -> NDArray[np.float64]:
    """Sum of ``x x'`` over the rows x, [K, K]."""
    total = np.zeros((inputs.shape[1], inputs.shape[1]))
    for at in range(0, len(inputs), ROWS):
        part = inputs[at : at + ROWS]
        total += part.T @ part
    return total


def _load(model: Model, m: Matrix, store: Kept) -> QuantizedTensor | None:
    parts = [load_block(model, m, start, stop, store) for start, stop in cuts(m.shape)]
    held = [part for part in parts if part is not None]
    return concatenate(held) if len(held) == len(parts) else None


def _keep(model: Model, m: Matrix, made: QuantizedTensor, store: Kept) -> None:
    for start, stop in cuts(m.shape):
        part = QuantizedTensor(
            (stop - start, m.shape[1]), m.format, made.codes[start:stop], made.scales[start:stop], made.zeros[start:stop]
        )
        store_block(model, m, start, stop, part, store)
        if load_block(model, m, start, stop, store) is None:
            raise OutputError(f"calibrated weights cannot be kept in {store.cache.directory}: free space there, or set EDGEKIT_CACHE")

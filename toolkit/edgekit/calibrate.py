"""Quantizing by what the weights will meet: one pass of text through the reference decoder, each matrix settled as its turn comes.

A matrix is rounded (``quant/gptq.py``) for the inputs that the layers before it give *as quantized*, so that later ones can make up for
earlier ones. What comes out is portable INT4 like any other and goes, block by block, into a store from which every export reads it; a
calibration that is broken off goes on from there. In memory at a time: the activations, one matrix and the moments of its inputs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit import cache as kept
from edgekit.cache import Cache, SourceFile
from edgekit.errors import OutputError, UsageError
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant import concatenate, dequantize, quantize
from edgekit.quant.gptq import quantize_for
from edgekit.quant.scheme import Format, QuantizedTensor, QuantScheme
from edgekit.quantized import Kept, cuts, load_block, rows_of, store_block
from edgekit.reference import reference_logits_many

F32 = NDArray[np.float32]
VERSION = 1
"""Of the method: raised by whoever changes what it gives, or kept blocks would be taken for new."""
LENGTH, SEQUENCES = 512, 64
"""Tokens of a sequence, and sequences at most: 32,768 tokens."""
ROWS = 4096
"""Inputs whose moments are summed in float32 before they are added up in float64."""


@dataclass(frozen=True)
class _Work:
    model: Model
    scheme: QuantScheme
    store: Kept


def calibration_tokens(ids: Sequence[int], bos: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """``ids`` cut into sequences of ``length`` tokens, ``bos`` first; the remainder is left out. Raises UsageError for too short a text."""
    step = min(LENGTH, length) - len(bos)
    found = [(*bos, *ids[at : at + step]) for at in range(0, len(ids) - step + 1, step)][:SEQUENCES]
    if not found:
        raise UsageError(f"the calibration text has {len(ids)} tokens; a sequence takes {step}: give a longer text (10,000 tokens or more)")
    return found


def digest(sequences: Sequence[Sequence[int]]) -> str:
    """Of everything a calibrated weight depends on beside the checkpoint and its format."""
    return hashlib.sha256(json.dumps(["gptq", VERSION, [list(s) for s in sequences]]).encode()).hexdigest()


def calibrate(
    model: Model,
    scheme: QuantScheme,
    sequences: Sequence[Sequence[int]],
    cache: Cache,
    sources: Mapping[Path, SourceFile],
    progress: Progress,
) -> Kept:
    """Fills ``cache`` with every 4-bit matrix of ``model``, calibrated on ``sequences``, and says how its blocks are found there.

    What is there already is not computed again. Raises CheckpointError; OutputError when a block cannot be kept.
    """
    names = [name for name, shape in model.decoder.weight_shapes().items() if len(shape) == 2 and scheme.format_of(name).bits == 4]
    work = _Work(model, scheme, Kept(cache, sources, digest(sequences)))
    ready = {name for name in names if _load(work, name) is not None}
    moments: dict[str, NDArray[np.float64]] = {}
    last: list[F32] = []
    done = 0

    def seen(name: str, inputs: F32) -> None:
        if name in ready or name not in names:
            return
        if not (last and last[0] is inputs):  # q, k and v meet the same ones, and so do gate and up
            moments.clear()
            moments["last"] = _moments(inputs)
            last[:] = [inputs]
        moments[name] = moments["last"]

    def tensor(name: str) -> F32:
        nonlocal done
        shape = model.decoder.weight_shapes()[name]
        if len(shape) != 2:
            return model.tensor(name)
        if name not in names:
            return dequantize(quantize(model.tensor(name), scheme.format_of(name), name=name))
        found = _load(work, name) if name in ready else None
        if found is None:
            found = quantize_for(model.tensor(name), moments.pop(name), scheme.format_of(name))
            _keep(work, name, found)
        done += 1
        progress("calibrate", min(done, len(names)), len(names))
        return dequantize(found)

    reference_logits_many(model.decoder, tensor, sequences, last=1, seen=seen)
    return work.store


def _moments(inputs: F32) -> NDArray[np.float64]:
    """Sum of ``x x'`` over the rows x, [K, K]."""
    total = np.zeros((inputs.shape[1], inputs.shape[1]))
    for at in range(0, len(inputs), ROWS):
        part = inputs[at : at + ROWS]
        total += part.T @ part
    return total


def _format(work: _Work, name: str) -> tuple[tuple[int, int], Format]:
    n, k = work.model.decoder.weight_shapes()[name]
    return (n, k), work.scheme.format_of(name)


def _load(work: _Work, name: str) -> QuantizedTensor | None:
    shape, form = _format(work, name)
    parts = [load_block(work.model, name, form, start, stop, shape[1], work.store) for start, stop in cuts(shape)]
    held = [part for part in parts if part is not None]
    return concatenate(held) if len(held) == len(parts) else None


def _keep(work: _Work, name: str, made: QuantizedTensor) -> None:
    shape, form = _format(work, name)
    for start, stop in cuts(shape):
        store_block(work.model, name, start, stop, rows_of(made, start, stop), work.store)
        if load_block(work.model, name, form, start, stop, shape[1], work.store) is None:
            raise OutputError(f"calibrated weights cannot be kept in {work.store.cache.directory}: free space there, or set EDGEKIT_CACHE")

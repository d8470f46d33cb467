"""Quantized weights in blocks of rows, from the cache or from the checkpoint: what every exporter lays out in its own file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from edgekit import cache as kept
from edgekit.cache import Cache, SourceFile
from edgekit.errors import CheckpointError
from edgekit.models import Model
from edgekit.parallel import in_threads
from edgekit.quant import VERSION, quantize
from edgekit.quant.scheme import Format, QuantizedTensor

BLOCK = 1 << 21
"""Weights a thread reads, quantizes and writes at a time: 8 MB in float32, 1 MB as INT4. A cached block is as large."""


@dataclass(frozen=True)
class Quantizer:
    """How weights are quantized. threads: None takes every core. cache: None keeps nothing.

    sources: the checkpoint files with their digests; a cache needs those of all files that are read.
    search: look for better scales than min/max (``quant.quantize``).
    """

    threads: int | None = None
    cache: Cache | None = None
    sources: Mapping[Path, SourceFile] = field(default_factory=dict)
    search: bool = True


PLAIN = Quantizer()
"""Every core, no cache."""


class Wanted(Protocol):
    """A canonical weight [N, K] and the format it is wanted in."""

    @property
    def weight(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def format(self) -> Format: ...


W = TypeVar("W", bound=Wanted)


def stream(
    model: Model, matrices: Sequence[W], take: Callable[[W, int, QuantizedTensor], int], quantizer: Quantizer, tell: Callable[[int], None]
) -> None:
    """Hands every row of ``matrices`` to ``take``, quantized, in blocks; reading, quantizing and writing go on in all threads at once.

    A thread holds one block at a time, and no whole matrix is ever in memory. The blocks do not depend on the number of threads.
    take: gets a matrix, the first row of the block and the block, in any thread and any order; returns the bytes it wrote.
    tell: gets these bytes in the calling thread. Raises CheckpointError, and what ``take`` and ``tell`` raise.
    """

    def work(job: tuple[W, int, int]) -> Iterator[int]:
        m, start, stop = job
        yield take(m, start, block(model, m, start, stop, quantizer))

    in_threads(work, [(m, start, stop) for m in matrices for start, stop in cuts(m.shape)], quantizer.threads, tell)


def cuts(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The rows of each block of a matrix [N, K]."""
    n, k = shape
    rows = max(1, BLOCK // k)
    for start in range(0, n, rows):
        yield start, min(start + rows, n)


def block(model: Model, m: Wanted, start: int, stop: int, quantizer: Quantizer) -> QuantizedTensor:
    """Rows ``start`` to ``stop`` of a matrix, quantized in this thread or taken from the cache. Raises CheckpointError."""
    if quantizer.cache is None:
        return _fresh(model, m, start, stop, quantizer)
    file, begin, end = model.place(m.weight, start, stop)
    source = quantizer.sources[file]
    searched = quantizer.search and m.format.bits == 4
    facts = (source.sha256, m.format.bits, m.format.group, searched, VERSION, *(("symmetric",) if m.format.symmetric else ()))
    group, name = kept.group_name(facts), f"{begin}-{end}"
    shape = (stop - start, m.shape[1])
    payload = kept.load(quantizer.cache, group, name, sum(_sizes(shape, m.format)))
    if payload is not None:
        return _unpack(payload, shape, m.format)
    made = _fresh(model, m, start, stop, quantizer)
    # Looked at after the rows were read: what is kept is surely of the file that was digested.
    if kept.stamp(file) != source.stamp:
        raise CheckpointError(f"{file} was changed while it was built from; wait until it is complete, then build again")
    about = {"model": model.checkpoint.source.name, "file": file.name, "format": f"INT{m.format.bits} g{m.format.group}"}
    kept.store(quantizer.cache, group, name, _pack(made), about)
    return made


def _fresh(model: Model, m: Wanted, start: int, stop: int, quantizer: Quantizer) -> QuantizedTensor:
    try:
        return quantize(model.stored(m.weight, start, stop), m.format, name=m.weight, search=quantizer.search, threads=1)
    except CheckpointError:
        model.rows(m.weight, start, stop)  # says which values of which file are not finite, if that is the reason
        raise


def _sizes(shape: tuple[int, int], form: Format) -> tuple[int, int, int]:
    """Bytes of codes, float16 scales and zero points."""
    groups = shape[0] * -(-shape[1] // form.group)
    return groups * form.group * form.bits // 8, groups * 2, groups


def _pack(t: QuantizedTensor) -> list[memoryview]:
    arrays = (t.codes, t.scales.astype("<f2", copy=False), t.zeros)
    return [memoryview(np.ascontiguousarray(a).reshape(-1).view(np.uint8)) for a in arrays]


def _unpack(payload: memoryview, shape: tuple[int, int], form: Format) -> QuantizedTensor:
    codes, scales, _ = _sizes(shape, form)
    groups = -(-shape[1] // form.group)
    return QuantizedTensor(
        shape,
        form,
        np.frombuffer(payload[:codes], np.uint8).reshape(shape[0], groups, -1),
        np.frombuffer(payload[codes : codes + scales], "<f2").astype(np.float16, copy=False).reshape(shape[0], groups),
        np.frombuffer(payload[codes + scales :], np.uint8).reshape(shape[0], groups),
    )

"""Quantized weights in blocks of rows, from the cache or from the checkpoint: what every exporter lays out in its own file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekit import cache as kept
from edgekit.cache import Cache, SourceFile
from edgekit.digest import Ledger
from edgekit.errors import CheckpointError, OutputError
from edgekit.models import Model
from edgekit.parallel import in_threads
from edgekit.quant import VERSION, dequantize, quantize
from edgekit.quant.scheme import Format, QuantizedTensor, QuantScheme

BLOCK = 1 << 21
"""Weights a thread reads, quantizes and writes at a time: 8 MB in float32, 1 MB as INT4. A cached block is as large."""


@dataclass(frozen=True)
class Kept:
    """Blocks in a cache. sources: the checkpoint files with their digests, all that are read. method: what made the blocks of it."""

    cache: Cache
    sources: Mapping[Path, SourceFile]
    method: str


@dataclass(frozen=True)
class Quantizer:
    """How weights are quantized. threads: None takes every core. cache: None keeps nothing.

    sources: the checkpoint files with their digests; a cache needs those of all files that are read.
    search: look for better scales than min/max (``quant.quantize``).
    calibrated: where the blocks of a calibration lie (``calibrate.py``), those of all layers; None quantizes by the weights alone.
    ledger: notes the digest of every block that is handed out; None digests nothing.
    """

    threads: int | None = None
    cache: Cache | None = None
    sources: Mapping[Path, SourceFile] = field(default_factory=dict)
    search: bool = True
    ledger: Ledger | None = None
    calibrated: Kept | None = None


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


@dataclass(frozen=True)
class Matrix:
    """A canonical weight that is ``Wanted``, and nothing of where it goes."""

    weight: str
    shape: tuple[int, int]
    format: Format


def matrices(model: Model, scheme: QuantScheme, exceptions: Mapping[str, Format] | None = None) -> list[Matrix]:
    """Every matrix of a model in the order of a forward pass, in the format of ``scheme`` or, by its name, of ``exceptions``."""
    shapes = {name: (shape[0], shape[1]) for name, shape in model.decoder.weight_shapes().items() if len(shape) == 2}
    return [Matrix(name, shape, (exceptions or {}).get(name) or scheme.format_for(name, shape[1])) for name, shape in shapes.items()]


def other_formats(model: Model, scheme: QuantScheme) -> dict[str, Format]:
    """The matrices of the layers that are not in the scheme's own format: exceptions, and those whose inputs its groups do not divide."""
    return {m.weight: m.format for m in matrices(model, scheme) if m.weight.startswith("layers.") and m.format != scheme.linear}


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
        made = block(model, m, start, stop, quantizer)
        if quantizer.ledger is not None:
            quantizer.ledger.note(m.weight, m.shape, start, made)
        yield take(m, start, made)

    in_threads(work, [(m, start, stop) for m in matrices for start, stop in cuts(m.shape)], quantizer.threads, tell)


def cuts(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The rows of each block of a matrix [N, K]."""
    n, k = shape
    rows = max(1, BLOCK // k)
    for start in range(0, n, rows):
        yield start, min(start + rows, n)


def block(model: Model, m: Wanted, start: int, stop: int, quantizer: Quantizer) -> QuantizedTensor:
    """Rows ``start`` to ``stop`` of a matrix: calibrated ones from their store; else from the cache, or quantized in this thread.

    Raises CheckpointError; OutputError where a calibrated block is not in its store any more.
    """
    if quantizer.calibrated is not None and m.weight.startswith("layers."):
        found = load_block(model, m, start, stop, quantizer.calibrated)
        if found is None:
            place = quantizer.calibrated.cache.directory
            raise OutputError(f"calibrated weights of {m.weight} have gone from {place} since they were made; build again")
        return found
    if quantizer.cache is None:
        return _fresh(model, m, start, stop, quantizer)
    how = "search" if quantizer.search and m.format.bits == 4 else "min/max"
    store = Kept(quantizer.cache, quantizer.sources, how + model.folded.digest(m.weight))
    found = load_block(model, m, start, stop, store)
    if found is None:
        found = _fresh(model, m, start, stop, quantizer)
        store_block(model, m, start, stop, found, store)
    return found


def dequantizer(model: Model, scheme: QuantScheme, quantizer: Quantizer) -> Callable[[str], NDArray[np.float32]]:
    """Gives any weight of the quantized model by its canonical name: matrices dequantized, all else as it is."""
    stored = {m.weight: m for m in matrices(model, scheme)}
    return lambda name: dequantized(model, stored[name], quantizer) if name in stored else model.tensor(name)


def dequantized(model: Model, m: Matrix, quantizer: Quantizer) -> NDArray[np.float32]:
    """A whole quantized weight as float32 [N, K]; a thread dequantizes a block of rows at a time."""
    whole = np.empty(m.shape, np.float32)

    def work(job: tuple[int, int]) -> Iterator[None]:
        start, stop = job
        whole[start:stop] = dequantize(block(model, m, start, stop, quantizer))
        yield

    in_threads(work, list(cuts(m.shape)), quantizer.threads, lambda _: None)
    return whole


def load_block(model: Model, m: Wanted, start: int, stop: int, store: Kept) -> QuantizedTensor | None:
    """These rows as ``store`` holds them, or None."""
    _, group, name = _place(model, m, start, stop, store)
    shape = (stop - start, m.shape[1])
    payload = kept.load(store.cache, group, name, sum(_sizes(shape, m.format)))
    return None if payload is None else _unpack(payload, shape, m.format)


def store_block(model: Model, m: Wanted, start: int, stop: int, made: QuantizedTensor, store: Kept) -> None:
    """Keeps quantized rows, unless the store takes nothing more. Raises CheckpointError when their file was changed meanwhile."""
    file, group, name = _place(model, m, start, stop, store)
    check_unchanged(file, store.sources)
    about = {"model": model.checkpoint.source.name, "file": file.name, "format": f"INT{m.format.bits} g{m.format.group}"}
    kept.store(store.cache, group, name, _pack(made), about)


def check_unchanged(file: Path, sources: Mapping[Path, SourceFile]) -> None:
    """Asked after it was read: what is then kept is surely of the file that was digested. Raises CheckpointError."""
    if kept.stamp(file) != sources[file].stamp:
        raise CheckpointError(f"{file} was changed while it was built from; wait until it is complete, then build again")


def _place(model: Model, m: Wanted, start: int, stop: int, store: Kept) -> tuple[Path, str, str]:
    """The checkpoint file of these rows, and the group and name of their block."""
    file, begin, end = model.place(m.weight, start, stop)
    kind = ("symmetric",) if m.format.symmetric else ()
    facts = (store.sources[file].sha256, m.format.bits, m.format.group, store.method, VERSION, *kind)
    return file, kept.group_name(facts), f"{begin}-{end}"


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

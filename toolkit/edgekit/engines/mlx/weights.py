"""``model*.safetensors``: names, shapes and offsets are settled from the shapes alone; then each weight is quantized and written in place.

Portable INT4 codes are MLX's own bytes (uint32 [N, K / 8], low nibble first); scales are copied and biases are ``-z * s``. Nothing but a
block of rows for each thread is ever in memory, and MLX is not needed. The bytes depend on the weights only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgekit.errors import CheckpointError, TargetError
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant.scheme import Format, QuantizedTensor, QuantScheme
from edgekit.quantized import PLAIN, Quantizer, stream

SHARD = 5 << 30
"""Bytes of a file, as mlx_lm.convert cuts them; a larger tensor has a file of its own."""
INDEX = "model.safetensors.index.json"
DTYPES: dict[str, np.dtype[Any]] = {"U32": np.dtype("<u4"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
"""safetensors' name of each type in a file. The wider come first in a file, so that every tensor is aligned to its type."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file; ``begin`` is where its bytes lie there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str = ""
    begin: int = 0

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class MatrixWrite:
    """A canonical weight whose rows begin at row ``start`` of the (maybe fused) tensors ``codes``, ``scales`` and ``biases``."""

    weight: str
    shape: tuple[int, int]
    format: Format
    start: int
    codes: str
    scales: str
    biases: str


@dataclass(frozen=True)
class VectorWrite:
    """A canonical weight of one dimension: row ``start`` and on of ``tensor``."""

    weight: str
    start: int
    tensor: str


@dataclass(frozen=True)
class Layout:
    """Every file as planned. headers: file -> the bytes before its tensors. formats: module, as MLX names it -> how it is stored."""

    entries: Mapping[str, Entry]
    headers: Mapping[str, bytes]
    matrices: Sequence[MatrixWrite]
    vectors: Sequence[VectorWrite]
    formats: Mapping[str, Format]

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(map(len, self.headers.values())) + sum(entry.bytes for entry in self.entries.values())

    @property
    def bits_per_weight(self) -> float:
        """Storage of all matrices over their number of weights; a matrix stored once for two uses counts once."""
        stored = {name for m in self.matrices for name in (m.codes, m.scales, m.biases)}
        return 8 * sum(self.entries[name].bytes for name in stored) / sum(m.shape[0] * m.shape[1] for m in self.matrices)


def scale_type(weight: str, form: Format, precision: str) -> str:
    """The type of a matrix's scales and biases: ``F16`` or ``F32``.

    ``-z * s`` of INT4 is exact in float16; of INT8 it has up to 19 bits and is exact in float32. MLX computes a product in the wider of
    its types, so an lm_head with float32 scales is exact and only makes the logits float32. What an embedding is stored in, though,
    becomes the type of all activations: with float16 ones its INT8 biases are rounded to the nearest float16.
    """
    return "F16" if precision == "float16" and (form.bits == 4 or weight == "embed_tokens") else "F32"


def plan(model: Model, scheme: QuantScheme, precision: str, where: str) -> Layout:
    """The tensors under mlx-lm's names, which are those of the checkpoint: fused ones stay fused. ``where`` is for messages.

    Raises TargetError for a matrix whose inputs are no multiple of its group, or whose fused parts have several formats.
    """
    shapes = model.decoder.weight_shapes()
    rows: dict[str, int] = {}
    for name in shapes:
        rows[model.slices[name].tensor] = max(rows.get(model.slices[name].tensor, 0), model.slices[name].stop)
    matrices, vectors, formats = list[MatrixWrite](), list[VectorWrite](), dict[str, Format]()
    entries: dict[str, Entry] = {}
    for name, shape in shapes.items():
        at = model.slices[name]
        if len(shape) == 1:
            vectors.append(VectorWrite(name, at.start, at.tensor))
            entries[at.tensor] = Entry(at.tensor, "F16" if precision == "float16" else "F32", (rows[at.tensor],))
            continue
        form, module = scheme.format_for(name, shape[1]), at.tensor.removesuffix(".weight")
        if shape[1] % form.group:  # then no smaller group does either
            raise TargetError(
                f"{where}: MLX needs the inputs of a matrix to fill its groups; {name} has {shape[1]}, no multiple of {form.group}: "
                "build this model for a target with another engine (edge targets)"
            )
        if formats.setdefault(module, form) != form:
            raise TargetError(f"{where}: {name} is part of {at.tensor}, whose parts have several formats; MLX holds one a tensor")
        codes, scales, biases = (f"{module}.{part}" for part in ("weight", "scales", "biases"))
        matrices.append(MatrixWrite(name, (shape[0], shape[1]), form, at.start, codes, scales, biases))
        floats, groups = scale_type(name, form, precision), shape[1] // form.group
        entries[codes] = Entry(codes, "U32", (rows[at.tensor], shape[1] * form.bits // 32))
        entries |= {part: Entry(part, floats, (rows[at.tensor], groups)) for part in (scales, biases)}
    placed, headers = _place(list(entries.values()))
    return Layout(placed, headers, matrices, vectors, formats)


def _place(entries: Sequence[Entry]) -> tuple[dict[str, Entry], dict[str, bytes]]:
    """Cuts the tensors into files in their order, then lays out each file: wider types first, then by name."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.bytes > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.bytes
    placed: dict[str, Entry] = {}
    headers: dict[str, bytes] = {}
    for i, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        ordered = sorted(shard, key=lambda e: (-DTYPES[e.dtype].itemsize, e.name))
        headers[file] = header = _header(ordered)
        at = len(header)
        for entry in ordered:
            placed[entry.name] = Entry(entry.name, entry.dtype, entry.shape, file, at)
            at += entry.bytes
    return placed, headers


def _header(entries: Sequence[Entry]) -> bytes:
    """What a safetensors file begins with: the length of the JSON in 8 bytes, the JSON, spaces up to a multiple of 8."""
    listed: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    at = 0
    for entry in entries:
        listed[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (at, at + entry.bytes)}
        at += entry.bytes
    text = json.dumps(listed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(layout: Layout, model: Model, directory: Path, progress: Progress, quantizer: Quantizer = PLAIN) -> None:
    """Writes the planned files and their index. Progress counts bytes as stage ``quantize``. Raises CheckpointError from reading the
    weights, and for one that does not fit the files' float type."""
    done, total = 0, layout.size
    for file, header in layout.headers.items():
        with (directory / file).open("wb") as new:
            new.write(header)
            new.truncate(len(header) + sum(e.bytes for e in layout.entries.values() if e.file == file))
        done += len(header)
    for v in layout.vectors:
        entry = layout.entries[v.tensor]
        with (directory / entry.file).open("r+b") as out:
            done += put(out, entry, v.start, as_floats(model.tensor(v.weight), DTYPES[entry.dtype], v.weight))

    def take(m: MatrixWrite, start: int, block: QuantizedTensor) -> int:
        return sum(_put_rows(layout, directory, name, m.start + start, array) for name, array in _parts(layout, m, block))

    def tell(size: int) -> None:
        nonlocal done
        done += size
        progress("quantize", done, total)

    stream(model, layout.matrices, take, quantizer, tell)
    progress("quantize", total, total)
    index = {"metadata": {"total_size": sum(e.bytes for e in layout.entries.values())}}
    weight_map = {"weight_map": {name: layout.entries[name].file for name in sorted(layout.entries)}}
    (directory / INDEX).write_text(json.dumps(index | weight_map, indent=1) + "\n", encoding="utf-8", newline="\n")


def _parts(layout: Layout, m: MatrixWrite, block: QuantizedTensor) -> list[tuple[str, NDArray[np.generic]]]:
    """What each tensor gets of a block of rows."""
    floats = DTYPES[layout.entries[m.scales].dtype]
    codes = np.ascontiguousarray(block.codes).reshape(len(block.codes), -1).view("<u4")
    return [(m.codes, codes), (m.scales, block.scales.astype(floats)), (m.biases, biases(block, floats))]


def biases(block: QuantizedTensor, floats: DTypeLike) -> NDArray[np.generic]:
    """``-z * s``, [N, G]: computed in float32, where it is exact, then in ``floats``; float16 holds every INT4 one exactly and rounds
    an INT8 one by at most 1/8 of ``s``, so ``rint(-bias / s)`` is still the zero point."""
    exact = -block.zeros.astype(np.float32) * block.scales.astype(np.float32)
    rounded: NDArray[np.generic] = (exact + 0.0).astype(floats)  # + 0: no negative zero
    return rounded


def _put_rows(layout: Layout, directory: Path, name: str, start: int, array: NDArray[np.generic]) -> int:
    entry = layout.entries[name]
    with (directory / entry.file).open("r+b") as file:  # each thread its own position
        return put(file, entry, start, array)


def put(file: BinaryIO, entry: Entry, start: int, array: NDArray[np.generic]) -> int:
    """Writes rows of ``entry`` from row ``start`` on; returns the bytes written."""
    rows = int(entry.shape[0])
    file.seek(entry.begin + start * (entry.bytes // rows))
    file.write(np.ascontiguousarray(array.astype(DTYPES[entry.dtype], copy=False)).data)
    return array.nbytes


def as_floats(array: NDArray[np.float32], floats: DTypeLike, name: str) -> NDArray[np.generic]:
    """``array`` in the type of the file, rounded to the nearest. Raises CheckpointError for a value that would become infinite."""
    with np.errstate(over="ignore"):
        stored: NDArray[np.generic] = array.astype(floats)
    if not np.isfinite(stored).all():
        raise CheckpointError(
            f"{name} holds {np.abs(array).max():g}, which float16 (up to 65504) cannot; "
            'build for a target file with precision = "float32" in its [options]'
        )
    return stored

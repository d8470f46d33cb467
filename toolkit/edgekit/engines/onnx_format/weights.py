"""A data file beside an ONNX model: where each weight lies is settled from shapes alone; then each is read, quantized, written in place.

Nothing but a block of rows for each thread is ever in memory, whatever the size of the model. The bytes depend on the weights only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgekit.engines.onnx_format.proto import DataType, External, Value
from edgekit.errors import CheckpointError
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant import pack_zero_points
from edgekit.quant.rtn import SMALLEST
from edgekit.quant.scheme import Format, QuantizedTensor
from edgekit.quantized import PLAIN, Quantizer, stream

LARGE = 1 << 20
"""Bytes from which a tensor starts on a page, so that ONNX Runtime can map it; smaller ones are aligned to 64."""


@dataclass(frozen=True)
class MatrixWrite:
    """A canonical weight, quantized to ``format``; its rows begin at these offsets of the (maybe fused) codes, scales and zero points.
    groups: of a row in the file, those that ``matrix`` was asked to fill it up with among them."""

    weight: str
    shape: tuple[int, int]
    format: Format
    codes: int
    scales: int
    zeros: int
    groups: int


@dataclass(frozen=True)
class VectorWrite:
    """A canonical weight of one dimension, in the file's float type."""

    weight: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class TableWrite:
    """An array that is no weight, such as the rotary cosines; made when its turn comes."""

    make: Callable[[], NDArray[np.float32]]
    offset: int


@dataclass
class DataFile:
    """The file of this name as planned so far. floats: the type of scales, vectors and tables, which is that of the activations."""

    name: str
    floats: DataType = DataType.FLOAT
    size: int = 0
    matrices: list[MatrixWrite] = field(default_factory=list)
    vectors: list[VectorWrite] = field(default_factory=list)
    tables: list[TableWrite] = field(default_factory=list)
    initializers: list[Value] = field(default_factory=list)

    @property
    def bits_per_weight(self) -> float:
        """Storage of all matrices over their number of weights; a matrix stored once for two uses counts once."""
        bits = sum(8 * sum(group_bytes(m.groups, m.format, self.floats)) * m.shape[0] for m in self.matrices)
        return bits / sum(m.shape[0] * m.shape[1] for m in self.matrices)


@dataclass(frozen=True)
class Matrix:
    """The initializers of a quantized matrix [N, K]. codes: uint8 [N, G, bytes of a group]; scales: floats [N, G];
    zeros: uint8, [N, G] at 8 bits and two to a byte, low nibble first, [N, ceil(G / 2)] at 4."""

    shape: tuple[int, int]
    format: Format
    codes: Value
    scales: Value
    zeros: Value
    offset: int
    """Of the codes."""


def row_bytes(k: int, fmt: Format, floats: DataType) -> tuple[int, int, int]:
    """Bytes of one row's codes, scales and zero points."""
    return group_bytes(-(-k // fmt.group), fmt, floats)


def group_bytes(groups: int, fmt: Format, floats: DataType) -> tuple[int, int, int]:
    """Bytes of so many groups' codes, scales and zero points, side by side in a row."""
    return groups * fmt.group * fmt.bits // 8, groups * floats.itemsize, -(-groups * fmt.bits // 8)


def reserve(data: DataFile, size: int) -> int:
    """The offset of ``size`` new bytes at the end of the file."""
    alignment = 4096 if size >= LARGE else 64
    offset = -(-data.size // alignment) * alignment
    data.size = offset + size
    return offset


def initializer(data: DataFile, name: str, dtype: DataType, shape: Sequence[int], offset: int) -> Value:
    """An initializer whose bytes lie in the data file at ``offset``."""
    value = Value(name, dtype, tuple(shape), External(data.name, offset, int(np.prod(shape)) * dtype.itemsize))
    data.initializers.append(value)
    return value


def matrix(data: DataFile, name: str, parts: Sequence[tuple[str, tuple[int, int]]], fmt: Format, *, filling: int = 0) -> Matrix:
    """Plans a quantized matrix whose rows are those of ``parts`` (canonical names and shapes), one after the other. filling: so many
    groups of zeros follow in each row, for a kernel that asks for them."""
    k = parts[0][1][1]
    n = sum(shape[0] for _, shape in parts)
    groups = -(-k // fmt.group) + filling
    sizes = group_bytes(groups, fmt, data.floats)
    offsets = [reserve(data, n * size) for size in sizes]
    row = 0
    for weight, shape in parts:
        codes, scales, zeros = (offset + row * size for offset, size in zip(offsets, sizes, strict=True))
        data.matrices.append(MatrixWrite(weight, shape, fmt, codes, scales, zeros, groups))
        row += shape[0]
    return Matrix(
        (n, k),
        fmt,
        initializer(data, f"{name}.codes", DataType.UINT8, (n, groups, sizes[0] // groups), offsets[0]),
        initializer(data, f"{name}.scales", data.floats, (n, groups), offsets[1]),
        initializer(data, f"{name}.zeros", DataType.UINT8, (n, sizes[2]), offsets[2]),
        offsets[0],
    )


def vector(data: DataFile, name: str, parts: Sequence[tuple[str, tuple[int, ...]]]) -> Value:
    """Plans a vector that joins ``parts`` (canonical names and shapes)."""
    length = sum(shape[0] for _, shape in parts)
    width = data.floats.itemsize
    start = offset = reserve(data, width * length)
    for weight, shape in parts:
        data.vectors.append(VectorWrite(weight, shape, offset))
        offset += width * shape[0]
    return initializer(data, name, data.floats, (length,), start)


def table(data: DataFile, name: str, shape: tuple[int, ...], make: Callable[[], NDArray[np.float32]]) -> Value:
    """Plans the array of this ``shape`` that ``make`` returns."""
    offset = reserve(data, data.floats.itemsize * int(np.prod(shape)))
    data.tables.append(TableWrite(make, offset))
    return initializer(data, name, data.floats, shape, offset)


def write(data: DataFile, model: Model, directory: Path, progress: Progress, quantizer: Quantizer = PLAIN) -> None:
    """Writes the planned file. Progress counts its bytes as stage ``quantize``. Raises CheckpointError from reading the weights, and for
    one that does not fit the file's float type."""
    path, done = directory / data.name, 0
    with path.open("wb") as file:
        file.truncate(data.size)
        for t in data.tables:
            done += put(file, t.offset, as_floats(t.make(), data.floats, "the rotary tables"))
        for v in data.vectors:
            done += put(file, v.offset, as_floats(model.tensor(v.weight), data.floats, v.weight))

    def take(m: MatrixWrite, start: int, block: QuantizedTensor) -> int:
        with path.open("r+b") as file:  # each thread its own position
            return put_rows(file, m, start, block, data.floats)

    def tell(size: int) -> None:
        nonlocal done
        done += size
        progress("quantize", done, data.size)

    stream(model, data.matrices, take, quantizer, tell)
    progress("quantize", data.size, data.size)


def as_floats(array: NDArray[np.float32], floats: DataType, name: str) -> NDArray[np.generic]:
    """``array`` in the type of the file. Float16 rounds to the nearest: exact for a bf16 value from 2**-14 to 65504, else within
    2**-11 of it or, below 2**-14, within 2**-25. Raises CheckpointError for one beyond 65504, which would become infinite.
    """
    with np.errstate(over="ignore"):
        stored: NDArray[np.generic] = array.astype(floats.numpy)
    if not np.isfinite(stored).all():
        raise CheckpointError(
            f"{name} holds {np.abs(array).max():g}, which float16 (up to 65504) cannot; "
            'build for a target with precision = "float32", such as cpu'
        )
    return stored


def put_rows(file: BinaryIO, m: MatrixWrite, start: int, block: QuantizedTensor, floats: DataType) -> int:
    """Writes quantized rows from row ``start`` of ``m`` on; returns the bytes written."""
    codes, scales, zeros = group_bytes(m.groups, m.format, floats)
    block = filled_up(block, m.groups)
    size = put(file, m.codes + start * codes, block.codes)
    # The kernels take scales of the activations' type. The portable ones are float16, which float32 holds exactly.
    size += put(file, m.scales + start * scales, block.scales.astype(floats.numpy))
    return size + put(file, m.zeros + start * zeros, block.zeros if m.format.bits == 8 else pack_zero_points(block.zeros))


def filled_up(block: QuantizedTensor, groups: int) -> QuantizedTensor:
    """Rows of so many groups, the new ones as quantizing gives them for zeros: code and zero point 0, the smallest scale."""
    n, found = block.zeros.shape
    if found == groups:
        return block
    more = groups - found
    return QuantizedTensor(
        (n, groups * block.format.group),
        block.format,
        np.pad(block.codes, ((0, 0), (0, more), (0, 0))),
        np.pad(block.scales, ((0, 0), (0, more)), constant_values=SMALLEST),
        np.pad(block.zeros, ((0, 0), (0, more))),
    )


def put(file: BinaryIO, offset: int, array: NDArray[np.generic]) -> int:
    file.seek(offset)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    file.write(np.ascontiguousarray(little).data)
    return array.nbytes

"""``openvino_model.bin``: where every weight lies is settled from the shapes alone; then each is read, quantized and written in place.

Nothing but a block of rows for each thread is ever in memory, whatever the size of the model. The bytes depend on the weights only.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant import pack_nibbles
from edgekit.quant.scheme import Format, QuantizedTensor
from edgekit.quantized import PLAIN, Quantizer, stream

LARGE = 1 << 20
"""Bytes from which a tensor starts on a page, so that OpenVINO can use it mapped; smaller ones are aligned to 64."""


@dataclass(frozen=True)
class MatrixWrite:
    """A canonical weight, quantized to ``format``, from row ``row`` on of a (maybe fused) matrix whose codes, scales and zero points
    begin at these offsets; ``zeros`` is None where all are 8 and none is stored."""

    weight: str
    shape: tuple[int, int]
    format: Format
    row: int
    codes: int
    scales: int
    zeros: int | None


@dataclass(frozen=True)
class VectorWrite:
    """A canonical weight of one dimension, float32."""

    weight: str
    shape: tuple[int, ...]
    offset: int


@dataclass
class DataFile:
    """The part of the file that holds weights, as planned so far; offsets count from its own beginning."""

    size: int = 0
    matrices: list[MatrixWrite] = field(default_factory=list)
    vectors: list[VectorWrite] = field(default_factory=list)

    @property
    def bits_per_weight(self) -> float:
        """Storage of all matrices over their number of weights; a matrix stored once for two uses counts once."""
        bits = sum(8 * sum(sizes(m.shape, m.format, signed=m.zeros is None)) for m in self.matrices)
        return bits / sum(m.shape[0] * m.shape[1] for m in self.matrices)


def sizes(shape: tuple[int, int], fmt: Format, *, signed: bool) -> tuple[int, int, int]:
    """Bytes of codes, float16 scales and zero points. 4-bit zero points fill bytes across the rows, low nibble first."""
    groups = shape[0] * -(-shape[1] // fmt.group)
    return groups * fmt.group * fmt.bits // 8, 2 * groups, 0 if signed else -(-groups * fmt.bits // 8)


def reserve(data: DataFile, size: int) -> int:
    """The offset of ``size`` new bytes at the end of the file."""
    alignment = 4096 if size >= LARGE else 64
    offset = -(-data.size // alignment) * alignment
    data.size = offset + size
    return offset


def matrix(data: DataFile, parts: Sequence[tuple[str, tuple[int, int]]], fmt: Format, *, signed: bool) -> tuple[int, int, int | None]:
    """Plans a quantized matrix whose rows are those of ``parts`` (canonical names and shapes), one after the other.

    signed: 4-bit codes are stored as ``q - 8`` and no zero points are: for weights whose zero points are all 8.
    Returns the offsets of codes, scales and zero points.
    """
    shape = (sum(part[0] for _, part in parts), parts[0][1][1])
    codes, scales, zeros = (reserve(data, size) for size in sizes(shape, fmt, signed=signed))
    row = 0
    for weight, part in parts:
        data.matrices.append(MatrixWrite(weight, part, fmt, row, codes, scales, None if signed else zeros))
        row += part[0]
    return codes, scales, None if signed else zeros


def vector(data: DataFile, parts: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """Plans a vector that joins ``parts`` (canonical names and shapes) and returns its offset."""
    start = offset = reserve(data, 4 * sum(shape[0] for _, shape in parts))
    for weight, shape in parts:
        data.vectors.append(VectorWrite(weight, shape, offset))
        offset += 4 * shape[0]
    return start


def write(data: DataFile, model: Model, path: Path, head: bytes, base: int, progress: Progress, quantizer: Quantizer = PLAIN) -> None:
    """Writes the planned file: ``head``, and the weights from offset ``base`` on. Progress counts its bytes as stage ``quantize``.
    Raises CheckpointError from reading the weights."""
    done, total = len(head), base + data.size
    with path.open("wb") as file:
        file.write(head)
        file.truncate(total)
        for v in data.vectors:
            done += put(file, base + v.offset, model.tensor(v.weight))
    shared = threading.Lock()

    def take(m: MatrixWrite, start: int, block: QuantizedTensor) -> int:
        with path.open("r+b") as file:  # each thread its own position
            return put_rows(file, base, m, start, block, shared)

    def tell(size: int) -> None:
        nonlocal done
        done += size
        progress("quantize", done, total)

    stream(model, data.matrices, take, quantizer, tell)
    progress("quantize", total, total)


def put_rows(file: BinaryIO, base: int, m: MatrixWrite, start: int, block: QuantizedTensor, shared: threading.Lock) -> int:
    """Writes quantized rows from row ``start`` of ``m`` on; returns the bytes written."""
    groups = block.zeros.shape[1]
    first = (m.row + start) * groups
    # Of a signed nibble q - 8 the two's complement is q with its highest bit flipped.
    codes = block.codes if m.zeros is not None else block.codes ^ np.uint8(0x88)
    size = put(file, base + m.codes + first * codes.shape[2], codes)
    size += put(file, base + m.scales + 2 * first, block.scales)
    if m.zeros is None:
        return size
    if m.format.bits == 8:
        return size + put(file, base + m.zeros + first, block.zeros)
    return size + put_nibbles(file, base + m.zeros, first, block.zeros.reshape(-1), shared)


def put_nibbles(file: BinaryIO, offset: int, first: int, values: NDArray[np.uint8], shared: threading.Lock) -> int:
    """Writes ``values`` (0..15) from nibble ``first`` after ``offset`` on. The bytes were 0. ``shared`` guards a byte that the block before
    or after has the other half of."""
    padded = np.zeros(first % 2 + values.size + (first + values.size) % 2, np.uint8)
    padded[first % 2 : first % 2 + values.size] = values
    packed, at = pack_nibbles(padded), offset + first // 2
    if padded.size == values.size:
        return put(file, at, packed)
    with shared:
        for end in {0, packed.size - 1}:
            file.seek(at + end)
            packed[end] |= file.read(1)[0]
        size = put(file, at, packed)
        file.flush()  # the next to read the shared byte has another file object
    return size


def put(file: BinaryIO, offset: int, array: NDArray[np.generic]) -> int:
    file.seek(offset)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    file.write(np.ascontiguousarray(little).data)
    return array.nbytes

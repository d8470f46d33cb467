"""Content-defined chunking: files are cut where their content says so, so equal content gives equal chunks wherever it lies.

After the idea of LBFS (Muthitacharoen et al. 2001): a cut follows wherever a hash of the last few bytes meets a condition. The hash is
a sum of odd multiples of the words in a window, which NumPy computes for all places at once. In large files only every eighth byte can be
a cut: what edgekit and the engines write there is aligned to eight bytes or more.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FINE = 4 << 20
"""Bytes: smaller files, such as graphs and JSON, may be cut at every byte."""

WINDOW = 8
_MULTIPLIERS = np.random.default_rng(20261121).integers(0, 1 << 63, WINDOW, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_BLOCK = 1 << 22  # units whose hashes are in memory at a time


@dataclass(frozen=True)
class Grain:
    """unit: bytes between places where a cut can be. least, usual, most: bytes of a chunk."""

    unit: int
    least: int
    usual: int
    most: int


SMALL, LARGE = Grain(1, 64, 256, 4096), Grain(8, 4096, 16384, 262144)


def content(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped, not read. Raises OSError."""
    if not path.stat().st_size:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, "r")


def chunks(data: NDArray[np.uint8], start: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """Offset, length and digest (16 bytes of BLAKE2b) of each chunk from ``start`` on; after any cut the rest of the cuts is the same."""
    grain = SMALL if len(data) < FINE else LARGE
    for cut in _cuts(data, start, grain):
        yield start, cut - start, hashlib.blake2b(data[start:cut], digest_size=16).digest()
        start = cut


def _cuts(data: NDArray[np.uint8], start: int, grain: Grain) -> Iterator[int]:
    last = start
    for place in _places(data, start, grain):
        while place - last > grain.most:
            last += grain.most
            yield last
        if place - last >= grain.least:
            last = place
            yield last
    while last < len(data):
        last = min(last + grain.most, len(data))
        yield last


def _places(data: NDArray[np.uint8], start: int, grain: Grain) -> Iterator[int]:
    """Where the condition is met, ``start`` itself excluded."""
    units = data[: len(data) // grain.unit * grain.unit].view(np.uint64 if grain.unit == 8 else np.uint8)
    mask = np.uint64((grain.usual // grain.unit - 1) << 40)  # of the better mixed, higher bits
    first = -(-start // grain.unit)
    begin, step = first, 1 << 12  # who asks often stops after the first few
    while begin < len(units) - WINDOW + 1:
        block = units[begin : begin + step + WINDOW - 1].astype(np.uint64)
        count = len(block) - WINDOW + 1
        sums = np.zeros(count, np.uint64)
        for i, multiplier in enumerate(_MULTIPLIERS):
            sums += block[i : i + count] * multiplier
        sums ^= sums >> np.uint64(29)
        sums *= _MULTIPLIERS[0]
        for place in np.flatnonzero(sums & mask == 0):
            yield int(begin + place + WINDOW) * grain.unit
        begin, step = begin + step, min(4 * step, _BLOCK)

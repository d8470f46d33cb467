"""Portable INT4 and its INT8 companion: matrices to codes, scales and zero points, and back (docs/portable-int4.md is the spec)."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import CheckpointError
from edgekit.parallel import cores
from edgekit.quant import native
from edgekit.quant.exact import reproduce
from edgekit.quant.pack import pack_nibbles, pack_zero_points, unpack_nibbles, unpack_zero_points
from edgekit.quant.rtn import F32, GRIDS, Block, block, min_max, steps
from edgekit.quant.scheme import GROUPS, SCHEMES, Format, QuantizedTensor, QuantScheme, scheme
from edgekit.quant.search import search as search_scales
from edgekit.quant.symmetric import symmetric as symmetric_scales

__all__ = [
    "GROUPS",
    "SCHEMES",
    "VERSION",
    "Format",
    "QuantScheme",
    "QuantizedTensor",
    "concatenate",
    "dequantize",
    "pack_nibbles",
    "pack_zero_points",
    "quantize",
    "scheme",
    "storage_bytes",
    "unpack_nibbles",
    "unpack_zero_points",
]

VERSION = 1
"""Of the codes, scales and zero points that a weight gets. Whoever changes any of them raises it, or the cache would give out old ones."""

CHUNK = 1 << 18
"""Weights a thread works on at a time: enough to outweigh NumPy's cost of a call, few enough to stay in cache (3 blocks of 1 MB)."""

Rows = Callable[[int, int], None]
Weight = NDArray[np.float32] | NDArray[np.uint16]
Arrays = tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]


def quantize(weight: Weight, format: Format, *, name: str, search: bool = True, threads: int | None = None) -> QuantizedTensor:
    """Quantize ``weight`` [N, K] to 4 or 8 bits in groups along K. ``name`` is the tensor's, for messages.

    weight: float32, or uint16 with the bits of bfloat16 (NumPy has no such type).

    4 bits: portable INT4, every weight ``(q - z) * s`` exact in float16. ``search`` (source: ``search.py``) looks for a scale and zero
    point with less squared error than min/max; no group ever gets a worse one.
    8 bits: plain min/max with any normal float16 scale; its weights need up to 19 bits, so they are NOT exact in float16.
    Symmetric 4 bits: every zero point is 8 (``symmetric.py``), and what is said of grids and min/max does not hold.
    Both: zeros stay exactly 0; a group that already lies on a 4-bit grid comes back with == (for 8 bits also on a grid of its own making);
    the error is at most half a scale within the grid's reach (``rtn.min_max`` states the bound).

    The same bytes for any number of threads (default: the cores this process may use), any machine, and any cut of the matrix along N.
    Compiled code (kernel.c) computes it where that was compiled, NumPy elsewhere, which beside weight and result takes about 4 MB a thread
    (18 where every group lies on several grids, as if all weights were equal).

    Raises CheckpointError where a weight is not finite or too large for a float16 grid (a group's range beyond about 65500), ValueError
    for a wrong dtype, rank or format.
    """
    _check(weight, format)
    (n, k), g = weight.shape, format.group
    groups = -(-k // g)
    codes = np.empty((n, groups, g * format.bits // 8), np.uint8)
    scales = np.empty((n, groups), np.float16)
    zeros = np.empty((n, groups), np.uint8)
    rows = max(1, CHUNK // (groups * g))
    kernel = None if format.symmetric else native.KERNEL  # which knows no symmetric form

    def numpy_worker() -> Rows:
        return _numpy_rows(weight, format, name, search, (codes, scales, zeros), min(rows, n))

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        if not native.run(cast(native.Kernel, kernel), weight[part], format, search, codes[part], scales[part], zeros[part]):
            numpy_worker()(start, stop)  # which says what is wrong
            raise AssertionError("the kernel refuses what NumPy takes")

    weight = cast(Weight, np.ascontiguousarray(weight))
    _over_rows(n, rows, (lambda: work) if kernel is not None else numpy_worker, threads)
    return QuantizedTensor((n, k), format, codes, scales, zeros)


def _numpy_rows(weight: Weight, format: Format, name: str, search: bool, out: Arrays, rows: int) -> Rows:
    """What quantizes up to ``rows`` rows of ``weight`` at a time into codes, scales and zero points, with memory of its own."""
    codes, scales, zeros = out
    g, groups, grid = format.group, zeros.shape[1], GRIDS[format.bits]
    store = np.empty((3, rows * groups * g), np.float32)

    def work(start: int, stop: int) -> None:
        width = (stop - start) * groups
        w, a, b = (part[: g * width].reshape(g, width) for part in store)
        _load_columns(widen(weight[start:stop]), w.reshape(g, stop - start, groups))
        piece = block(w, grid)
        scale, zero = _plain(piece, format, name)
        if format.symmetric:
            scale, zero = symmetric_scales(piece, (a, b), search=search)
        else:
            if search and format.bits == 4:
                scale, zero = search_scales(piece, (scale, zero), (a, b))
            reproduce(piece, scale, zero)
        r = steps(piece, scale, zero, a)
        codes[start:stop] = _codes(r, zero, format.bits, b).T.reshape(stop - start, groups, -1)
        scales[start:stop] = scale.reshape(stop - start, groups)
        zeros[start:stop] = zero.reshape(stop - start, groups)

    return work


def widen(weight: Weight) -> NDArray[np.float32]:
    """float32 of what is float32 or the bits of bfloat16, which are the upper half of a float32."""
    if weight.dtype != np.uint16:
        return cast(NDArray[np.float32], weight)
    bits = weight.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def dequantize(t: QuantizedTensor) -> NDArray[np.float32]:
    """float32 [N, K] of exactly ``(q - z) * s`` (at most 19 significant bits, so float32 rounds nothing)."""
    (n, k), g = t.shape, t.format.group
    groups = t.zeros.shape[1]
    out = np.empty((n, groups, g), np.float32)

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        q = unpack_nibbles(t.codes[part]) if t.format.bits == 4 else t.codes[part]
        np.subtract(q, t.zeros[part, :, None], out=out[part], dtype=np.float32)
        np.multiply(out[part], t.scales[part].astype(np.float32)[:, :, None], out=out[part])

    _over_rows(n, max(1, CHUNK // (groups * g)), lambda: work, None)
    flat = out.reshape(n, groups * g)
    return flat if flat.shape[1] == k else np.ascontiguousarray(flat[:, :k])


def concatenate(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """The parts stacked along N, as one tensor. Equal to quantizing the stacked weights: groups run along K.

    Raises ValueError where the parts differ in K or format, or there is none.
    """
    if not parts or len({(p.shape[1], p.format) for p in parts}) > 1:
        raise ValueError(f"cannot concatenate along N: {[(p.shape, p.format) for p in parts]}")
    return QuantizedTensor(
        (sum(p.shape[0] for p in parts), parts[0].shape[1]),
        parts[0].format,
        np.concatenate([p.codes for p in parts]),
        np.concatenate([p.scales for p in parts]),
        np.concatenate([p.zeros for p in parts]),
    )


def storage_bytes(t: QuantizedTensor) -> int:
    """Bytes that codes, scales and zero points take in a file (4-bit zero points two to a byte, each row starting a new one)."""
    n, groups = t.zeros.shape
    return int(t.codes.nbytes + t.scales.nbytes + n * -(-groups * t.format.bits // 8))


def _check(weight: Weight, format: Format) -> None:
    if weight.ndim != 2 or weight.dtype not in (np.float32, np.uint16) or 0 in weight.shape:
        raise ValueError(f"quantize takes a matrix of float32 or bfloat16's bits that is not empty, got {weight.dtype} {weight.shape}")
    if format.bits not in GRIDS or format.group not in GROUPS or (format.symmetric and format.bits != 4):
        raise ValueError(f"{format} is not known; bits: {', '.join(map(str, GRIDS))}, group: {', '.join(map(str, GROUPS))}")


def _plain(groups: Block, format: Format, name: str) -> tuple[F32, F32]:
    """Min/max's scale and zero point, or a CheckpointError where the weights have none."""
    if not (np.isfinite(groups.lo).all() and np.isfinite(groups.hi).all()):
        raise CheckpointError(f"tensor {name} holds NaN or infinity and cannot be quantized; get an intact checkpoint")
    with np.errstate(over="ignore"):
        scale, zero = min_max(groups)
    if (scale > groups.grid.largest).any():
        span = float(np.subtract(groups.hi, groups.lo, dtype=np.float64).max())
        reach = float(groups.grid.largest) * groups.grid.levels
        raise CheckpointError(
            f"tensor {name} is too large for INT{format.bits}: a group of it spans {span:.6g} and a float16 grid reaches {reach:g};"
            " check that the checkpoint is intact (weights of language models are far below 100)"
        )
    return scale, zero


def _load_columns(weight: F32, columns: F32) -> None:
    """Copy [rows, K] into [g, rows, G], the last group of a row filled up with 0, whose code is the zero point."""
    g, rows, groups = columns.shape
    whole = weight.shape[1] // g
    columns[:, :, :whole] = weight[:, : whole * g].reshape(rows, whole, g).transpose(2, 0, 1)
    if whole < groups:
        rest = weight.shape[1] - whole * g
        columns[:rest, :, whole] = weight[:, whole * g :].T
        columns[rest:, :, whole] = 0


def _codes(r: F32, zero: F32, bits: int, out: F32) -> NDArray[np.uint8]:
    """Signed codes ``r`` [g, B] -> stored bytes, uint8 [g, B] for 8 bits, [g / 2, B] for 4 (float arithmetic is exact here, and faster)."""
    if bits == 8:
        np.add(r, zero, out=out)
        return out.astype(np.uint8)
    packed = np.multiply(r[1::2], np.float32(16), out=out[: len(r) // 2])
    np.add(packed, r[0::2], out=packed)
    np.add(packed, np.float32(17) * zero, out=packed)
    return packed.astype(np.uint8)


def _over_rows(n: int, rows: int, worker: Callable[[], Rows], threads: int | None) -> None:
    """Call ``work(start, stop)`` for every run of ``rows`` of 0..n; each thread asks ``worker`` once for a ``work`` with its own memory."""
    starts: SimpleQueue[int] = SimpleQueue()
    for start in range(0, n, rows):
        starts.put(start)

    def drain() -> None:
        work = worker()
        while True:
            try:
                start = starts.get_nowait()
            except Empty:
                return
            work(start, min(start + rows, n))

    count = min(threads or cores(), starts.qsize())
    if count <= 1:
        drain()
        return
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(drain) for _ in range(count)]:
            future.result()

"""Factors for the inputs of every matrix from the weights alone, in closed form: no text, no search, the same on every machine.

A group of 4-bit weights has one step, so columns that matter should not be small beside their neighbours. Calibration learns from a text
how large each input is (``quant/awq.py``); most of that can be read off the model: a norm gives inputs of variance one, times its gain.

- q, k, v and gate, up: an input's size is its norm's gain.
- o: a value is a sum over such inputs, its size the norm of its row of v; means over tokens change all alike.
- down: ``silu(gate) * up`` of two such sums, jointly normal: one integral.

The factors are ``sqrt(size / weight)``, which leave each column as large, times its inputs, as its weight was: cross-layer equalization
(Nagel et al. 2019, arXiv:1906.04721, which reads sizes off a batch norm in the same way), with the folds of AWQ. What they do is looked at
on some rows, and where they would not lower the error of the outputs, as for weights that lie on the grid already, nothing is folded.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgekit import cache as kept
from edgekit.cache import Cache, SourceFile
from edgekit.folds import NORMS, SHARED, LayerFolds, folded, folded_norm, packed, packed_bytes, rows, unpacked, value_heads
from edgekit.models import Model
from edgekit.parallel import in_threads
from edgekit.progress import Progress
from edgekit.quant import dequantize, quantize
from edgekit.quant.awq import balanced
from edgekit.quant.gptq import F64
from edgekit.quant.rtn import F32, SMALLEST
from edgekit.quant.scheme import Format
from edgekit.quantized import check_unchanged

VERSION = 2
"""Raised by whoever changes what comes out, or kept factors would be taken for new."""
BLOCK = 1 << 20
"""Weights that a thread holds at a time."""
LARGE = 2048
"""Rows from which on a part of them stands for all."""
PIECES, ROWS = 4, 16
"""Rows of a matrix that factors are judged by, at so many places."""
NODES, SHARE = np.polynomial.hermite_e.hermegauss(64)
STEPS, LARGEST = 240, 1000.0
"""A row is divided only so far that its largest weight stays so many times float16's smallest scale (15 steps, for groups that are 16 times
smaller), and multiplied up to that."""


@dataclass
class _Seen:
    """Of one matrix. columns: mean squares [K]. rows: squares of the rows, each column times its input's size, [N]. largest: of a row."""

    columns: F64
    rows: F64
    largest: F32


def equalize(
    model: Model,
    formats: Mapping[str, Format],
    progress: Progress,
    *,
    cache: Cache | None = None,
    sources: Mapping[Path, SourceFile] = MappingProxyType({}),
    threads: int | None = None,
) -> Model:
    """``model`` with factors folded into the layers whose matrices ``formats`` (by canonical name) makes 4 bits wide.

    cache: keeps the factors, by the digests of the checkpoint's files ``sources``. The result does not depend on ``threads``.
    Raises CheckpointError.
    """
    decoder, found, done = model.decoder, dict[int, LayerFolds](), 0
    forms = [[name, form.bits, form.group, form.symmetric] for name, form in sorted(formats.items())]
    digests = sorted(source.sha256 for source in sources.values())
    group = kept.group_name(("equalized", VERSION, *digests, hashlib.sha256(json.dumps(forms).encode()).hexdigest()))

    def work(index: int) -> Iterator[None]:
        payload = kept.load(cache, group, f"layer-{index}", packed_bytes(decoder)) if cache is not None else None
        if payload is not None:
            found[index] = unpacked(model, index, payload)
        else:
            found[index] = _folds(model, index, formats)
            for file in sources:
                check_unchanged(file, sources)
            if cache is not None:
                about = {"model": model.checkpoint.source.name, "file": "equalized", "format": "folds"}
                kept.store(cache, group, f"layer-{index}", packed(model, index, found[index]), about)
        yield

    def tell(_: None) -> None:
        nonlocal done
        done += 1
        progress("equalize", done, decoder.layers)

    in_threads(work, range(decoder.layers), threads, tell)
    return replace(model, folded=folded(decoder, [found[i] for i in range(decoder.layers)]))


def _folds(model: Model, index: int, formats: Mapping[str, Format]) -> LayerFolds:
    at, decoder = f"layers.{index}", model.decoder
    columns, vectors = dict[str, F32](), dict[str, F32]()

    def balance(first: str, size: F64, squares: Sequence[F64], before: tuple[_Seen, NDArray[np.intp]] | None = None) -> None:
        """before: the matrix whose rows are divided, and which of them each input comes from; None divides the norm's gain."""
        names = [f"{at}.{part}" for part in SHARED[first]]
        if any(formats[name].bits != 4 for name in names):
            return
        weight, moved = np.sum(squares, axis=0), dict[str, F32]()
        if before is None:
            moved[NORMS[first]], factors = folded_norm(model.tensor(f"{at}.{NORMS[first]}"), balanced(size, weight))
        else:
            seen, tied = before
            factors = np.clip(balanced(size, weight, tied=tied, powers_of_two=True), *(limit[tied] for limit in _reach(seen)))
        if _helps(model, names, formats, size, factors):
            columns[first] = factors
            vectors.update(moved)

    gain = np.square(model.tensor(f"{at}.input_norm"), dtype=np.float64)
    q, k = (_columns(model, f"{at}.{part}") for part in ("q_proj", "k_proj"))
    ((v,), _) = _look(model, [f"{at}.v_proj"], gain)
    balance("q_proj", gain, (q, k, v.columns))
    heads = value_heads(decoder)
    values = v.rows + (np.square(model.tensor(f"{at}.v_proj.bias"), dtype=np.float64) if decoder.qkv_bias else 0.0)
    balance("o_proj", values[heads], (_columns(model, f"{at}.o_proj"),), (v, heads))
    divided = rows(decoder, "v_proj", columns)
    if decoder.qkv_bias and divided is not None:
        vectors["v_proj.bias"] = model.tensor(f"{at}.v_proj.bias") * divided
    gain = np.square(model.tensor(f"{at}.post_attention_norm"), dtype=np.float64)
    (gate, up), common = _look(model, [f"{at}.gate_proj", f"{at}.up_proj"], gain)
    balance("gate_proj", gain, (gate.columns, up.columns))
    size = _product(gate.rows, up.rows, common)
    balance("down_proj", size, (_columns(model, f"{at}.down_proj"),), (up, np.arange(len(size))))
    return LayerFolds(columns, vectors)


def _blocks(model: Model, names: Sequence[str], share: int = 1) -> Iterator[tuple[slice, list[F32]]]:
    """The same rows of matrices of one shape, some at a time; of each such piece the first 1 / ``share``."""
    n, k = model.decoder.weight_shapes()[names[0]]
    step = max(share, BLOCK // k // share * share)
    for start in range(0, n, step):
        part = slice(start, min(start + step // share, n))
        yield part, [model.rows(name, part.start, part.stop) for name in names]


def _columns(model: Model, name: str) -> F64:
    """Mean squares of a matrix's columns [K]; of a large one a quarter of the rows tells them."""
    n, k = model.decoder.weight_shapes()[name]
    total, seen = np.zeros(k), 0
    for part, (weight,) in _blocks(model, [name], 1 if n < LARGE else 4):
        total += np.square(weight, dtype=np.float64).sum(axis=0)
        seen += part.stop - part.start
    return total / seen


def _look(model: Model, names: Sequence[str], sizes: F64) -> tuple[list[_Seen], F64]:
    """All of matrices that meet the same inputs, whose squares are ``sizes`` [K]; and of each of their rows, the product that the outputs
    of the first and the last have on average."""
    n, k = model.decoder.weight_shapes()[names[0]]
    seen = [_Seen(np.zeros(k), np.empty(n), np.empty(n, np.float32)) for _ in names]
    common = np.empty(n)
    for part, weights in _blocks(model, names):
        for one, weight in zip(seen, weights, strict=True):
            # In float64 what another order of adding changes is far below what a factor is rounded to.
            squares = np.square(weight, dtype=np.float64)
            one.columns += squares.sum(axis=0) / n
            one.rows[part] = squares @ sizes
            one.largest[part] = np.abs(weight).max(axis=1)
        common[part] = np.multiply(weights[0], weights[-1], dtype=np.float64) @ sizes if len(names) > 1 else one.rows[part]
    return seen, common


def _product(gate: F64, up: F64, common: F64) -> F64:
    """The mean square of ``silu(g) * u`` for jointly normal g and u with the mean squares ``gate`` and ``up`` and product ``common``."""
    g = np.sqrt(gate)[:, None] * NODES
    silu = np.square(g / (1 + np.exp(-np.clip(g, -500, 500)))) * (SHARE / SHARE.sum())
    share = np.square(common) / np.maximum(gate * up, 1e-300)
    correlated = np.minimum(share, 1.0)
    found: F64 = up * (correlated * (silu @ np.square(NODES)) + (1 - correlated) * silu.sum(axis=1))
    return found


def _reach(before: _Seen) -> tuple[F32, F32]:
    """The least and the greatest power of two that each row may be divided by, its scales staying within float16."""
    with np.errstate(divide="ignore"):
        most = np.floor(np.log2(before.largest / (STEPS * SMALLEST)))
        least = np.ceil(np.log2(before.largest / np.float32(LARGEST)))
    return np.exp2(np.clip(least, -30, 0)).astype(np.float32), np.exp2(np.clip(most, 0, 30)).astype(np.float32)


def _helps(model: Model, names: Sequence[str], formats: Mapping[str, Format], sizes: F64, factors: F32) -> bool:
    """Whether some rows come nearer to their outputs with their columns times ``factors``."""
    plain, with_factors = 0.0, 0.0
    for name in names:
        n, form = model.decoder.weight_shapes()[name][0], formats[name]
        starts = sorted({round(i * max(0, n - ROWS) / (PIECES - 1)) for i in range(PIECES)})
        weight = np.concatenate([model.rows(name, start, min(start + ROWS, n)) for start in starts])
        plain += n / len(weight) * _error(weight, form, sizes, name)
        with_factors += n / len(weight) * _error(weight * factors, form, sizes / np.square(factors, dtype=np.float64), name)
    return with_factors < plain


def _error(weight: F32, form: Format, sizes: F64, name: str) -> float:
    difference = weight - dequantize(quantize(weight, form, name=name, threads=1))
    return float(np.square(difference, dtype=np.float64).sum(axis=0) @ sizes)

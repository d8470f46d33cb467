"""The decoder in numpy, float32, one layer in memory at a time: the oracle for exporters, and what calibration and verification run.

Written to be read against the papers, not to be fast; the matrix products use all cores through numpy's BLAS.
RMSNorm: Zhang & Sennrich 2019. RoPE: Su et al. 2021. Grouped-query attention: Ainslie et al. 2023. SwiGLU: Shazeer 2020.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ContextOverflow, UsageError
from edgekit.models.decoder import DecoderConfig

Array = NDArray[np.float32]
Seen = Callable[[str, Array], None]
"""Told, before a layer's matrix is asked for, its canonical name and all the inputs [sum of T, K] it will meet."""
VERSION = 1
"""Of the logits: raised by whoever changes any of them beyond rounding, or kept ones would be taken for new."""
ROWS = 2048  # positions that go through an MLP or a norm at a time
PRODUCTS = 4096  # positions whose products are in memory at a time, beside those that somebody looks on
CACHED = 16  # positions few enough that what is made on the way stays in the processor's cache
SCORES = 1 << 25  # attention scores held at a time (128 MB)


def nobody(name: str, inputs: Array) -> None:
    """Looks on and keeps nothing."""


def reference_logits(decoder: DecoderConfig, tensor: Callable[[str], Array], tokens: Sequence[int], *, last: int | None = None) -> Array:
    """Logits of one sequence, float32 [T, V], or [last, V] of its last positions. See ``reference_logits_many``."""
    return reference_logits_many(decoder, tensor, [tokens], last=last)[0]


def reference_logits_many(
    decoder: DecoderConfig,
    tensor: Callable[[str], Array],
    sequences: Sequence[Sequence[int]],
    *,
    last: int | None = None,
    seen: Seen = nobody,
) -> list[Array]:
    """Logits of several sequences in one pass over the layers: each weight is asked for once (a tied embedding twice).

    tensor: canonical name -> float32 weight, such as ``Model.tensor``, or one that gives dequantized weights.
    seen:   so that ``tensor`` may choose by the inputs what it gives (calibration).
    last:   only the last ``last`` positions of each sequence (all of a shorter one).
    LongRoPE takes the long frequencies for a whole sequence longer than the switch, as a full forward without cache does.
    Returns float32 [T, V] for each. Raises UsageError (no tokens, an id outside the vocabulary) or ContextOverflow.
    """
    for tokens in sequences:
        _check_tokens(decoder, tokens)
    if not sequences:
        return []
    hidden, spans = embedded(tensor, sequences)
    for i in range(decoder.layers):
        apply_layer(decoder, tensor, i, hidden, spans, seen)
    kept = [hidden[span][-last:] if last is not None else hidden[span] for span in spans]
    logits = head(decoder, tensor, np.concatenate(kept))
    return np.split(logits, np.cumsum([len(k) for k in kept])[:-1])


def embedded(tensor: Callable[[str], Array], sequences: Sequence[Sequence[int]]) -> tuple[Array, list[slice]]:
    """What the first layer is given, [sum of T, D], and the rows of each sequence in it."""
    starts = np.cumsum([0, *map(len, sequences)])
    hidden = tensor("embed_tokens")[np.concatenate([np.asarray(tokens, dtype=np.int64) for tokens in sequences])]
    return hidden, [slice(int(a), int(b)) for a, b in pairwise(starts)]


def apply_layer(
    decoder: DecoderConfig, tensor: Callable[[str], Array], i: int, hidden: Array, spans: Sequence[slice], seen: Seen = nobody
) -> None:
    """Layer ``i`` on ``hidden`` [sum of T, D], in place; ``spans``: the rows of each sequence."""
    _attention(decoder, tensor, i, hidden, spans, seen)
    _mlp(decoder, tensor, i, hidden, seen)


def head(decoder: DecoderConfig, tensor: Callable[[str], Array], hidden: Array) -> Array:
    """Logits [n, V] of what the last layer gave, [n, D]."""
    logits: Array = _rms_norm(hidden, tensor("norm"), decoder.norm_eps) @ tensor("embed_tokens" if decoder.tied else "lm_head").T
    return logits


def _check_tokens(decoder: DecoderConfig, tokens: Sequence[int]) -> None:
    if not len(tokens):
        raise UsageError("the reference needs at least one token")
    if len(tokens) > decoder.context:
        raise ContextOverflow(f"{len(tokens)} tokens; the model's context holds {decoder.context}")
    if min(tokens) < 0 or max(tokens) >= decoder.vocab_size:
        raise UsageError(f"token ids must lie in 0..{decoder.vocab_size - 1}; got {min(tokens)}..{max(tokens)}")


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    normed = np.empty_like(x)
    for start in range(0, len(x), CACHED):
        part = x[start : start + CACHED]
        mean = np.mean(np.square(part), axis=-1, keepdims=True, dtype=np.float32)
        np.multiply(weight, part / np.sqrt(mean + np.float32(eps)), out=normed[start : start + CACHED])
    return normed


def _attention(decoder: DecoderConfig, tensor: Callable[[str], Array], i: int, hidden: Array, spans: Sequence[slice], seen: Seen) -> None:
    """Adds the attention of layer ``i`` to ``hidden`` [sum of T, D] in place; sequences see only themselves."""
    normed = _rms_norm(hidden, tensor(f"layers.{i}.input_norm"), decoder.norm_eps)
    projected = []
    for part in ("q_proj", "k_proj", "v_proj"):
        seen(f"layers.{i}.{part}", normed)
        out = normed @ tensor(f"layers.{i}.{part}").T
        if decoder.qkv_bias:
            out += tensor(f"layers.{i}.{part}.bias")
        projected.append(out)
    q, k, v = (p.reshape(len(p), -1, decoder.head_dim).transpose(1, 0, 2) for p in projected)  # [heads, sum of T, head_dim]
    mixed = np.empty_like(q)
    for span in spans:
        length = span.stop - span.start
        cos, sin = decoder.rope.cos_sin(length, long=decoder.rope.is_long(length))
        turned = _rotate(q[:, span], cos, sin), _rotate(k[:, span], cos, sin)
        mixed[:, span] = _attend(*turned, v[:, span], decoder.windows[i])
    joined = mixed.transpose(1, 0, 2).reshape(len(hidden), -1)
    seen(f"layers.{i}.o_proj", joined)
    for rows, out in _products(joined, tensor(f"layers.{i}.o_proj")):
        hidden[rows] += out


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates pair (j, j + dims/2) of each head [heads, T, head_dim] by its angle; dims beyond the rotary ones stay."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _attend(q: Array, k: Array, v: Array, window: int | None) -> Array:
    """Causal softmax attention. q [heads, T, head_dim]; k, v [kv_heads, T, head_dim]; query head h reads kv head h // group."""
    heads, length, dim = q.shape
    group = heads // len(k)
    scaled = q.reshape(len(k), group, length, dim) * np.float32(dim**-0.5)
    out = np.empty_like(scaled)
    step = max(1, min(256, SCORES // (heads * length)))
    for start in range(0, length, step):
        stop = min(start + step, length)
        first = 0 if window is None else max(0, start - window + 1)
        scores = scaled[:, :, start:stop] @ k[:, None, first:stop].swapaxes(-1, -2)
        behind = np.arange(start, stop)[:, None] - np.arange(first, stop)[None, :]
        scores[..., (behind < 0) | (behind >= (window or length))] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        out[:, :, start:stop] = scores @ v[:, None, first:stop]
    return out.reshape(heads, length, dim)


def _mlp(decoder: DecoderConfig, tensor: Callable[[str], Array], i: int, hidden: Array, seen: Seen) -> None:
    """Adds the SwiGLU MLP of layer ``i`` to ``hidden`` in place, some rows at a time; all at once where somebody looks on."""
    norm = tensor(f"layers.{i}.post_attention_norm")
    step = ROWS if seen is nobody else max(1, len(hidden))
    weights: list[Array] = []
    for start in range(0, len(hidden), step):
        rows = hidden[start : start + step]
        normed = _rms_norm(rows, norm, decoder.norm_eps)
        if not weights:
            seen(f"layers.{i}.gate_proj", normed)
            seen(f"layers.{i}.up_proj", normed)
            weights = [tensor(f"layers.{i}.{part}") for part in ("gate_proj", "up_proj")]
        gated = normed @ weights[0].T
        _silu(gated)
        for part, up in _products(normed, weights[1]):
            gated[part] *= up
        if len(weights) == 2:
            seen(f"layers.{i}.down_proj", gated)
            weights.append(tensor(f"layers.{i}.down_proj"))
        for part, out in _products(gated, weights[2]):
            rows[part] += out


def _products(x: Array, weight: Array) -> Iterator[tuple[slice, Array]]:
    """Rows of ``x @ weight.T``, each some of them, in one place: memory that is fresh each time costs more than what is done with it."""
    place = np.empty((min(PRODUCTS, len(x)), len(weight)), np.float32)
    for start in range(0, len(x), PRODUCTS):
        rows = slice(start, min(start + PRODUCTS, len(x)))
        yield rows, np.matmul(x[rows], weight.T, out=place[: rows.stop - start])


def _silu(x: Array) -> None:
    """In place."""
    with np.errstate(over="ignore"):  # exp may overflow to infinity, which makes silu 0, as it should
        for start in range(0, len(x), CACHED):
            part = x[start : start + CACHED]
            part /= np.float32(1) + np.exp(-part)

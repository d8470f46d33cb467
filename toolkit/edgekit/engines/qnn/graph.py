"""One part of the decoder as a graph of fixed shapes: some layers in float16, all of whose operators Qualcomm's HTP computes.

    hidden.p             float16 [1, S, D]            what the part before gave (the embeddings, for the first)
    rope.cos, rope.sin   float16 [1, 1, S, dims / 2]  of the positions of these S tokens
    mask[.W]             float16 [1, 1, S, C]         0 where a token sees a place of the cache, MASKED elsewhere; for each window W
    write                int64 [1, KV, S, 3]          where in a cache the new keys and values go: indices (0, head, position)
    past_key_values.i.*  float16 [1, KV, C, hd]       the whole cache
 -> hidden.(p + 1)       float16 [1, S, D]
    present.i.*          float16 [1, KV, C, hd]       the cache with S rows written; the same buffer as the past

S is the prompt chunk in one graph and 1 in the other; both read the same weights. What a position means (rotation, mask, place) is computed
once on the CPU for all parts (stages.py), so nothing of LongRoPE or of a window is fixed in what is compiled. Which operators the HTP
takes: docs/qnn.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.engines.onnx_format.proto import Attributes, DataType, Graph, Tape, Value, constant
from edgekit.engines.onnx_format.weights import DataFile, Matrix, matrix, vector
from edgekit.models.decoder import DecoderConfig
from edgekit.quant.scheme import QuantScheme

MICROSOFT = "com.microsoft"
OPSETS = {"": 20, MICROSOFT: 1}
IR_VERSION = 10
F16 = DataType.FLOAT16
MASKED = -30000.0
"""Added to a score: exp of it is 0, and it stays a float16 with any score added."""


@dataclass
class Part:
    """Layers ``first`` to ``last`` (excluded) of a decoder. ``data`` grows with the first graph; the second finds its weights there."""

    decoder: DecoderConfig
    scheme: QuantScheme
    context: int
    index: int
    first: int
    last: int
    data: DataFile
    matrices: dict[str, Matrix] = field(default_factory=dict)
    vectors: dict[str, Value] = field(default_factory=dict)


@dataclass
class Half:
    """One of a part's two graphs while it grows: ``tokens`` new ones at a time."""

    part: Part
    tokens: int
    tape: Tape = field(default_factory=Tape)
    constants: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Shared:
    """Inputs that every layer reads. masks: by window."""

    cos: Value
    sin: Value
    masks: dict[int | None, Value]
    write: Value


def windows(decoder: DecoderConfig, context: int) -> list[int | None]:
    """The kinds of mask that a decoder's layers need, None for a layer that sees all of ``context``."""
    kinds = [effective(window, context) for window in decoder.windows]
    return list(dict.fromkeys(kinds))


def effective(window: int | None, context: int) -> int | None:
    return None if window is None or window >= context else window


def mask_name(window: int | None) -> str:
    return "mask" if window is None else f"mask.{window}"


def cache_names(kind: str, layer: int) -> list[str]:
    """``kind``: past_key_values or present."""
    return [f"{kind}.{layer}.{what}" for what in ("key", "value")]


def build(part: Part, tokens: int) -> Graph:
    """The graph of ``part`` for ``tokens`` new tokens at a time."""
    decoder, context = part.decoder, part.context
    half = Half(part, tokens)
    kinds = list(dict.fromkeys(effective(decoder.windows[i], context) for i in range(part.first, part.last)))
    masks = {kind: Value(mask_name(kind), F16, (1, 1, tokens, context)) for kind in kinds}
    shared = Shared(
        Value("rope.cos", F16, (1, 1, tokens, decoder.rope.dims // 2)),
        Value("rope.sin", F16, (1, 1, tokens, decoder.rope.dims // 2)),
        masks,
        Value("write", DataType.INT64, (1, decoder.kv_heads, tokens, 3)),
    )
    cache_shape = (1, decoder.kv_heads, context, decoder.head_dim)
    hidden = first = Value(f"hidden.{part.index}", F16, (1, tokens, decoder.hidden_size))
    inputs, outputs = [first, shared.cos, shared.sin, *masks.values(), shared.write], []
    for i in range(part.first, part.last):
        past = [Value(name, F16, cache_shape) for name in cache_names("past_key_values", i)]
        present = [Value(name, F16, cache_shape) for name in cache_names("present", i)]
        hidden = op(half, "Add", [hidden, attention(half, i, norm(half, f"layers.{i}.input_norm", hidden), shared, past, present)])
        gated = mlp(half, i, norm(half, f"layers.{i}.post_attention_norm", hidden))
        final = [Value(f"hidden.{part.index + 1}", F16, first.shape)] if i == part.last - 1 else 1
        hidden = half.tape.add("Add", [hidden, gated], outputs=final)[0]
        inputs += past
        outputs += present
    return finish(half, inputs, [hidden, *outputs])


def finish(half: Half, inputs: Sequence[Value], outputs: Sequence[Value]) -> Graph:
    """The graph with the weights that it reads."""
    read = half.tape.read()
    initializers = [value for value in (*half.constants.values(), *half.part.data.initializers) if value.name in read]
    return Graph(half.tape.nodes, inputs, outputs, initializers, OPSETS, IR_VERSION)


def attention(half: Half, i: int, hidden: Value, shared: Shared, past: Sequence[Value], present: Sequence[Value]) -> Value:
    """[1, S, D]."""
    decoder, context = half.part.decoder, half.part.context
    q, k, v = heads(half, i, hidden, shared.cos, shared.sin)
    keys, values = (
        half.tape.add("ScatterND", [old, shared.write, new], outputs=[out], name=out.name)[0]
        for old, new, out in zip(past, (k, v), present, strict=True)
    )
    keys = op(half, "Transpose", [keys], {"perm": (0, 1, 3, 2)})
    mask = shared.masks[effective(decoder.windows[i], context)]
    return projection(half, f"layers.{i}.o_proj", attended(half, q, keys, values, mask, (1, decoder.kv_heads)))


def heads(half: Half, i: int, hidden: Value, cos: Value, sin: Value) -> tuple[Value, Value, Value]:
    """Queries [1, H, S, hd], keys and values [1, KV, S, hd] of the new tokens; the first two rotated."""
    decoder = half.part.decoder
    sizes = {"q": decoder.heads, "k": decoder.kv_heads, "v": decoder.kv_heads}
    q, k, v = (split_heads(half, projection(half, f"layers.{i}.{x}_proj", hidden), n) for x, n in sizes.items())
    return rotated(half, q, cos, sin), rotated(half, k, cos, sin), v


def attended(half: Half, q: Value, keys: Value, values: Value, mask: Value, lead: tuple[int, int]) -> Value:
    """[1, S, H * hd]. keys: [*lead, hd, C], values: [*lead, C, hd], where ``lead`` is KV and 1 in either order. The heads that read one
    key head are rows of one product, so that nothing is repeated."""
    decoder, s, c = half.part.decoder, half.tokens, half.part.context
    count, size = decoder.heads, decoder.head_dim
    grouped = count // decoder.kv_heads * s
    q = op(half, "Mul", [q, scalar(half, "scale", size**-0.5)])
    scores = op(half, "MatMul", [op(half, "Reshape", [q, shape(half, *lead, grouped, size)]), keys])
    by_head = op(half, "Reshape", [scores, shape(half, 1, count, s, c)])
    weights = op(half, "Softmax", [op(half, "Add", [by_head, mask])], {"axis": -1})
    mixed = op(half, "MatMul", [op(half, "Reshape", [weights, shape(half, *lead, grouped, c)]), values])
    apart = op(half, "Reshape", [mixed, shape(half, 1, count, s, size)])
    return op(half, "Reshape", [op(half, "Transpose", [apart], {"perm": (0, 2, 1, 3)}), shape(half, 1, s, count * size)])


def split_heads(half: Half, x: Value, heads: int) -> Value:
    """[1, S, heads * hd] as [1, heads, S, hd]."""
    apart = op(half, "Reshape", [x, shape(half, 1, half.tokens, heads, half.part.decoder.head_dim)])
    return op(half, "Transpose", [apart], {"perm": (0, 2, 1, 3)})


def rotated(half: Half, x: Value, cos: Value, sin: Value) -> Value:
    """Pair (j, j + dims / 2) of each head turned by its angle; dims beyond the rotary ones stay."""
    decoder = half.part.decoder
    dims, rest = decoder.rope.dims, decoder.head_dim - decoder.rope.dims
    sizes = [dims // 2, dims // 2] + ([rest] if rest else [])
    a, b, *others = half.tape.add("Split", [x, const(half, "rope_sizes", sizes)], {"axis": -1}, outputs=len(sizes))
    turned = op(half, "Sub", [op(half, "Mul", [a, cos]), op(half, "Mul", [b, sin])])
    other = op(half, "Add", [op(half, "Mul", [b, cos]), op(half, "Mul", [a, sin])])
    return op(half, "Concat", [turned, other, *others], {"axis": -1})


def mlp(half: Half, i: int, hidden: Value) -> Value:
    """down(silu(gate(x)) * up(x))."""
    gate, up = (projection(half, f"layers.{i}.{name}_proj", hidden) for name in ("gate", "up"))
    silu = op(half, "Mul", [gate, op(half, "Sigmoid", [gate])])
    return projection(half, f"layers.{i}.down_proj", op(half, "Mul", [silu, up]))


def norm(half: Half, name: str, hidden: Value) -> Value:
    attributes: Attributes = {"axis": -1, "epsilon": half.part.decoder.norm_eps, "stash_type": 1}
    weight = vector_of(half.part, name, f"{name}.weight")
    return half.tape.add("SimplifiedLayerNormalization", [hidden, weight], attributes, name=name)[0]


def projection(half: Half, name: str, hidden: Value) -> Value:
    """The product with a quantized weight [N, K], as MatMulNBits of the portable codes."""
    part = half.part
    shapes = part.decoder.weight_shapes()
    if name not in part.matrices:
        n, k = shapes[name]
        part.matrices[name] = matrix(part.data, name, [(name, (n, k))], part.scheme.format_for(name, k))
    product = matmul(half, name, hidden, part.matrices[name])
    bias = f"{name}.bias"
    return product if bias not in shapes else op(half, "Add", [product, vector_of(part, bias, bias)])


def matmul(half: Half, name: str, hidden: Value, weight: Matrix, outputs: int | Sequence[Value] = 1) -> Value:
    attributes = {"K": weight.shape[1], "N": weight.shape[0], "bits": weight.format.bits, "block_size": weight.format.group}
    inputs = [hidden, weight.codes, weight.scales, weight.zeros]
    return half.tape.add("MatMulNBits", inputs, attributes, outputs=outputs, domain=MICROSOFT, name=name)[0]


def vector_of(part: Part, weight: str, name: str) -> Value:
    if name not in part.vectors:
        part.vectors[name] = vector(part.data, name, [(weight, part.decoder.weight_shapes()[weight])])
    return part.vectors[name]


def shape(half: Half, *sizes: int) -> Value:
    return const(half, "shape_" + "_".join(map(str, sizes)), list(sizes))


def const(half: Half, name: str, value: list[int]) -> Value:
    """An int64 initializer, made once for each name."""
    if name not in half.constants:
        half.constants[name] = constant(name, np.array(value, np.int64))
    return half.constants[name]


def scalar(half: Half, name: str, value: float) -> Value:
    if name not in half.constants:
        half.constants[name] = Value(name, F16, (1,), np.array([value], "<f2").tobytes())
    return half.constants[name]


def op(half: Half, kind: str, inputs: Sequence[Value], attributes: Attributes | None = None) -> Value:
    return half.tape.add(kind, inputs, attributes)[0]

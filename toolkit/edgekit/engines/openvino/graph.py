"""The decoder as OpenVINO operators, in the patterns that its plugins fuse, with the inputs and states that openvino_genai expects.

    input_ids       int64 [B, S]    the new tokens
    attention_mask  int64 [B, T]    for every slot of the cache and every new token 1, or 0 where it is not to be seen
    position_ids    int64 [B, S]    of the new tokens
    beam_idx        int32 [B]       which row of the cache each row of the batch goes on with
 -> logits          float32 [B, S, V]
states past_key_values.{i}.{key|value}present.{i}.{key|value}, float32 [B, KV, T, hd]

The session adds two inputs when it loads the graph (session.py): after how many of the last tokens logits are wanted, and the length that
a LongRoPE sequence will have. openvino_genai cuts the logits itself. Operators: https://docs.openvino.ai/2025/documentation/openvino-ir-format
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import Node, PartialShape, Type
from openvino import opset13 as op

from edgekit.engines.openvino.ir import Graph, Stored, serialize
from edgekit.engines.openvino.options import OpenvinoOptions
from edgekit.engines.openvino.weights import DataFile, matrix, sizes, vector
from edgekit.models.decoder import DecoderConfig
from edgekit.quant.scheme import Format, QuantScheme

HIDDEN = -65504.0
"""Added to the score of what must not be seen; finite, and in the range of float16."""
LENGTH = "rope.length"
"""Name of the node by which LongRoPE chooses, int64 [1]."""
FREQUENCIES, LONG_FREQUENCIES, SCALE = "rope.frequencies", "rope.long_frequencies", "rope.scale"
"""Names of the constants that turn positions into angles, and of what LongRoPE multiplies their cosines and sines by."""


@dataclass(frozen=True)
class Plan:
    """What the parts of the graph are made of. ``data``, ``weights`` and ``stored`` grow as weights are placed."""

    decoder: DecoderConfig
    scheme: QuantScheme
    context: int
    options: OpenvinoOptions
    data: DataFile = field(default_factory=DataFile)
    weights: dict[str, Node] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)


@dataclass(frozen=True)
class Matrix:
    """A quantized matrix [N, K]. codes u4, i4 or u8 [N, G, g]; scales f16 [N, G, 1]; zeros as codes [N, G, 1], None where codes are
    signed."""

    shape: tuple[int, int]
    format: Format
    codes: Node
    scales: Node
    zeros: Node | None


@dataclass(frozen=True)
class Shared:
    """Values that every layer reads. cos, sin: [B, 1, S, dims]. masks: by window."""

    batch: Node
    beams: Node
    cos: Node
    sin: Node
    masks: dict[int | None, Node]


@functools.lru_cache(maxsize=1)  # checked, measured and exported one after the other
def build(decoder: DecoderConfig, scheme: QuantScheme, context: int, options: OpenvinoOptions) -> tuple[Graph, DataFile]:
    """The graph for sequences up to ``context`` tokens, and the plan of the data file its weights lie in."""
    plan = Plan(decoder, scheme, context, options)
    tokens, mask, positions = (
        parameter(name, Type.i64, PartialShape([-1, -1])) for name in ("input_ids", "attention_mask", "position_ids")
    )
    beams = parameter("beam_idx", Type.i32, PartialShape([-1]))
    hidden, embedding = embed(plan, tokens)
    cos, sin = rotary(plan, mask, positions)
    batch = op.gather(op.shape_of(tokens), i64([0]), i64(0))
    shared = Shared(batch, beams, cos, sin, masks(plan, tokens, mask))
    sinks: list[Node] = []
    for i in range(decoder.layers):
        attended, assigned = attention(plan, i, norm(plan, f"layers.{i}.input_norm", hidden), shared)
        sinks += assigned
        hidden = op.add(hidden, attended)
        hidden = op.add(hidden, mlp(plan, i, norm(plan, f"layers.{i}.post_attention_norm", hidden)))
    result = op.result(head(plan, norm(plan, "norm", hidden), embedding))
    result.output(0).get_tensor().set_names({"logits"})
    result.set_friendly_name("logits")
    inputs = [tokens, mask, positions, beams]
    model = openvino.Model([result], sinks, [*inputs, *plan.weights.values()], "decoder")
    named(model)
    for key, value in options.runtime(scheme.linear.group).items():
        model.set_rt_info(value, ["runtime_options", key])
    return serialize(model, plan.stored), plan.data


def named(model: openvino.Model) -> None:
    """OpenVINO numbers nodes through the whole process; here the names depend on the graph alone."""
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{node.get_type_name()}.{number}")


def embed(plan: Plan, tokens: Node) -> tuple[Node, Matrix]:
    """float32 [B, S, D], and the matrix it was gathered from. Codes are gathered before they are weights: no plugin ever unpacks all."""
    weight = quantized(plan, "embed_tokens", ["embed_tokens"], plan.scheme.format_for("embed_tokens", plan.decoder.hidden_size))
    zero = i64(0)
    codes, scales = (op.convert(op.gather(part, tokens, zero), Type.f32) for part in (weight.codes, weight.scales))
    if weight.zeros is not None:
        codes = op.subtract(codes, op.convert(op.gather(weight.zeros, tokens, zero), Type.f32))
    groups = -(-weight.shape[1] // weight.format.group)
    rows = op.reshape(op.multiply(codes, scales), i64([0, 0, groups * weight.format.group]), special_zero=True)
    if weight.shape[1] % weight.format.group:
        rows = op.slice(rows, i64([0]), i64([weight.shape[1]]), i64([1]), i64([2]))  # the last group is filled up in the file
    return rows, weight


def rotary(plan: Plan, mask: Node, positions: Node) -> tuple[Node, Node]:
    """cos and sin, each [B, 1, S, dims], computed in float32 whatever the precision of the rest (plugins know this pattern).

    LongRoPE takes the short factors for a whole sequence of up to ``switch`` tokens and the long ones for a whole longer one: by the
    number of tokens the mask shows. Who computes a long prompt in pieces has to say how long it will be, see ``session.with_inputs``.
    OpenVINO's paged attention has no mask, so it refuses this graph, and openvino_genai takes its other attention. That is meant: its
    prefix cache would give a long prompt the keys of a short one that began alike, and they were rotated with the other factors.
    """
    rope = plan.decoder.rope
    frequencies = f32(np.array(rope.inv_freq, np.float32))
    frequencies.set_friendly_name(FREQUENCIES)
    if rope.switch is not None and rope.long_inv_freq is not None and plan.context > rope.switch:
        length = op.reduce_max(op.reduce_sum(mask, i64([1]), keep_dims=False), i64([0]), keep_dims=True)
        length.set_friendly_name(LENGTH)
        long = f32(np.array(rope.long_inv_freq, np.float32))
        long.set_friendly_name(LONG_FREQUENCIES)
        frequencies = op.select(op.greater(length, i64([rope.switch])), long, frequencies)
    angles = op.multiply(op.convert(op.unsqueeze(positions, i64([2])), Type.f32), frequencies)
    angles = op.unsqueeze(op.concat([angles, angles], -1), i64([1]))
    cos, sin = op.cos(angles), op.sin(angles)
    if rope.scale != 1.0:
        scale = f32(np.array([[[[rope.scale]]]], np.float32))
        scale.set_friendly_name(SCALE)
        cos, sin = op.multiply(cos, scale), op.multiply(sin, scale)
    return cos, sin


def masks(plan: Plan, tokens: Node, mask: Node) -> dict[int | None, Node]:
    """By window, what is added to the scores, float32 [B, 1, S, T].

    A slot's position is the number of slots before it that are seen, so slots that were given up may stay in the cache, masked. The
    form with a window is the one that OpenVINO's paged attention recognizes: other forms would silently lose the window there.
    """
    count = op.unsqueeze(op.gather(op.shape_of(tokens), i64(1), i64(0)), i64([0]))
    places = op.subtract(op.cumsum(mask, i64(1)), i64(1))
    new = op.slice(places, op.negative(count), i64([np.iinfo(np.int64).max]), i64([1]), i64([1]))
    query, key = op.unsqueeze(new, i64([1, 3])), op.unsqueeze(places, i64([1, 2]))
    causal = op.less_equal(key, query)
    seen = op.unsqueeze(op.not_equal(mask, i64(0)), i64([1, 2]))
    found: dict[int | None, Node] = {}
    for window in sorted({effective(plan, i) for i in range(plan.decoder.layers)}, key=str):
        if window is None:
            found[None] = op.select(op.logical_and(causal, seen), f32(np.float32(0)), f32(np.float32(HIDDEN)))
            continue
        near = op.bitwise_and(causal, op.greater(key, op.add(query, i64(-window))))
        allowed = op.bitwise_and(op.bitwise_and(seen, op.bitwise_and(near, seen)), causal)
        spread = op.broadcast(allowed, op.shape_of(allowed))
        scores = op.select(spread, f32(np.float32(0)), f32(np.float32(HIDDEN)))
        ends = [i64([0]), i64([np.iinfo(np.int64).max]), i64([1]), i64([3])]
        found[window] = op.slice(scores, *ends)
    return found


def effective(plan: Plan, i: int) -> int | None:
    """The window of layer ``i`` where it hides anything within the context."""
    window = plan.decoder.windows[i]
    return None if window is None or window >= plan.context else window


def attention(plan: Plan, i: int, hidden: Node, shared: Shared) -> tuple[Node, list[Node]]:
    """[B, S, D], and the assignments that keep the cache."""
    decoder, at = plan.decoder, f"layers.{i}"
    sizes_of = [heads * decoder.head_dim for heads in (decoder.heads, decoder.kv_heads, decoder.kv_heads)]
    q, k, v = split(fused(plan, f"{at}.qkv_proj", [f"{at}.{p}_proj" for p in "qkv"], hidden), sizes_of)
    q, k = rotated(plan, by_head(plan, q), shared), rotated(plan, by_head(plan, k), shared)
    key, keep_key = cache(plan, i, "key", k, shared)
    value, keep_value = cache(plan, i, "value", by_head(plan, v), shared)
    mixed = op.scaled_dot_product_attention(
        q, repeated(plan, key), repeated(plan, value), shared.masks[effective(plan, i)], f32(np.float32(decoder.head_dim**-0.5))
    )
    joined = op.reshape(op.transpose(mixed, i64([0, 2, 1, 3])), i64([0, 0, sizes_of[0]]), special_zero=True)
    return projection(plan, f"{at}.o_proj", joined), [keep_key, keep_value]


def by_head(plan: Plan, x: Node) -> Node:
    """[B, S, heads * hd] -> [B, heads, S, hd]."""
    return op.transpose(op.reshape(x, i64([0, 0, -1, plan.decoder.head_dim]), special_zero=True), i64([0, 2, 1, 3]))


def rotated(plan: Plan, x: Node, shared: Shared) -> Node:
    """x [B, heads, S, hd] with the first ``dims`` of every head rotated."""
    dims, size = plan.decoder.rope.dims, plan.decoder.head_dim
    part, rest = (x, None) if dims == size else split(x, [dims, size - dims])
    first, second = (op.slice(part, i64([a]), i64([b]), i64([1]), i64([3])) for a, b in ((0, dims // 2), (dims // 2, 2**31 - 1)))
    half = op.concat([op.multiply(second, f32(np.array([[[[-1]]]], np.float32))), first], -1)
    turned = op.add(op.multiply(part, shared.cos), op.multiply(half, shared.sin))
    return turned if rest is None else op.concat([turned, rest], -1)


def cache(plan: Plan, i: int, kind: str, new: Node, shared: Shared) -> tuple[Node, Node]:
    """The keys or values of all tokens so far [B, KV, T, hd], and the assignment that keeps them."""
    heads, size = plan.decoder.kv_heads, plan.decoder.head_dim
    # The name by which openvino_genai tells the cache from other states.
    name = f"past_key_values.{i}.{kind}present.{i}.{kind}"
    empty = op.broadcast(f32(np.float32(0)), op.concat([shared.batch, i64([heads, 0, size])], 0))
    past = op.read_value(empty, name, Type.f32, PartialShape([-1, heads, -1, size]))
    whole = op.concat([op.gather(past, shared.beams, i64(0)), new], 2)
    return whole, op.assign(whole, name)


def repeated(plan: Plan, x: Node) -> Node:
    """[B, KV, T, hd] -> [B, heads, T, hd]: each key and value head serves a group of query heads. No plugin really copies it."""
    heads, kv_heads, size = plan.decoder.heads, plan.decoder.kv_heads, plan.decoder.head_dim
    if heads == kv_heads:
        return x
    spread = op.broadcast(op.unsqueeze(x, i64([2])), i64([1, 1, heads // kv_heads, 1, 1]), broadcast_spec="BIDIRECTIONAL")
    return op.reshape(spread, i64([0, heads, -1, size]), special_zero=True)


def mlp(plan: Plan, i: int, hidden: Node) -> Node:
    """down(silu(gate(x)) * up(x))."""
    at, size = f"layers.{i}", plan.decoder.intermediate_size
    gate, up = split(fused(plan, f"{at}.gate_up_proj", [f"{at}.gate_proj", f"{at}.up_proj"], hidden), [size, size])
    return projection(plan, f"{at}.down_proj", op.multiply(op.swish(gate), up))


def head(plan: Plan, hidden: Node, embedding: Matrix) -> Node:
    fmt = plan.scheme.format_for("lm_head", plan.decoder.hidden_size)
    if not plan.decoder.tied:
        weight = quantized(plan, "lm_head", ["lm_head"], fmt)
    elif fmt == embedding.format:
        weight = embedding
    else:
        weight = quantized(plan, "lm_head", ["embed_tokens"], fmt)
    return matmul("lm_head", weight, hidden)


def fused(plan: Plan, name: str, parts: Sequence[str], hidden: Node) -> Node:
    """The products with ``parts`` side by side: one operator where they have one format, else one each."""
    shapes = plan.decoder.weight_shapes()
    formats = {plan.scheme.format_for(part, shapes[part][1]) for part in parts}
    if len(formats) > 1:
        return op.concat([projection(plan, part, hidden) for part in parts], -1)
    product = matmul(name, quantized(plan, name, parts, formats.pop()), hidden)
    shapes = plan.decoder.weight_shapes()
    if f"{parts[0]}.bias" not in shapes:
        return product
    pieces = [(f"{part}.bias", shapes[f"{part}.bias"]) for part in parts]
    width = sum(shape[0] for _, shape in pieces)
    return op.add(product, placed(plan, f"{name}.bias", Type.f32, [1, 1, width], vector(plan.data, pieces), 4 * width))


def projection(plan: Plan, name: str, hidden: Node) -> Node:
    return fused(plan, name, [name], hidden)


def matmul(name: str, weight: Matrix, hidden: Node) -> Node:
    """hidden [B, S, K] times the transposed weight [N, K]. Where the last group was filled up, hidden is with zeros: a slice of
    the weight would keep the plugins from fusing."""
    n, k = weight.shape
    width = weight.codes.get_output_shape(0)
    filled = width[1] * width[2]
    if filled > k:
        hidden = op.pad(hidden, i64([0, 0, 0]), i64([0, 0, filled - k]), "constant", f32(np.float32(0)))
    # 4 bits: (q - z) * s is exact in float16. 8 bits: it is not, and stays in float32.
    floats = Type.f16 if weight.format.bits == 4 else Type.f32
    codes = op.convert(weight.codes, floats)
    if weight.zeros is not None:
        codes = op.subtract(codes, op.convert(weight.zeros, floats))
    scales = weight.scales if floats == Type.f16 else op.convert(weight.scales, floats)
    rows = op.reshape(op.multiply(codes, scales), i64([n, filled]), special_zero=False)
    product = op.matmul(hidden, rows if floats == Type.f32 else op.convert(rows, Type.f32), False, True)
    product.set_friendly_name(name)
    return product


def norm(plan: Plan, name: str, hidden: Node) -> Node:
    size = plan.decoder.hidden_size
    weight = placed(plan, f"{name}.weight", Type.f32, [1, 1, size], vector(plan.data, [(name, (size,))]), 4 * size)
    mean = op.reduce_mean(op.power(hidden, f32(np.array([[[2]]], np.float32))), i64([-1]), keep_dims=True)
    spread = op.sqrt(op.add(mean, f32(np.array([[[plan.decoder.norm_eps]]], np.float32))))
    return op.multiply(op.multiply(hidden, op.divide(f32(np.array([[[1]]], np.float32)), spread)), weight)


def quantized(plan: Plan, name: str, parts: Sequence[str], fmt: Format) -> Matrix:
    shapes = plan.decoder.weight_shapes()
    pieces = [(part, (shapes[part][0], shapes[part][1])) for part in parts]
    n, k = sum(shape[0] for _, shape in pieces), pieces[0][1][1]
    signed = plan.options.symmetric and fmt.bits == 4
    groups = -(-k // fmt.group)
    codes, scales, zeros = matrix(plan.data, pieces, fmt, signed=signed)
    lengths = sizes((n, k), fmt, signed=signed)
    stored = Type.i4 if signed else Type.u4 if fmt.bits == 4 else Type.u8
    return Matrix(
        (n, k),
        fmt,
        placed(plan, f"{name}.codes", stored, [n, groups, fmt.group], codes, lengths[0]),
        placed(plan, f"{name}.scales", Type.f16, [n, groups, 1], scales, lengths[1]),
        None if zeros is None else placed(plan, f"{name}.zeros", stored, [n, groups, 1], zeros, lengths[2]),
    )


def placed(plan: Plan, name: str, dtype: Type, shape: list[int], offset: int, size: int) -> Node:
    """A weight of the file, as the Parameter that stands for it until the graph is text."""
    plan.weights[name] = parameter(name, dtype, PartialShape(shape))
    plan.stored[name] = Stored(offset, size)
    return plan.weights[name]


def parameter(name: str, dtype: Type, shape: PartialShape) -> Node:
    node = op.parameter(shape, dtype)
    node.set_friendly_name(name)
    node.output(0).get_tensor().set_names({name})
    return node


def split(x: Node, widths: list[int]) -> list[Node]:
    """Along the last dimension."""
    return [output for output in op.variadic_split(x, i64(-1), i64(widths)).outputs()]


def i64(value: int | list[int]) -> Node:
    return op.constant(np.array(value, np.int64))


def f32(value: NDArray[np.float32] | np.float32) -> Node:
    return op.constant(np.asarray(value, np.float32))

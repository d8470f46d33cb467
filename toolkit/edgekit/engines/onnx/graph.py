"""``model.onnx``: the decoder as ONNX Runtime's fused operators, with the inputs and outputs that onnxruntime-genai expects.

    input_ids            int64 [1, S]              the new tokens
    attention_mask       int64 [1, T]              ones, one for each token of the whole sequence, the new ones included
    past_key_values.i.*  cached [1, KV, P, hd]     P >= T - S; give the same buffer as present.i.* to have the cache updated in place
    logits_positions     int64 [n]                 optional: after which of the new tokens to give logits; [-1], the last one, if not given
    rope_length          int64 [1]                 optional, LongRoPE only, see ``rotary``
 -> logits               float32 [1, n, V]         declared as [1, 1, V]: onnxruntime-genai wants to read there that it gets one position
    present.i.*          cached [1, KV, max(P, T), hd]

``floats`` is float32 or float16, ``cached`` the same or int8 (options.py). DirectML needs the one buffer for past and present, and more
than one new token only at the start of a sequence (kernels.py).
The batch is 1: another is refused by ONNX Runtime rather than computed wrongly. Operators:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.engines.onnx.kv_cache import Scales
from edgekit.engines.onnx.options import OnnxOptions
from edgekit.engines.onnx_format.proto import Attributes, DataType, Graph, Tape, Value, constant
from edgekit.engines.onnx_format.weights import DataFile, Matrix, initializer, matrix, row_bytes, table, vector
from edgekit.errors import TargetError
from edgekit.models.decoder import DecoderConfig, Rope
from edgekit.quant.scheme import Format, QuantScheme

MICROSOFT = "com.microsoft"
OPSETS = {"": 20, MICROSOFT: 1}
IR_VERSION = 10
FILE = "model.onnx"


@dataclass(frozen=True)
class Plan:
    """What the parts of the graph are made of. ``context``: most tokens of a sequence. ``scales``: of an INT8 cache, by layer; read when
    the file is written. ``data`` and ``constants`` grow as weights are placed."""

    decoder: DecoderConfig
    scheme: QuantScheme
    context: int
    options: OnnxOptions
    scales: Sequence[Scales]
    tape: Tape
    data: DataFile
    constants: dict[str, Value]


@dataclass(frozen=True)
class Shared:
    """Values that every layer reads. ``positions``: for the CPU the table row of every new token [1, S], None where
    GroupQueryAttention's own count is right; for DirectML the row of the first one [1]; else None."""

    seqlens_k: Value
    total: Value
    cos: Value
    sin: Value
    positions: Value | None


def build(
    decoder: DecoderConfig, scheme: QuantScheme, context: int, options: OnnxOptions, scales: Sequence[Scales] = ()
) -> tuple[Graph, DataFile]:
    """The graph for sequences up to ``context`` tokens, and the plan of the data file its initializers lie in.

    scales: of an INT8 cache, by layer; needed where the file is to be written.
    """
    plan = Plan(decoder, scheme, context, options, scales, Tape(), DataFile(f"{FILE}.data", options.floats), {})
    tokens = Value("input_ids", DataType.INT64, (1, "sequence_length"))
    mask = Value("attention_mask", DataType.INT64, (1, "total_sequence_length"))
    rope_length = constant("rope_length", np.zeros(1, np.int64))
    positions = constant("logits_positions", np.full(1, -1, np.int64))
    inputs, outputs = [tokens, mask], []
    shared = rotary(plan, tokens, mask, rope_length)
    hidden, embedding = embed(plan, tokens)
    residual = hidden
    hidden = norm(plan, "layers.0.input_norm", hidden)
    for i in range(decoder.layers):
        past = [cache(plan, f"past_key_values.{i}.{kind}", "past_sequence_length") for kind in ("key", "value")]
        present = [cache(plan, f"present.{i}.{kind}", "present_sequence_length") for kind in ("key", "value")]
        attended = attention(plan, i, hidden, shared, past, present)
        if i == decoder.layers - 1:
            # Mostly one position is asked for: what follows the last attention is computed for that alone.
            attended, residual = (op(plan, "Gather", [value, positions], {"axis": 1}) for value in (attended, residual))
        hidden, residual = add_norm(plan, f"layers.{i}.post_attention_norm", projection(plan, f"layers.{i}.o_proj", attended), residual)
        following = f"layers.{i + 1}.input_norm" if i + 1 < decoder.layers else "norm"
        hidden, residual = add_norm(plan, following, mlp(plan, i, hidden), residual)
        inputs += past
        outputs += present
    logits = Value("logits", DataType.FLOAT, (1, 1, decoder.vocab_size))
    head(plan, hidden, embedding, logits)
    # An embedding that is not tied is read by one operator only, so one of its two views goes unused.
    read = plan.tape.read()
    initializers = [value for value in (*plan.constants.values(), *plan.data.initializers) if value.name in read]
    optional = [replace(positions, shape=("logits_length",))] + ([rope_length] if rope_length.name in read else [])
    graph = Graph(plan.tape.nodes, [*inputs, *optional], [logits, *outputs], [*initializers, positions, *optional[1:]], OPSETS, IR_VERSION)
    return graph, plan.data


def rotary(plan: Plan, tokens: Value, mask: Value, rope_length: Value) -> Shared:
    """Sequence lengths, rotary tables and, for LongRoPE, the rows of the tables that the new tokens use.

    LongRoPE takes the short factors for a whole sequence of up to ``switch`` tokens and the long ones for a whole longer one. The
    tables hold the short rows 0..switch-1 and after them the long rows 0..context-1, so the choice is an offset of ``switch``: no table
    is copied or selected at run time on a CPU. It falls by the length after the call, or by ``rope_length`` where that is larger: who
    computes a long prompt in pieces says there how long it will be, so that the first pieces take the long factors as well.

    How the offset reaches the rotation depends on the provider. The CPU's GroupQueryAttention takes position_ids. CUDA's and WebGPU's
    ignore them, or did (docs/providers.md), and count by themselves: they get the T rows from the offset on as their whole
    table (a copy of T * dims * 2 bytes, 0.8 MB at 4096 tokens, for each call). DirectML's rotates nothing: RotaryEmbedding does.
    """
    rope, context = plan.decoder.rope, plan.context
    length = op(plan, "ReduceSum", [mask, const(plan, "axis_1", [1])], {"keepdims": 0})
    seqlens_k = op(plan, "Cast", [op(plan, "Sub", [length, const(plan, "one", [1])])], {"to": DataType.INT32})
    mask_length = op(plan, "Shape", [mask], {"start": 1, "end": 2})
    total = op(plan, "Cast", [mask_length], {"to": DataType.INT32})
    short = rope.switch if rope.switch is not None and context > rope.switch else context
    rows = short if short == context else short + context
    shape = (rows, rope.dims // 2)
    cos = table(plan.data, "rope.cos", shape, lambda: rope_rows(rope, short, rows)[0])
    sin = table(plan.data, "rope.sin", shape, lambda: rope_rows(rope, short, rows)[1])
    outside = plan.options.provider == "dml"
    start = op(plan, "Sub", [length, op(plan, "Shape", [tokens], {"start": 1, "end": 2})]) if outside else None
    if rows == short:
        return Shared(seqlens_k, total, cos, sin, start)
    final = op(plan, "Max", [length, rope_length])
    is_long = op(plan, "Greater", [final, const(plan, "rope_switch", [short])])
    offset = op(plan, "Where", [is_long, const(plan, "rope_switch", [short]), const(plan, "zero", [0])])
    if start is not None:
        return Shared(seqlens_k, total, cos, sin, op(plan, "Add", [start, offset]))
    if plan.options.provider != "cpu":
        bounds = [offset, op(plan, "Add", [offset, mask_length]), const(plan, "axis_0", [0])]
        return Shared(seqlens_k, total, op(plan, "Slice", [cos, *bounds]), op(plan, "Slice", [sin, *bounds]), None)
    stop = op(plan, "Add", [length, offset])
    start = op(plan, "Sub", [stop, op(plan, "Shape", [tokens], {"start": 1, "end": 2})])
    one = const(plan, "step", 1)
    positions = op(plan, "Range", [op(plan, "Squeeze", [start]), op(plan, "Squeeze", [stop]), one])
    return Shared(seqlens_k, total, cos, sin, op(plan, "Unsqueeze", [positions, const(plan, "axis_0", [0])]))


def rope_rows(rope: Rope, short: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin, each [rows, dims / 2]: ``short`` rows of the short frequencies, the rest of the long ones from position 0 on."""
    tables = [rope.cos_sin(short, long=False)]
    if rows > short:
        tables.append(rope.cos_sin(rows - short, long=True))
    return np.concatenate([cos for cos, _ in tables]), np.concatenate([sin for _, sin in tables])


def embed(plan: Plan, tokens: Value) -> tuple[Value, Matrix]:
    """floats [1, S, D], and the matrix it was gathered from."""
    decoder, fmt = plan.decoder, plan.scheme.format_for("embed_tokens", plan.decoder.hidden_size)
    weight = quantized(plan, "embed_tokens", ["embed_tokens"], fmt)
    gather = gather_in_steps if plan.options.provider == "dml" else gather_quantized
    hidden = gather(plan, tokens, weight)
    if decoder.hidden_size % fmt.group:
        # The last group is filled up in the file.
        bounds = [const(plan, "zero", [0]), const(plan, "hidden_size", [decoder.hidden_size]), const(plan, "axis_2", [2])]
        hidden = op(plan, "Slice", [hidden, *bounds])
    return hidden, weight


def gather_quantized(plan: Plan, tokens: Value, weight: Matrix) -> Value:
    """Rows of the matrix, filled up to whole groups."""
    fmt = weight.format
    # The operator wants [V, K]: the same bytes of the file that lm_head reads as [V, G, g] where it is tied.
    shape = (weight.shape[0], row_bytes(weight.shape[1], fmt, plan.data.floats)[0])
    rows = initializer(plan.data, "embed_tokens.rows", DataType.UINT8, shape, weight.offset)
    attributes = {"bits": fmt.bits, "block_size": fmt.group, "gather_axis": 0, "quantize_axis": 1}
    inputs = [rows, tokens, weight.scales, weight.zeros]
    return op(plan, "GatherBlockQuantized", inputs, attributes, domain=MICROSOFT, name="embed_tokens")


def gather_in_steps(plan: Plan, tokens: Value, weight: Matrix) -> Value:
    """The same of an 8-bit matrix where there is no GatherBlockQuantized: codes, zero points and scales gathered, ``(q - z) * s``."""
    if weight.format.bits != 8:
        raise TargetError(f"DirectML has no lookup in {weight.format.bits}-bit weights; take a scheme whose embedding has 8 bits")
    to, last = {"to": plan.data.floats}, const(plan, "axis_last", [-1])
    codes, scales, zeros = (op(plan, "Gather", [value, tokens], {"axis": 0}) for value in (weight.codes, weight.scales, weight.zeros))
    centred = op(plan, "Sub", [op(plan, "Cast", [codes], to), op(plan, "Unsqueeze", [op(plan, "Cast", [zeros], to), last])])
    weights = op(plan, "Mul", [centred, op(plan, "Unsqueeze", [scales, last])])
    return op(plan, "Reshape", [weights, const(plan, "rows_shape", [0, 0, -1])], name="embed_tokens")


def attention(plan: Plan, i: int, hidden: Value, shared: Shared, past: Sequence[Value], present: Sequence[Value]) -> Value:
    """[1, S, heads * head_dim]. Rotates queries and keys, appends to the cache and attends, all in one operator but on DirectML."""
    decoder, at = plan.decoder, f"layers.{i}"
    qkv = fused(plan, f"{at}.qkv_proj", [f"{at}.{p}_proj" for p in "qkv"], hidden)
    window = decoder.windows[i]
    attributes: Attributes = {
        "num_heads": decoder.heads,
        "kv_num_heads": decoder.kv_heads,
        "scale": float(1 / np.sqrt(decoder.head_dim)),
        "do_rotary": 0 if plan.options.provider == "dml" else 1,
        # The operator counts as Hugging Face does, the token itself included, from ONNX Runtime 1.24 on.
        "local_window_size": -1 if window is None or window >= plan.context else window,
    }
    inputs: list[Value | None]
    if plan.options.provider == "dml":
        sizes = const(plan, "qkv_sizes", [heads * decoder.head_dim for heads in (decoder.heads, decoder.kv_heads, decoder.kv_heads)])
        q, k, v = plan.tape.add("Split", [qkv, sizes], {"axis": -1}, outputs=3, name=f"{at}.qkv_split")
        q, k = rotated(plan, f"{at}.q_rotary", q, decoder.heads, shared), rotated(plan, f"{at}.k_rotary", k, decoder.kv_heads, shared)
        inputs = [q, k, v, *past, shared.seqlens_k, shared.total]
    else:
        inputs = [qkv, None, None, *past, shared.seqlens_k, shared.total, shared.cos, shared.sin, shared.positions]
        if plan.options.kv_cache == "int8":
            channels = (decoder.kv_heads * decoder.head_dim,)
            k_scale = table(plan.data, f"{at}.attention.k_scale", channels, lambda: plan.scales[i].keys)
            v_scale = table(plan.data, f"{at}.attention.v_scale", channels, lambda: plan.scales[i].values)
            inputs += [None, None, k_scale, v_scale]
            attributes = {**attributes, "kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    attended = Value(f"{at}.attention.output")
    plan.tape.add("GroupQueryAttention", inputs, attributes, outputs=[attended, *present], domain=MICROSOFT, name=f"{at}.attention")
    return attended


def rotated(plan: Plan, name: str, x: Value, heads: int, shared: Shared) -> Value:
    """x [1, S, heads * head_dim] with every head rotated. The operator gets whole heads: DirectML's knows no partial rotation."""
    dims, size = plan.decoder.rope.dims, plan.decoder.head_dim

    def turn(part: Value) -> Value:
        return op(plan, "RotaryEmbedding", [part, shared.positions, shared.cos, shared.sin], domain=MICROSOFT, name=name)

    def shaped(value: Value, *shape: int) -> Value:
        return op(plan, "Reshape", [value, const(plan, "shape_" + "_".join(map(str, shape)), [0, 0, *shape])])

    if dims == size:
        return turn(x)
    sizes = const(plan, "rotary_sizes", [dims, size - dims])
    part, rest = plan.tape.add("Split", [shaped(x, heads, size), sizes], {"axis": -1}, outputs=2, name=f"{name}.split")
    turned = shaped(turn(shaped(part, heads * dims)), heads, dims)
    return shaped(op(plan, "Concat", [turned, rest], {"axis": -1}), heads * size)


def mlp(plan: Plan, i: int, hidden: Value) -> Value:
    """down(silu(gate(x)) * up(x))."""
    at, size = f"layers.{i}", plan.decoder.intermediate_size
    gate_up = fused(plan, f"{at}.gate_up_proj", [f"{at}.gate_proj", f"{at}.up_proj"], hidden)
    sizes = const(plan, "gate_up_sizes", [size, size])
    gate, up = plan.tape.add("Split", [gate_up, sizes], {"axis": -1}, outputs=2, name=f"{at}.split")
    activated = op(plan, "QuickGelu", [gate], {"alpha": 1.0}, domain=MICROSOFT, name=f"{at}.silu")  # with alpha 1 it is SiLU
    return projection(plan, f"{at}.down_proj", op(plan, "Mul", [activated, up], name=f"{at}.mul"))


def head(plan: Plan, hidden: Value, embedding: Matrix, logits: Value) -> None:
    fmt = plan.scheme.format_for("lm_head", plan.decoder.hidden_size)
    if not plan.decoder.tied:
        weight = quantized(plan, "lm_head", ["lm_head"], fmt)
    elif fmt == embedding.format:
        weight = embedding
    else:
        weight = quantized(plan, "lm_head", ["embed_tokens"], fmt)
    if plan.data.floats is DataType.FLOAT:
        matmul(plan, "lm_head", weight, hidden, None, logits)
    else:
        product = matmul(plan, "lm_head", weight, hidden, None)
        plan.tape.add("Cast", [product], {"to": DataType.FLOAT}, name="logits", outputs=[logits])


def fused(plan: Plan, name: str, parts: Sequence[str], hidden: Value) -> Value:
    """The products with ``parts`` side by side: one operator where they have one format, else one each."""
    shapes = plan.decoder.weight_shapes()
    formats = {plan.scheme.format_for(part, shapes[part][1]) for part in parts}
    if len(formats) > 1:
        return op(plan, "Concat", [projection(plan, part, hidden) for part in parts], {"axis": -1}, name=name)
    return matmul(plan, name, quantized(plan, name, parts, formats.pop()), hidden, bias(plan, name, parts))


def projection(plan: Plan, name: str, hidden: Value) -> Value:
    return fused(plan, name, [name], hidden)


def bias(plan: Plan, name: str, parts: Sequence[str]) -> Value | None:
    shapes = plan.decoder.weight_shapes()
    if f"{parts[0]}.bias" not in shapes:
        return None
    return vector(plan.data, f"{name}.bias", [(f"{part}.bias", shapes[f"{part}.bias"]) for part in parts])


def matmul(plan: Plan, name: str, weight: Matrix, hidden: Value, added: Value | None, output: Value | None = None) -> Value:
    """hidden [1, S, K] times the transposed weight [N, K], plus ``added`` [N]."""
    n, k = weight.shape
    if more := filling(plan, weight.format, k):
        pads = const(plan, f"fill_{more * weight.format.group}", [0, 0, 0, 0, 0, more * weight.format.group])
        hidden, k = op(plan, "Pad", [hidden, pads], name=f"{name}.filled"), k + more * weight.format.group
    level = plan.options.accuracy_level
    attributes = {"K": k, "N": n, "bits": weight.format.bits, "block_size": weight.format.group, "accuracy_level": level}
    inputs: list[Value | None] = [hidden, weight.codes, weight.scales, weight.zeros]
    if added is not None and plan.options.provider == "dml":
        # DirectML's operator takes no bias.
        return op(plan, "Add", [op(plan, "MatMulNBits", inputs, attributes, domain=MICROSOFT, name=name), added], name=f"{name}.add")
    inputs += [None, added] if added is not None else []
    return plan.tape.add("MatMulNBits", inputs, attributes, outputs=1 if output is None else [output], domain=MICROSOFT, name=name)[0]


def norm(plan: Plan, name: str, hidden: Value) -> Value:
    attributes = {"axis": -1, "epsilon": plan.decoder.norm_eps, "stash_type": 1}
    return op(plan, "SimplifiedLayerNormalization", [hidden, norm_weight(plan, name)], attributes, name=name)


def add_norm(plan: Plan, name: str, hidden: Value, residual: Value) -> tuple[Value, Value]:
    """norm(hidden + residual) and hidden + residual."""
    inputs, attributes = [residual, hidden, norm_weight(plan, name)], {"epsilon": plan.decoder.norm_eps}
    normed, total = Value(f"{name}.output"), Value(f"{name}.sum")
    # Mean and deviation are left out by an empty name: DirectML's kernel is not chosen when they are asked for.
    outputs = [normed, Value(""), Value(""), total]
    plan.tape.add("SkipSimplifiedLayerNormalization", inputs, attributes, outputs=outputs, domain=MICROSOFT, name=name)
    return normed, total


def norm_weight(plan: Plan, name: str) -> Value:
    return vector(plan.data, f"{name}.weight", [(name, (plan.decoder.hidden_size,))])


def quantized(plan: Plan, name: str, parts: Sequence[str], fmt: Format) -> Matrix:
    shapes = plan.decoder.weight_shapes()
    pieces = [(part, (shapes[part][0], shapes[part][1])) for part in parts]
    return matrix(plan.data, name, pieces, fmt, filling=filling(plan, fmt, pieces[0][1][1]))


def filling(plan: Plan, fmt: Format, k: int) -> int:
    """Groups of zeros that follow in each row of a matrix of K inputs. DirectML's kernel wants whole bytes of zero points (kernels.py)."""
    return 1 if plan.options.provider == "dml" and fmt.bits == 4 and k % fmt.group == 0 and k // fmt.group % 2 else 0


def cache(plan: Plan, name: str, length: str) -> Value:
    return Value(name, plan.options.cached, (1, plan.decoder.kv_heads, length, plan.decoder.head_dim))


def const(plan: Plan, name: str, value: int | list[int]) -> Value:
    """An int64 initializer, made once for each name."""
    if name not in plan.constants:
        plan.constants[name] = constant(name, np.array(value, np.int64))
    return plan.constants[name]


def op(
    plan: Plan,
    kind: str,
    inputs: Sequence[Value | None],
    attributes: Attributes | None = None,
    *,
    domain: str = "",
    name: str | None = None,
) -> Value:
    return plan.tape.add(kind, inputs, attributes, domain=domain, name=name)[0]

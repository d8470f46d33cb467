"""What runs on the CPU before and after the NPU's parts: embeddings with all that depends on a position, and lm_head.

   input_ids        int32 [1, S]          PAD where a chunk is not full: after the last token
   past_seq_len     int32 [1, 1]          position of the last of these S, padding included (so onnxruntime-genai counts)
   total_seq_len    int32 [1]             not read; onnxruntime-genai gives the two lengths together or none
   rope_length      int64 [1]             LongRoPE beyond its switch only: how long the whole sequence will be
-> hidden.0, rope.cos, rope.sin, mask[.W], write (graph.py), and
   last             int64 [1]             which of the S is the last token

   hidden.P         float16 [1, S, D], last
-> logits           float32 [1, 1, V]     after the last token
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.engines.onnx_format.proto import Attributes, DataType, Graph, Tape, Value, constant
from edgekit.engines.onnx_format.weights import DataFile, Matrix, initializer, matrix, row_bytes, table, vector
from edgekit.engines.qnn.graph import IR_VERSION, MASKED, MICROSOFT, mask_name, windows
from edgekit.models.decoder import DecoderConfig, Rope
from edgekit.quant.scheme import Format, QuantScheme

OPSETS = {"": 21, MICROSOFT: 1}
DATA = "cpu.data"
PAD = -1
"""No token: onnxruntime-genai counts a prompt's tokens up to the first that is the padding, so it must be none that a prompt may hold."""


@dataclass(frozen=True)
class Form:
    """What the NPU reads. masked: what is added to a score that does not count. codes: scale and zero point of 16-bit codes by name; None
    for float16."""

    masked: float = MASKED
    codes: Mapping[str, tuple[float, int]] | None = None


@dataclass
class Stage:
    """One of the two graphs while it grows."""

    decoder: DecoderConfig
    scheme: QuantScheme
    context: int
    data: DataFile
    form: Form
    tape: Tape = field(default_factory=Tape)
    constants: dict[str, Value] = field(default_factory=dict)


FLOAT16 = Form()


def build_stages(
    decoder: DecoderConfig, scheme: QuantScheme, context: int, parts: int, form: Form = FLOAT16
) -> tuple[Graph, Graph, DataFile]:
    """The embeddings' graph, lm_head's, and the plan of the data file of both."""
    data = DataFile(DATA)
    stage = Stage(decoder, scheme, context, data, form)
    fmt = scheme.format_for("embed_tokens", decoder.hidden_size)
    embedding = weight_of(data, "embed_tokens", (decoder.vocab_size, decoder.hidden_size), fmt)
    before = embeddings(stage, embedding)
    after = lm_head(Stage(decoder, scheme, context, data, form), embedding, parts)
    return before, after, data


def needs_length(decoder: DecoderConfig, context: int) -> bool:
    """Whether sequences may lie on either side of the LongRoPE switch."""
    return decoder.rope.is_long(context)


def embeddings(stage: Stage, embedding: Matrix) -> Graph:
    decoder, context = stage.decoder, stage.context
    tokens = Value("input_ids", DataType.INT32, (1, "tokens"))
    past = Value("past_seq_len", DataType.INT32, (1, 1))
    total = Value("total_seq_len", DataType.INT32, (1,))
    length = Value("rope_length", DataType.INT64, (1,))
    ids = op(stage, "Cast", [tokens], {"to": DataType.INT64})
    count = op(stage, "Shape", [ids], {"start": 1, "end": 2})
    real = op(stage, "Cast", [op(stage, "Greater", [ids, const(stage, "pad", [PAD])])], {"to": DataType.INT64})
    kept = op(stage, "ReduceSum", [real, const(stage, "axis_1", [1])], {"keepdims": 0})
    last = output(stage, "Sub", [kept, const(stage, "one", [1])], Value("last", DataType.INT64, (1,)))
    embedded = rows(stage, embedding, op(stage, "Max", [ids, const(stage, "zero", [0])]))
    hidden = handed(stage, embedded, half("hidden.0", decoder.hidden_size))
    stop = op(stage, "Add", [reshape(stage, op(stage, "Cast", [past], {"to": DataType.INT64}), [1]), const(stage, "one", [1])])
    start = op(stage, "Sub", [stop, count])
    positions = span(stage, start, stop)
    where = [write(stage, positions)] if stage.form.codes is None else places(stage, start, stop)
    outputs = [hidden, *rotations(stage, positions, length), *masks(stage, positions), *where, last]
    inputs = [tokens, past, total, *([length] if needs_length(decoder, context) else [])]
    return finish(stage, inputs, outputs)


def rows(stage: Stage, weight: Matrix, ids: Value) -> Value:
    """float32 [1, S, D] of the embedding."""
    fmt = weight.format
    stored = initializer(
        stage.data,
        "embed_tokens.rows",
        DataType.UINT8,
        (weight.shape[0], row_bytes(weight.shape[1], fmt, stage.data.floats)[0]),
        weight.offset,
    )
    attributes = {"bits": fmt.bits, "block_size": fmt.group, "gather_axis": 0, "quantize_axis": 1}
    inputs = [stored, ids, weight.scales, weight.zeros]
    hidden = stage.tape.add("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT, name="embed_tokens")[0]
    size = stage.decoder.hidden_size
    if size % fmt.group == 0:
        return hidden
    # The last group is filled up in the file.
    return op(stage, "Slice", [hidden, const(stage, "zero", [0]), const(stage, "hidden_size", [size]), const(stage, "axis_2", [2])])


def rotations(stage: Stage, positions: Value, length: Value) -> list[Value]:
    """rope.cos and rope.sin. The tables hold the short rows and, where the context goes beyond the switch, after them the long ones."""
    rope, context = stage.decoder.rope, stage.context
    short = rope.switch if needs_length(stage.decoder, context) and rope.switch is not None else context
    at = positions
    if short < context:
        is_long = op(stage, "Greater", [length, const(stage, "switch", [short])])
        offset = op(stage, "Where", [is_long, const(stage, "switch", [short]), const(stage, "zero", [0])])
        # Padding of a short sequence may lie beyond the short rows; it is read by nobody, and must not be read from nowhere.
        at = op(stage, "Add", [positions, offset])
    count = short if short == context else short + context
    found = []
    for i, name in enumerate(("rope.cos", "rope.sin")):
        values = table(stage.data, f"{name}.table", (count, rope.dims // 2), lambda i=i: tables(rope, short, count)[i])  # type: ignore[misc]
        chosen = op(stage, "Unsqueeze", [op(stage, "Gather", [values, at], {"axis": 0}), const(stage, "axes_01", [0, 1])])
        found.append(handed(stage, chosen, Value(name, DataType.FLOAT16, (1, 1, "tokens", rope.dims // 2))))
    return found


def tables(rope: Rope, short: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin, each [count, dims / 2]: ``short`` rows of the short frequencies, the rest of the long ones from position 0 on."""
    both = [rope.cos_sin(short, long=False)]
    if count > short:
        both.append(rope.cos_sin(count - short, long=True))
    return np.concatenate([cos for cos, _ in both]), np.concatenate([sin for _, sin in both])


def masks(stage: Stage, positions: Value) -> list[Value]:
    """For each kind of layer, 0 where a token sees a place of the cache: up to its own, and within the window."""
    places = const(stage, "places", list(range(stage.context)))
    own = op(stage, "Unsqueeze", [positions, const(stage, "axis_1", [1])])
    behind = op(stage, "LessOrEqual", [places, own])
    found = []
    for window in windows(stage.decoder, stage.context):
        seen = behind
        if window is not None:
            near = op(stage, "Greater", [places, op(stage, "Sub", [own, const(stage, f"window_{window}", [window])])])
            seen = op(stage, "And", [behind, near])
        added = op(stage, "Where", [seen, float32(stage, "seen", 0.0), float32(stage, "masked", stage.form.masked)])
        shape = Value(mask_name(window), DataType.FLOAT16, (1, 1, "tokens", stage.context))
        found.append(handed(stage, op(stage, "Unsqueeze", [added, const(stage, "axes_01", [0, 1])]), shape))
    return found


def write(stage: Stage, positions: Value) -> Value:
    """int64 [1, KV, S, 3]: 0, the head, the position."""
    heads = stage.decoder.kv_heads
    at = reshape(stage, positions, [1, 1, -1, 1])
    zeros = op(stage, "Sub", [at, at])
    across = Value("heads", DataType.INT64, (1, heads, 1, 1), np.arange(heads, dtype="<i8").tobytes())
    stage.constants["heads"] = across
    head = op(stage, "Add", [across, zeros])
    every = op(stage, "Sub", [head, head])
    found = Value("write", DataType.INT64, (1, heads, "tokens", 3))
    return stage.tape.add("Concat", [every, head, op(stage, "Add", [at, every])], {"axis": -1}, outputs=[found])[0]


def places(stage: Stage, start: Value, stop: Value) -> list[Value]:
    """place and fresh."""
    every = const(stage, "places", list(range(stage.context)))
    most = op(stage, "Sub", [op(stage, "Sub", [stop, start]), const(stage, "one", [1])])
    inside = op(stage, "Min", [op(stage, "Max", [op(stage, "Sub", [every, start]), const(stage, "zero", [0])]), most])
    new = op(stage, "And", [op(stage, "GreaterOrEqual", [every, start]), op(stage, "Less", [every, stop])])
    flags = op(stage, "Cast", [reshape(stage, new, [1, 1, -1, 1])], {"to": DataType.UINT8})
    place = Value("place", DataType.INT32, (stage.context,))
    fresh = Value("fresh", DataType.UINT8, (1, 1, stage.context, 1))
    return [output(stage, "Cast", [inside], place), output(stage, "Identity", [flags], fresh)]


def lm_head(stage: Stage, embedding: Matrix, parts: int) -> Graph:
    decoder, data = stage.decoder, stage.data
    hidden = half(f"hidden.{parts}", decoder.hidden_size)
    last = Value("last", DataType.INT64, (1,))
    if stage.form.codes is None:
        chosen = op(stage, "Cast", [op(stage, "Gather", [hidden, last], {"axis": 1})], {"to": DataType.FLOAT})
    else:
        hidden = replace(hidden, dtype=DataType.UINT16)
        chosen = op(stage, "DequantizeLinear", [op(stage, "Gather", [hidden, last], {"axis": 1}), *steps(stage, hidden.name)])
    weight = vector(data, "norm.weight", [("norm", (decoder.hidden_size,))])
    attributes: Attributes = {"axis": -1, "epsilon": decoder.norm_eps, "stash_type": 1}
    normed = stage.tape.add("SimplifiedLayerNormalization", [chosen, weight], attributes, name="norm")[0]
    fmt = stage.scheme.format_for("lm_head", decoder.hidden_size)
    if not decoder.tied:
        head = weight_of(data, "lm_head", embedding.shape, fmt)
    elif fmt == embedding.format:
        head = embedding
    else:
        head = matrix(data, "lm_head", [("embed_tokens", embedding.shape)], fmt)
    n, k = head.shape
    sizes = {"K": k, "N": n, "bits": fmt.bits, "block_size": fmt.group, "accuracy_level": 0}
    inputs = [normed, head.codes, head.scales, head.zeros]
    logits = Value("logits", DataType.FLOAT, (1, 1, decoder.vocab_size))
    stage.tape.add("MatMulNBits", inputs, sizes, outputs=[logits], domain=MICROSOFT, name="lm_head")
    return finish(stage, [hidden, last], [logits])


def weight_of(data: DataFile, name: str, shape: tuple[int, int], fmt: Format) -> Matrix:
    return matrix(data, name, [(name, shape)], fmt)


def finish(stage: Stage, inputs: list[Value], outputs: list[Value]) -> Graph:
    read = stage.tape.read()
    initializers = [value for value in (*stage.constants.values(), *stage.data.initializers) if value.name in read]
    return Graph(stage.tape.nodes, inputs, outputs, initializers, OPSETS, IR_VERSION)


def half(name: str, size: int) -> Value:
    return Value(name, DataType.FLOAT16, (1, "tokens", size))


def span(stage: Stage, start: Value, stop: Value) -> Value:
    """start, ..., stop - 1."""
    step = stage.constants.setdefault("step", constant("step", np.array(1, np.int64)))
    return op(stage, "Range", [op(stage, "Squeeze", [start]), op(stage, "Squeeze", [stop]), step])


def reshape(stage: Stage, value: Value, sizes: list[int]) -> Value:
    return op(stage, "Reshape", [value, const(stage, "shape_" + "_".join(map(str, sizes)), sizes)])


def const(stage: Stage, name: str, value: list[int]) -> Value:
    """An int64 initializer, made once for each name."""
    if name not in stage.constants:
        stage.constants[name] = constant(name, np.array(value, np.int64))
    return stage.constants[name]


def float32(stage: Stage, name: str, value: float) -> Value:
    if name not in stage.constants:
        stage.constants[name] = Value(name, DataType.FLOAT, (), np.array(value, "<f4").tobytes())
    return stage.constants[name]


def handed(stage: Stage, value: Value, to: Value) -> Value:
    """``value`` as the NPU reads it."""
    if stage.form.codes is None:
        return output(stage, "Cast", [value], to)
    return output(stage, "QuantizeLinear", [value, *steps(stage, to.name)], replace(to, dtype=DataType.UINT16))


def steps(stage: Stage, name: str) -> list[Value]:
    """Scale and zero point of the codes of ``name``."""
    assert stage.form.codes is not None
    scale, zero = stage.form.codes[name]
    stage.constants[f"{name}.zero"] = Value(f"{name}.zero", DataType.UINT16, (), np.array(zero, "<u2").tobytes())
    return [float32(stage, f"{name}.scale", scale), stage.constants[f"{name}.zero"]]


def output(stage: Stage, kind: str, inputs: list[Value], value: Value) -> Value:
    """As ``op``, into a value of the graph; a Cast to its type."""
    attributes = {"to": int(value.dtype)} if kind == "Cast" and value.dtype is not None else {}
    return stage.tape.add(kind, inputs, attributes, outputs=[value], name=value.name)[0]


def op(stage: Stage, kind: str, inputs: list[Value], attributes: Attributes | None = None) -> Value:
    return stage.tape.add(kind, inputs, attributes)[0]

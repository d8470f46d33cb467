"""One part of a model as Genie, the runtime in Qualcomm's AI Runtime, opens it: embedding and lm_head are on the NPU too.

    input_ids               int32 [1, S]              of the first part; the others get hidden_p, float16 [1, S, D]
    attention_mask          float16 [1, 1, S, C]      0 where a token sees a place, -1000 elsewhere; the S new ones are the last places
    position_ids_cos, _sin  float16 [1, 1, S, dims / 2]
    past_key_i_in           float16 [KV, 1, hd, C - S]
    past_value_i_in         float16 [KV, 1, C - S, hd]
 -> past_key_i_out, past_value_i_out                  of the S new ones; Genie puts them into its cache
    hidden_(p + 1)          of the last part logits, float16 [1, S, V]

Genie computes masks and rotations itself, from genie_config.json. Names and shapes are those it looks for.
"""

from pathlib import Path

from edgekit.engines.onnx_format.proto import DataType, External, Graph, Value
from edgekit.engines.onnx_format.weights import initializer, matrix, reserve
from edgekit.engines.qnn.graph import F16, Half, Part, attended, finish, heads, matmul, mlp, norm, op, projection
from edgekit.models import Model
from edgekit.quant import dequantize
from edgekit.quant.scheme import QuantizedTensor
from edgekit.quantized import Matrix, Quantizer, stream

ROWS = "embed_tokens.rows"


def build(part: Part, tokens: int) -> Graph:
    """The graph of ``part`` for ``tokens`` new tokens at a time."""
    decoder, context = part.decoder, part.context
    half = Half(part, tokens)
    mask = Value("attention_mask", F16, (1, 1, tokens, context))
    cos, sin = (Value(f"position_ids_{name}", F16, (1, 1, tokens, decoder.rope.dims // 2)) for name in ("cos", "sin"))
    given, hidden = start(half)
    inputs, outputs = [given, mask, cos, sin], list[Value]()
    for i in range(part.first, part.last):
        past, present = caches(part, i, context - tokens, "in"), caches(part, i, tokens, "out")
        joined = attention(half, i, norm(half, f"layers.{i}.input_norm", hidden), (cos, sin, mask), past, present)
        hidden = op(half, "Add", [hidden, joined])
        gated = mlp(half, i, norm(half, f"layers.{i}.post_attention_norm", hidden))
        handed = i == part.last - 1 and part.last < decoder.layers
        final = [Value(f"hidden_{part.index + 1}", F16, (1, tokens, decoder.hidden_size))] if handed else 1
        hidden = half.tape.add("Add", [hidden, gated], outputs=final)[0]
        inputs += past
        outputs += present
    if part.last == decoder.layers:
        hidden = lm_head(half, norm(half, "norm", hidden))
    return finish(half, inputs, [hidden, *outputs])


def caches(part: Part, layer: int, length: int, which: str) -> tuple[Value, Value]:
    kv, size = part.decoder.kv_heads, part.decoder.head_dim
    return (
        Value(f"past_key_{layer}_{which}", F16, (kv, 1, size, length)),
        Value(f"past_value_{layer}_{which}", F16, (kv, 1, length, size)),
    )


def start(half: Half) -> tuple[Value, Value]:
    """What the part is given, and the first hidden state made of it."""
    part, decoder = half.part, half.part.decoder
    size = (1, half.tokens, decoder.hidden_size)
    if part.first:
        hidden = Value(f"hidden_{part.index}", F16, size)
        return hidden, hidden
    if ROWS not in part.vectors:
        shape = (decoder.vocab_size, decoder.hidden_size)
        offset = reserve(part.data, 2 * shape[0] * shape[1])
        part.vectors[ROWS] = initializer(part.data, ROWS, DataType.FLOAT16, shape, offset)
    tokens = Value("input_ids", DataType.INT32, (1, half.tokens))
    return tokens, op(half, "Gather", [part.vectors[ROWS], tokens], {"axis": 0})


def attention(
    half: Half, i: int, hidden: Value, shared: tuple[Value, Value, Value], past: tuple[Value, Value], present: tuple[Value, Value]
) -> Value:
    """[1, S, D]. shared: cos, sin and mask."""
    cos, sin, mask = shared
    q, k, v = heads(half, i, hidden, cos, sin)
    half.tape.add("Transpose", [k], {"perm": (1, 0, 3, 2)}, outputs=[present[0]])
    half.tape.add("Transpose", [v], {"perm": (1, 0, 2, 3)}, outputs=[present[1]])
    keys = op(half, "Concat", [past[0], present[0]], {"axis": 3})
    values = op(half, "Concat", [past[1], present[1]], {"axis": 2})
    return projection(half, f"layers.{i}.o_proj", attended(half, q, keys, values, mask, (half.part.decoder.kv_heads, 1)))


def lm_head(half: Half, hidden: Value) -> Value:
    part, decoder = half.part, half.part.decoder
    if "lm_head" not in part.matrices:
        name = "embed_tokens" if decoder.tied else "lm_head"
        rows = [(name, (decoder.vocab_size, decoder.hidden_size))]
        part.matrices["lm_head"] = matrix(part.data, "lm_head", rows, part.scheme.format_for("lm_head", decoder.hidden_size))
    logits = Value("logits", F16, (1, half.tokens, decoder.vocab_size))
    return matmul(half, "lm_head", hidden, part.matrices["lm_head"], [logits])


def write_embedding(part: Part, model: Model, folder: Path, quantizer: Quantizer) -> None:
    """The rows of the first part: the quantized embedding as other engines hold it, each value of it as the nearest float16, in which
    they hand it to the NPU as well. Raises CheckpointError from reading the weights."""
    rows = part.vectors[ROWS]
    assert isinstance(rows.content, External)
    path, offset = folder / part.data.name, rows.content.offset

    def take(m: Matrix, first: int, block: QuantizedTensor) -> int:
        values = dequantize(block).astype("<f2")
        with path.open("r+b") as file:  # each thread its own position
            file.seek(offset + 2 * first * m.shape[1])
            file.write(values.data)
        return values.nbytes

    shape = (part.decoder.vocab_size, part.decoder.hidden_size)
    stream(model, [Matrix("embed_tokens", shape, part.scheme.format_for("embed_tokens", shape[1]))], take, quantizer, lambda size: None)


def embedding_bits(part: Part) -> float:
    """Storage for each weight of a part that holds the embedding."""
    rows = part.decoder.vocab_size * part.decoder.hidden_size
    others = sum(m.shape[0] * m.shape[1] for m in part.data.matrices)
    return (16 * rows + part.data.bits_per_weight * others) / (rows + others)

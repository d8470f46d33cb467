"""What lies in model.onnx and model.onnx.data, read back with onnx_ir."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from checkpoints import Variant, make_checkpoint
from edgekit import quantized
from edgekit.engines.onnx.export import check, export, footprint
from edgekit.errors import CheckpointError, TargetError
from edgekit.progress import silent
from edgekit.quant import concatenate, dequantize, quantize
from edgekit.quant.scheme import Format, QuantizedTensor, QuantScheme, scheme
from onnx_artifact import FLOAT32, Built, build, open_variant, target

Array = NDArray[np.generic]


def read(built: Built) -> ir.Model:
    return ir.load(built.directory / "model.onnx")


def nodes(graph: ir.Model, kind: str) -> dict[str, ir.Node]:
    return {str(node.name): node for node in graph.graph if node.op_type == kind}


def array(value: ir.Value | None) -> Array:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def expected(built: Built, name: str) -> QuantizedTensor:
    """The portable weight behind a product of the graph, quantized anew."""
    decoder, layer = built.model.decoder, name.rpartition(".")[0]
    parts = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}.get(name.rpartition(".")[2])
    names = [f"{layer}.{part}" for part in parts] if parts else ["embed_tokens" if name == "lm_head" and decoder.tied else name]
    fmt = built.scheme.format_of(name)
    return concatenate([quantize(built.model.tensor(n), fmt, name=n) for n in names])


def plain(codes: Array, scales: Array, zeros: Array, bits: int, k: int) -> NDArray[np.float32]:
    """``(q - z) * s`` from the operator's inputs, by ONNX Runtime's documentation and none of our code."""
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
        zeros = np.stack([zeros & 15, zeros >> 4], -1).reshape(len(zeros), -1)[:, : scales.shape[1]]
    weight = (codes.astype(np.float32) - zeros.astype(np.float32)[..., None]) * scales[..., None]
    return weight.reshape(len(weight), -1)[:, :k].astype(np.float32)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("variant", ["phi3-longrope-partial-tied", "phi3-ragged", "qwen2", "mistral-head-dim"])
def test_weights_read_back_are_the_portable_ones(tmp_path: Path, variant: str, group: int) -> None:
    built = build(tmp_path, variant, grid=None, quant=scheme(f"int4-g{group}"))
    products = nodes(read(built), "MatMulNBits")
    assert len(products) == 4 * built.model.decoder.layers + 1
    for name, node in products.items():
        want = expected(built, name)
        codes, scales, zeros = (array(node.inputs[i]) for i in (1, 2, 3))
        bits, k = node.attributes["bits"].as_int(), node.attributes["K"].as_int()
        assert (bits, node.attributes["block_size"].as_int()) == (want.format.bits, group)
        assert (node.attributes["N"].as_int(), k) == want.shape
        assert np.array_equal(codes, want.codes)
        assert scales.dtype == np.float32 and np.array_equal(scales, want.scales)
        assert np.array_equal(plain(codes, scales, zeros, bits, k), dequantize(want))
    (gather,) = nodes(read(built), "GatherBlockQuantized").values()
    want = expected(built, "embed_tokens")
    rows, scales, zeros = (array(gather.inputs[i]) for i in (0, 2, 3))
    codes = rows.reshape(want.codes.shape)
    assert np.array_equal(plain(codes, scales, zeros, 8, want.shape[1]), dequantize(want))


def test_norms_and_biases_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    built = build(tmp_path, "qwen2", grid=None)
    held = read(built).graph.initializers
    for name in ("layers.0.input_norm", "layers.1.post_attention_norm", "norm"):
        assert np.array_equal(array(held[f"{name}.weight"]), built.model.tensor(name))
    biases = [built.model.tensor(f"layers.1.{p}_proj.bias") for p in "qkv"]
    assert np.array_equal(array(held["layers.1.qkv_proj.bias"]), np.concatenate(biases))


def test_rotary_tables_hold_short_rows_then_long_rows(tmp_path: Path) -> None:
    built = build(tmp_path, "phi3-longrope")
    rope, held = built.model.decoder.rope, read(built).graph.initializers
    short, long = rope.cos_sin(24, long=False), rope.cos_sin(96, long=True)
    for i, name in enumerate(("rope.cos", "rope.sin")):
        assert np.array_equal(array(held[name]), np.concatenate([short[i], long[i]]))


def test_a_context_within_the_switch_needs_no_long_rows(tmp_path: Path) -> None:
    built = build(tmp_path, "phi3-longrope", context=24)
    held = read(built).graph.initializers
    assert array(held["rope.cos"]).shape == (24, 16) and "rope_length" not in held


def test_tied_embeddings_lie_in_the_file_once(tmp_path: Path) -> None:
    tied = read(build(tmp_path, "qwen2-tied")).graph.initializers
    rows, codes = (tied[name].const_value for name in ("embed_tokens.rows", "embed_tokens.codes"))
    assert isinstance(rows, ir.ExternalTensor) and isinstance(codes, ir.ExternalTensor)
    assert (rows.offset, rows.length) == (codes.offset, codes.length)
    assert not any(name.startswith("lm_head") for name in tied)


def test_the_graph_holds_no_unused_initializer(tmp_path: Path) -> None:
    graph = read(build(tmp_path, "phi3-longrope")).graph
    assert [name for name, value in graph.initializers.items() if not value.uses()] == []


def test_offsets_are_aligned_and_do_not_overlap(tmp_path: Path) -> None:
    built = build(tmp_path, Variant("llama", {"vocab_size": 9000, "tie_word_embeddings": True}), grid=None)
    size = (built.directory / "model.onnx.data").stat().st_size
    end = 0
    held = [v.const_value for name, v in read(built).graph.initializers.items() if name != "embed_tokens.rows"]
    regions = sorted((t.offset, t.length) for t in held if isinstance(t, ir.ExternalTensor))
    for offset, length in regions:
        assert offset is not None and length is not None
        assert offset >= end and offset % (4096 if length >= 1 << 20 else 64) == 0
        end = offset + length
    assert end == size and any(length is not None and length >= 1 << 20 for _, length in regions)


def test_bytes_are_the_same_every_time_and_for_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, block in (("a", quantized.BLOCK), ("b", 1000)):
        monkeypatch.setattr(quantized, "BLOCK", block)
        (tmp_path / folder).mkdir()
        build(tmp_path / folder, "phi3-longrope-partial-tied", grid=None)
    files = ["model.onnx", "model.onnx.data", "genai_config.json"]
    a, b = (tmp_path / folder / "artifact" for folder in "ab")
    assert sorted(p.name for p in a.iterdir() if p.name in files) == sorted(files)
    for name in files:
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert str(tmp_path).encode() not in (a / "model.onnx").read_bytes()


def test_progress_counts_up_to_the_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "BLOCK", 4000)
    seen: list[tuple[str, int, int]] = []
    built = build(tmp_path, "llama", progress=lambda *call: seen.append(call))
    done = [d for _, d, _ in seen]
    size = (built.directory / "model.onnx.data").stat().st_size
    assert {(stage, total) for stage, _, total in seen} == {("quantize", size)}
    assert done == sorted(done) and done[-1] == size and len(set(done)) > 50


def test_bits_per_weight_is_what_the_file_takes(tmp_path: Path) -> None:
    built = build(tmp_path, "llama3", quant=scheme("int4-g128"))
    graph = read(built).graph.initializers
    matrices = [array(v).nbytes for name, v in graph.items() if name.endswith((".codes", ".scales", ".zeros"))]
    weights_of = [np.prod(s) for s in built.model.decoder.weight_shapes().values() if len(s) == 2]
    assert built.exported.bits_per_weight == pytest.approx(8 * sum(matrices) / sum(weights_of))


@dataclass(frozen=True)
class Mixed(QuantScheme):
    """Some tensors finer than their kind."""

    def format_of(self, weight: str) -> Format:
        return Format(8, 32) if weight in ("layers.0.v_proj", "layers.1.down_proj") else super().format_of(weight)


def test_parts_of_different_formats_are_not_fused(tmp_path: Path) -> None:
    mixed = Mixed("mixed", Format(4, 32), embedding=Format(8, 32), lm_head=Format(8, 64))
    built = build(tmp_path, "qwen2-tied", grid=None, quant=mixed)
    products = nodes(read(built), "MatMulNBits")
    assert {n: products[n].attributes["bits"].as_int() for n in ("layers.0.q_proj", "layers.0.v_proj", "layers.1.down_proj")} == {
        "layers.0.q_proj": 4,
        "layers.0.v_proj": 8,
        "layers.1.down_proj": 8,
    }
    assert "layers.1.qkv_proj" in products
    assert products["lm_head"].attributes["block_size"].as_int() == 64


@pytest.mark.parametrize(
    ("config", "dims"),
    [
        ({"num_attention_heads": 16, "num_key_value_heads": 16}, 8),
        ({"head_dim": 24}, 24),
        ({"partial_rotary_factor": 0.25}, 8),
    ],
)
def test_head_sizes_the_operator_cannot_rotate_are_refused(tmp_path: Path, config: dict[str, object], dims: int) -> None:
    model = open_variant(tmp_path, Variant("phi3" if "partial_rotary_factor" in config else "llama", config))
    with pytest.raises(TargetError, match=rf"multiple of 16 dimensions; test has {dims}\."):
        check(model, scheme("int4-g32"), target())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"accuracy": 4}, "unknown key 'accuracy'; allowed: accuracy_level, provider, precision"), ({"accuracy_level": 3}, "accuracy_level")],
)
def test_unknown_options_are_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    model = open_variant(tmp_path, "llama")
    with pytest.raises(TargetError, match=message):
        check(model, scheme("int4-g32"), target(dict(options)))


def test_weights_that_are_not_finite_stop_the_export(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "llama")
    model = open_variant(tmp_path / "model", "llama", grid=None)
    info = model.checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]
    with info.file.open("r+b") as file:
        file.seek(info.begin)
        file.write(b"\xc0\x7f")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"layers\.1\.down_proj"):
        export(model, scheme("int4-g32"), target(), tmp_path / "out", silent)


@pytest.mark.parametrize("variant", ["phi3-longrope-partial-tied", "qwen2"])
def test_the_footprint_is_what_is_written(tmp_path: Path, variant: str) -> None:
    built = build(tmp_path, variant)
    size = footprint(built.model, built.scheme, target(FLOAT32))
    decoder = built.model.decoder
    assert size.weights == (built.directory / "model.onnx.data").stat().st_size
    assert size.cache == 2 * 4 * decoder.layers * decoder.kv_heads * decoder.head_dim


@pytest.mark.parametrize("variant", ["phi3-window", "mistral-window", "qwen2-window", "phi3-longrope-su", "qwen2"])
def test_requirements_follow_the_window(tmp_path: Path, variant: str) -> None:
    built = build(tmp_path, variant)
    # A window at or beyond the context hides nothing, and the graph has none.
    windowed = variant in ("phi3-window", "mistral-window", "qwen2-window")
    assert built.exported.engine_requires == {"onnxruntime": "1.24" if windowed else "1.23"}
    sizes = [node.attributes["local_window_size"].as_int() for node in nodes(read(built), "GroupQueryAttention").values()]
    assert any(size > 0 for size in sizes) == windowed


def test_genai_config(tmp_path: Path) -> None:
    built = build(tmp_path, Variant("mistral", {"sliding_window": 12, "head_dim": 64}), stop=[7, 9])
    config = json.loads((built.directory / "genai_config.json").read_text(encoding="utf-8"))
    model = config["model"]
    assert model["eos_token_id"] == [7, 9] and model["context_length"] == 96 and model["vocab_size"] == 320
    assert model["decoder"]["head_size"] == 64 and "sliding_window" not in model["decoder"]
    assert config["search"]["max_length"] == 96 and config["search"]["past_present_share_buffer"] is True

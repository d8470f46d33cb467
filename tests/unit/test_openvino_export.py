"""What lies in openvino_model.xml and .bin, read back with OpenVINO, and that its CPU plugin fuses it."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("openvino")

import openvino

import edgekit
from checkpoints import VARIANTS, Variant, make_checkpoint
from edgekit import quantized
from edgekit.companions import read_companions, write_companions
from edgekit.engines.openvino.export import check, export, footprint
from edgekit.errors import CheckpointError, EngineError, EngineMissing, TargetError
from edgekit.progress import silent
from edgekit.quant import concatenate, dequantize, quantize
from edgekit.quant.scheme import Format, QuantizedTensor, QuantScheme, scheme
from openvino_artifact import EXACT, Built, build, open_variant, target
from tiny_artifact import write_target

Array = NDArray[np.generic]


def constants(built: Built) -> dict[str, "openvino.op.Constant"]:
    return {n.get_friendly_name(): n for n in built.read().get_ops() if n.get_type_name() == "Constant"}


def nibbles(node: "openvino.op.Constant") -> Array:
    """Of a 4-bit constant, one value each, as OpenVINO's own Convert gives them."""
    model = openvino.Model([openvino.opset13.convert(node, openvino.Type.i32)], [], "read")
    found: Array = openvino.Core().compile_model(model, "CPU")([])[0]
    return found


def expected(built: Built, name: str) -> QuantizedTensor:
    """The portable weight behind a matrix of the graph, quantized anew."""
    decoder, layer = built.model.decoder, name.rpartition(".")[0]
    parts = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}.get(name.rpartition(".")[2])
    names = [f"{layer}.{part}" for part in parts] if parts else ["embed_tokens" if name == "lm_head" and decoder.tied else name]
    fmt = built.scheme.format_of(name)
    return concatenate([quantize(built.model.tensor(n), fmt, name=n) for n in names])


def matrices(held: dict[str, "openvino.op.Constant"]) -> list[str]:
    return [name.removesuffix(".codes") for name in held if name.endswith(".codes")]


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("variant", ["phi3-longrope-partial-tied", "phi3-ragged", "qwen2", "mistral-head-dim"])
def test_weights_read_back_are_the_portable_ones(tmp_path: Path, variant: str, group: int) -> None:
    built = build(tmp_path, variant, grid=None, quant=scheme(f"int4-g{group}"))
    held = constants(built)
    assert len(matrices(held)) == 4 * built.model.decoder.layers + (1 if built.model.decoder.tied else 2)
    for name in matrices(held):
        want = expected(built, name)
        codes, scales, zeros = (held[f"{name}.{part}"] for part in ("codes", "scales", "zeros"))
        stored = {4: openvino.Type.u4, 8: openvino.Type.u8}[want.format.bits]
        assert codes.get_element_type() == zeros.get_element_type() == stored and scales.get_element_type() == openvino.Type.f16
        q, z, s = nibbles(codes), nibbles(zeros), scales.get_data()
        assert np.array_equal(z[..., 0], want.zeros) and np.array_equal(s[..., 0], want.scales)
        plain = (q.astype(np.float32) - z) * s.astype(np.float32)
        assert np.array_equal(plain.reshape(len(q), -1)[:, : want.shape[1]], dequantize(want))


def test_norms_and_biases_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    built = build(tmp_path, "qwen2", grid=None)
    held = constants(built)
    for name in ("layers.0.input_norm", "layers.1.post_attention_norm", "norm"):
        assert np.array_equal(held[f"{name}.weight"].get_data().reshape(-1), built.model.tensor(name))
    biases = [built.model.tensor(f"layers.1.{p}_proj.bias") for p in "qkv"]
    assert np.array_equal(held["layers.1.qkv_proj.bias"].get_data().reshape(-1), np.concatenate(biases))


def test_tied_embeddings_lie_in_the_file_once(tmp_path: Path) -> None:
    held = constants(build(tmp_path, "qwen2-tied"))
    assert "embed_tokens.codes" in held and not any(name.startswith("lm_head") for name in held)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_cpu_plugin_fuses_every_pattern(tmp_path: Path, variant: str) -> None:
    """One operator for each product, norm, rotation and attention: no weight is ever unpacked to floats."""
    built = build(tmp_path, variant)
    compiled = openvino.Core().compile_model(built.read(), "CPU")
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ordered_ops()]
    layers = built.model.decoder.layers
    counts = {kind: kinds.count(kind) for kind in ("FullyConnected", "RMS", "RoPE", "ScaledDotProductAttention", "MemoryInput")}
    wanted = {"FullyConnected": 4 * layers + 1, "RMS": 2 * layers + 1, "RoPE": 2 * layers}
    assert counts == {**wanted, "ScaledDotProductAttention": layers, "MemoryInput": 2 * layers}


def test_offsets_are_aligned_and_do_not_overlap(tmp_path: Path) -> None:
    built = build(tmp_path, Variant("llama", {"vocab_size": 9000, "tie_word_embeddings": True}), grid=None)
    size = (built.directory / "openvino_model.bin").stat().st_size
    regions = []
    for layer in ElementTree.parse(built.directory / "openvino_model.xml").iter("layer"):
        if layer.attrib["type"] == "Const" and "." in layer.attrib["name"] and not layer.attrib["name"].startswith("Constant"):
            data = layer.find("data")
            assert data is not None
            regions.append((int(data.attrib["offset"]), int(data.attrib["size"])))
    end = 0
    for offset, length in sorted(regions):
        assert offset >= end and offset % (4096 if length >= 1 << 20 else 64) == 0
        end = offset + length
    assert end == size and any(length >= 1 << 20 for _, length in regions)


@pytest.mark.parametrize("variant", ["phi3-longrope-partial-tied", "llama-ragged"])
def test_bytes_are_the_same_every_time_and_for_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    """llama-ragged has an odd number of groups a row: two blocks share a byte of zero points."""
    for folder, block in (("a", quantized.BLOCK), ("b", 100), ("c", 700)):
        monkeypatch.setattr(quantized, "BLOCK", block)
        (tmp_path / folder).mkdir()
        build(tmp_path / folder, variant, grid=None)
    first, *others = (tmp_path / folder / "artifact" for folder in "abc")
    for path in first.iterdir():
        assert all(path.read_bytes() == (other / path.name).read_bytes() for other in others), path.name
    assert str(tmp_path).encode() not in (first / "openvino_model.xml").read_bytes()


def test_progress_counts_up_to_the_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "BLOCK", 4000)
    seen: list[tuple[str, int, int]] = []
    built = build(tmp_path, "llama", progress=lambda *call: seen.append(call))
    done = [d for _, d, _ in seen]
    size = (built.directory / "openvino_model.bin").stat().st_size
    assert {(stage, total) for stage, _, total in seen} == {("quantize", size)}
    assert done == sorted(done) and done[-1] == size and len(set(done)) > 50


@dataclass(frozen=True)
class Mixed(QuantScheme):
    """Some tensors finer than their kind."""

    def format_of(self, weight: str) -> Format:
        return Format(8, 32) if weight in ("layers.0.v_proj", "layers.1.down_proj") else super().format_of(weight)


def test_parts_of_different_formats_are_not_fused(tmp_path: Path) -> None:
    mixed = Mixed("mixed", Format(4, 32), embedding=Format(8, 32), lm_head=Format(8, 64))
    held = constants(build(tmp_path, "qwen2-tied", grid=None, quant=mixed))
    kinds = {name: held[f"{name}.codes"].get_element_type() for name in ("layers.0.q_proj", "layers.0.v_proj", "layers.1.down_proj")}
    assert kinds == {"layers.0.q_proj": openvino.Type.u4, "layers.0.v_proj": openvino.Type.u8, "layers.1.down_proj": openvino.Type.u8}
    assert "layers.1.qkv_proj.codes" in held and list(held["lm_head.codes"].get_output_shape(0))[2] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": 4}, "unknown key 'accuracy'; allowed: device, precision, "),
        ({"kv_cache": "int8"}, "kv_cache"),
        ({"device": "GPU"}, 'measured on CPUs only; set precision = "float16"'),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
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


@pytest.mark.parametrize("variant", ["phi3-longrope-partial-tied", "qwen2", "llama-ragged"])
def test_the_footprint_and_the_bits_are_what_is_written(tmp_path: Path, variant: str) -> None:
    built = build(tmp_path, variant)
    size, decoder = footprint(built.model, built.scheme, target(EXACT)), built.model.decoder
    assert size.weights == (built.directory / "openvino_model.bin").stat().st_size
    assert size.cache == 2 * 4 * decoder.layers * decoder.kv_heads * decoder.head_dim
    held = constants(built)
    bits = 8 * sum(held[f"{name}.{part}"].get_byte_size() for name in matrices(held) for part in ("codes", "scales", "zeros"))
    weights = sum(shape[0] * shape[1] for shape in decoder.weight_shapes().values() if len(shape) == 2)
    assert built.exported.bits_per_weight == pytest.approx(bits / weights)


@pytest.mark.parametrize(("dynamic", "group"), [("off", 0), ("on", 32), ("measured", 32)])
def test_plugins_find_their_options_in_the_graph(tmp_path: Path, dynamic: str, group: int) -> None:
    """Where a caller such as openvino_genai says nothing."""
    model = build(tmp_path, "llama", options={"kv_cache": "float16", "dynamic_quantization": dynamic, "tokenizer": False}).read()
    compiled = openvino.Core().compile_model(model, "CPU")
    assert compiled.get_property("KV_CACHE_PRECISION") == openvino.Type.f16
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == group


def test_without_openvino_tokenizers_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_variant(tmp_path, "llama")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineMissing, match=r"needs openvino-tokenizers .* pip install 'edgekit\[build,openvino\]'"):
        check(model, scheme("int4-g32"), target({}))
    check(model, scheme("int4-g32"), target(EXACT))


def test_a_tokenizer_that_cannot_be_converted_stops_the_export_before_the_weights(tmp_path: Path) -> None:
    model = open_variant(tmp_path / "model", "llama")
    path = tmp_path / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "UnicodeScripts"}, tokenizer["pre_tokenizer"]]}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    (tmp_path / "out").mkdir()
    write_companions(read_companions(model.checkpoint, model.decoder.vocab_size), model.checkpoint, tmp_path / "out")
    with pytest.raises(EngineError, match=r"openvino-tokenizers cannot convert .*tokenizer\.json: .*'UnicodeScripts' is not supported"):
        export(model, scheme("int4-g32"), target({}), tmp_path / "out", silent)
    assert not (tmp_path / "out" / "openvino_model.bin").exists()


def test_a_second_engine_takes_the_weights_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantized once: for ONNX, then from the cache."""
    pytest.importorskip("onnxruntime")
    directory = make_checkpoint(tmp_path / "model", "phi3-longrope")
    for engine in ("onnx", "openvino"):
        edgekit.build(directory, target=write_target(tmp_path / f"{engine}.toml", engine), output=tmp_path / engine)

        def refuse(*_: object) -> None:
            raise AssertionError("quantized again")

        monkeypatch.setattr(quantized, "_fresh", refuse)

"""Graphs for CUDA, DirectML and WebGPU: checked by onnx and computed by ONNX Runtime's CPU, which takes all their forms; and what is
done where a device is absent. What their kernels take is in kernels.py; tests/device runs them."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from checkpoints import SWITCH, Variant, longrope, make_checkpoint
from edgekit.artifact import load_artifact
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.engines.onnx import providers
from edgekit.engines.onnx import session as module
from edgekit.engines.onnx.export import check
from edgekit.engines.onnx.session import OnnxSession, open_session, pieces
from edgekit.errors import CheckpointError, EngineError, EngineMissing, TargetError
from edgekit.models import open_model
from edgekit.quant import dequantize, quantize
from edgekit.quant.scheme import Format, scheme
from edgekit.resources import release
from edgekit.target import OptionValue, load_target
from onnx_artifact import ROUNDING, Built, build, open_variant, random_tokens, target
from tiny_artifact import build_tiny

onnxruntime = pytest.importorskip("onnxruntime")
TOKENS = random_tokens(60)
HALF = 0.04
"""Float16 activations, of logits that reach 3 to 7: measured at most 0.012, rms 0.0035."""
PARTIAL = "phi3-longrope-partial-tied"


runnable = pytest.mark.skipif(release(onnxruntime.__version__) < (1, 24, 4), reason="a device's artifact needs onnxruntime 1.24.4")


def options(provider: str, precision: str = "float16") -> dict[str, OptionValue]:
    return {"accuracy_level": 0, "provider": provider, "precision": precision}


def on_cpu(built: Built) -> OnnxSession:
    """The artifact's session with the CPU in the device's place."""
    engine = replace(built.manifest.engine, details={**built.manifest.engine.details, "provider": "cpu"})
    return open_session(built.directory, replace(built.manifest, engine=engine), threads=1)


def test_an_odd_number_of_groups_is_filled_up_for_directml(tmp_path: Path) -> None:
    """Its kernel reads 4-bit zero points without gaps between rows: one more group of zeros, and inputs of zeros with it."""
    built = build(tmp_path, "llama-576", grid=None, quant=scheme("int4-g128"), options=options("dml"))
    graph = ir.load(built.directory / "model.onnx").graph
    products = {str(node.name): node for node in graph if node.op_type == "MatMulNBits"}
    for name, k in (("layers.0.qkv_proj", 640), ("layers.0.down_proj", 1536)):
        node = products[name]
        assert node.attributes["K"].as_int() == k
    codes, zeros = (graph.initializers[f"layers.0.o_proj.{part}"].const_value.numpy() for part in ("codes", "zeros"))
    want = quantize(built.model.tensor("layers.0.o_proj"), Format(4, 64), name="o")
    assert codes.shape == (576, 10, 32) and np.array_equal(codes[:, :9], want.codes) and not codes[:, 9].any()
    assert zeros.shape == (576, 5)


@pytest.mark.parametrize("variant", ["phi3-longrope", PARTIAL, "qwen2", "llama-576"])
@pytest.mark.parametrize(("provider", "precision"), [("dml", "float32"), ("webgpu", "float32"), ("dml", "float16"), ("cuda", "float16")])
@runnable
def test_every_form_computes_the_same(tmp_path: Path, variant: str, provider: str, precision: str) -> None:
    """Below, at and beyond the LongRoPE switch, whole and token by token."""
    built = build(tmp_path, variant, options=options(provider, precision))
    tolerance = ROUNDING if precision == "float32" else HALF
    session = on_cpu(built)
    for length in (1, SWITCH, SWITCH + 1, 60):
        session.rewind(0)
        got = session.forward(TOKENS[:length])
        assert got.dtype == np.float32
        assert np.abs(got - built.reference(TOKENS[:length])).max() < tolerance
    session.rewind(30)
    for i in range(30, 36):
        got = session.forward(TOKENS[i : i + 1])
    assert np.abs(got - built.reference(TOKENS[:36])).max() < tolerance
    assert built.exported.details["kv_dtype"] == precision


@pytest.mark.parametrize("provider", ["cuda", "dml", "webgpu"])
def test_graphs_pass_the_checker_of_onnx(tmp_path: Path, provider: str) -> None:
    onnx = pytest.importorskip("onnx")
    built = build(tmp_path, PARTIAL, options=options(provider))
    model = onnx.load(built.directory / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":  # ONNX Runtime has it in ONNX's own domain, where onnx does not know it
            node.domain = "com.microsoft"
    onnx.save(model, built.directory / "checked.onnx")
    onnx.checker.check_model(str(built.directory / "checked.onnx"), full_check=True)
    graph = ir.load(built.directory / "model.onnx").graph
    assert [o.dtype for o in graph.outputs] == [ir.DataType.FLOAT] + [ir.DataType.FLOAT16] * 4
    assert {v.dtype for v in graph.initializers.values()} <= {ir.DataType.FLOAT16, ir.DataType.UINT8, ir.DataType.INT64}


def test_float16_weights_are_the_portable_ones(tmp_path: Path) -> None:
    """Read back and compared with ==: codes, zero points and float16 scales as they are, and (q - z) * s of every 4-bit weight."""
    built = build(tmp_path, "llama", grid=None, options=options("cuda"))
    held = ir.load(built.directory / "model.onnx").graph.initializers
    for name in ("layers.0.o_proj", "layers.1.down_proj", "lm_head"):
        want = quantize(built.model.tensor(name), built.scheme.format_of(name), name=name)
        codes, scales = (held[f"{name}.{part}"].const_value.numpy() for part in ("codes", "scales"))
        assert np.array_equal(codes, want.codes)
        assert scales.dtype == np.float16 and np.array_equal(scales, want.scales)
        if want.format.bits == 4:
            q = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], -1).astype(np.float16)
            weight = ((q - want.zeros[..., None].astype(np.float16)) * scales[..., None]).reshape(want.shape)
            assert weight.dtype == np.float16 and np.array_equal(weight, dequantize(want))
    norm = held["layers.0.input_norm.weight"].const_value.numpy()
    assert norm.dtype == np.float16 and np.array_equal(norm, built.model.tensor("layers.0.input_norm"))


def test_a_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model", "llama")
    info = open_checkpoint(directory, Source("test", "local", None, None)).tensors["model.layers.1.input_layernorm.weight"]
    with info.file.open("r+b") as file:
        file.seek(info.begin)
        file.write(b"\x80\x47")  # bf16 65536
    model = open_model(open_checkpoint(directory, Source("test", "local", None, None)))
    from edgekit.engines.onnx.export import export
    from edgekit.progress import silent

    with pytest.raises(CheckpointError, match=r"layers\.1\.input_norm holds 65536, which float16"):
        export(model, scheme("int4-g32"), target(options("cuda")), tmp_path, silent)


@pytest.mark.parametrize(
    ("provider", "variant", "group", "message"),
    [
        ("dml", "mistral-window", 32, "DirectML's GroupQueryAttention ignores local_window_size, which is 12"),
        ("dml", "llama-ragged", 32, "DirectML's MatMulNBits has no weights of 80 inputs in groups of 32"),
    ],
)
def test_what_a_kernel_ignores_is_refused_before_the_long_job(
    tmp_path: Path, provider: str, variant: str, group: int, message: str
) -> None:
    model = open_variant(tmp_path, variant)
    with pytest.raises(TargetError, match=message):
        check(model, scheme(f"int4-g{group}"), target(options(provider)))


def test_cuda_has_no_float32_attention(tmp_path: Path) -> None:
    model = open_variant(tmp_path, "llama")
    with pytest.raises(TargetError, match=r'CUDA has no float32 GroupQueryAttention; set precision = "float16"'):
        check(model, scheme("int4-g32"), target(options("cuda", "float32")))
    with pytest.raises(TargetError, match=r"options\.provider: wanted one of 'cpu', 'cuda', 'dml', 'webgpu', found 'rocm'"):
        check(model, scheme("int4-g32"), target(options("rocm")))


@pytest.mark.parametrize("name", ["cuda", "directml", "webgpu"])
def test_targets_that_come_along_fit_real_shapes(tmp_path: Path, name: str) -> None:
    """Shapes that 128 divides evenly, as the catalogue's models have."""
    even = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "original_max_position_embeddings": SWITCH}
    check(open_variant(tmp_path, Variant("phi3", {**even, "rope_scaling": longrope(32)})), scheme("int4-g128"), load_target(name))


@pytest.mark.parametrize(
    ("provider", "written"),
    [
        ("cuda", {"cuda": {"enable_cuda_graph": "0"}}),
        ("dml", {"dml": {"enable_graph_capture": "0"}}),
        ("webgpu", {"webgpu": {"enableGraphCapture": "0", "validationMode": "basic"}}),
    ],
)
def test_provider_options_as_genais_builder_writes_them(tmp_path: Path, provider: str, written: dict[str, dict[str, str]]) -> None:
    built = build(tmp_path, "llama", options=options(provider))
    config = json.loads((built.directory / "genai_config.json").read_text(encoding="utf-8"))
    assert config["model"]["decoder"]["session_options"]["provider_options"] == [written]
    package = {"cuda": "onnxruntime-gpu", "dml": "onnxruntime-directml", "webgpu": "onnxruntime-ep-webgpu"}[provider]
    assert package in built.exported.engine_requires and built.exported.details["provider"] == provider


@pytest.mark.parametrize(("provider", "extra"), [("cuda", "cuda"), ("dml", "directml"), ("webgpu", "webgpu")])
@runnable
def test_an_absent_provider_is_named_with_its_package(tmp_path: Path, provider: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(tmp_path, "llama", options=options(provider))
    chosen = providers.PROVIDERS[provider]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, chosen.package.replace("-", "_"), None)
    if chosen.windows:
        monkeypatch.setattr(sys, "platform", "linux")
        with pytest.raises(EngineMissing, match=rf"{chosen.name}, which exists for Windows alone; run it there"):
            open_session(built.directory, built.manifest)
        monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EngineMissing, match=rf'{chosen.name}, which.*lacks; install {chosen.package}.*: pip install "edgekit\[{extra}\]"'):
        open_session(built.directory, built.manifest)


@runnable
def test_a_device_that_does_not_start_is_no_silent_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(tmp_path, "llama", options=options("cuda"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(EngineMissing, match="CUDAExecutionProvider, which does not start on this machine"):
        open_session(built.directory, built.manifest)


def test_an_operator_left_to_the_cpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = SimpleNamespace(op_type="MatMulNBits")
    part = SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: [node])
    session = SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"], get_provider_graph_assignment_info=lambda: [part])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(EngineError, match="puts MatMulNBits on CPUExecutionProvider"):
        providers.open_on(providers.PROVIDERS["cuda"], tmp_path, onnxruntime.SessionOptions())


def test_the_probe_is_a_model_that_runs() -> None:
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load_from_string(providers.PROBE))
    session = onnxruntime.InferenceSession(providers.PROBE, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array(2.5, np.float32)})[0] == 2.5


def test_where_nothing_can_be_appended_tokens_go_one_by_one() -> None:
    assert pieces(3, 1) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert pieces(1200, 512) == [slice(0, 512), slice(512, 1024), slice(1024, 1200)]


@pytest.mark.parametrize("appends", [True, False])
def test_a_cache_that_a_run_returned_is_kept_grown_and_rewound(tmp_path: Path, appends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of every device, with the CPU as one."""
    monkeypatch.setattr(module, "FIRST_CAPACITY", 8)
    built = build(tmp_path, "llama")
    path = built.directory / "model.onnx"
    device = replace(providers.PROVIDERS["cpu"], device="cpu", appends=appends)
    session = OnnxSession(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), path, 96, device)
    for begin, end in ((0, 5), (5, 6), (6, 20), (20, 40)):
        got = session.forward(TOKENS[begin:end])
        assert np.abs(got - built.reference(TOKENS[:end])).max() < ROUNDING
    session.rewind(10)
    assert np.abs(session.forward(TOKENS[10:12]) - built.reference(TOKENS[:12])).max() < ROUNDING
    rows = session.forward_last(TOKENS[12:18], 4)
    assert max(np.abs(rows[i] - built.reference(TOKENS[: 15 + i])).max() for i in range(4)) < ROUNDING
    session.close()


@runnable
def test_a_build_without_the_device_says_why_it_has_no_greedy_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    lines = 'provider = "cuda"\nprecision = "float16"\naccuracy_level = 0'
    greedy = load_artifact(build_tiny(tmp_path, "onnx", options=lines)).manifest.conformance.greedy
    assert greedy.computed_by is None and not greedy.vectors
    assert greedy.reason is not None and "onnxruntime-gpu" in greedy.reason


def test_an_unknown_provider_in_a_manifest() -> None:
    with pytest.raises(EngineError, match="'npu', known here: cpu, cuda, dml, webgpu"):
        providers.provider("npu")

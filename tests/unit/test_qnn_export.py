"""What the compiler for Qualcomm's NPUs is given: the graphs, their weights, and what is refused before the long job."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from checkpoints import Variant
from edgekit.companions import read_companions
from edgekit.engines.onnx_format import weights
from edgekit.engines.onnx_format.proto import serialize
from edgekit.engines.qnn import layout as layouts
from edgekit.engines.qnn.calibration import calibrate
from edgekit.engines.qnn.layout import check_machine, plan
from edgekit.engines.qnn.socs import SOCS
from edgekit.errors import OutputError, TargetError
from edgekit.progress import silent
from edgekit.quant import dequantize, quantize
from edgekit.quant.pack import unpack_zero_points
from edgekit.quant.scheme import QuantizedTensor, scheme
from edgekit.quantized import PLAIN
from edgekit.target import OptionValue, targets
from onnx_artifact import open_variant, random_tokens
from qnn_artifact import CHUNK, export_graphs, target

FLOAT16 = 0.03
"""Of logits that reach 3 to 7: float16 activations on ONNX Runtime's CPU against the float32 reference; measured at most 0.018."""
TOKENS = random_tokens(60)
VARIANTS = ("phi3-longrope", "phi3-longrope-partial-tied", "phi3-window", "mistral-window", "mistral-head-dim", "llama3", "qwen2-window")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graphs_give_the_references_logits(tmp_path: Path, variant: str) -> None:
    """Prompts in chunks and single tokens, below, at and beyond the LongRoPE switch (24) and the windows (10, 12)."""
    graphs = export_graphs(open_variant(tmp_path / "model", variant), tmp_path)
    for start, length, final in ((0, 5, 5), (5, 1, 6), (6, 1, 7), (0, CHUNK, 40), (CHUNK, CHUNK, 40), (2 * CHUNK, 8, 40), (40, 1, 41)):
        logits = graphs.run(TOKENS[start : start + length], start, length=final)
        if start + length in (final, 6, 7, 41):
            wanted = graphs.reference(TOKENS[: start + length])
            assert np.abs(logits - wanted).max() < FLOAT16, (start, length)


def test_weights_are_the_portable_ones(tmp_path: Path) -> None:
    """Read back by the onnx package, every one of them, from the graphs as the compiler gets them."""
    graphs = export_graphs(open_variant(tmp_path / "model", "phi3", grid=None), tmp_path)
    form = scheme("int4-g32").linear
    for half in ("prompt", "token"):
        for part in range(2):
            model = onnx.load(tmp_path / f"part{part}" / f"{half}.onnx")
            held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
            products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
            assert len(products) == 7
            for node in products:
                codes, scales, zeros = (held[name] for name in node.input[1:4])
                want = quantize(graphs.model.tensor(node.name), form, name=node.name)
                groups = scales.shape[1]
                points = unpack_zero_points(zeros, groups)
                stored = QuantizedTensor(want.shape, form, codes, scales, points)
                assert np.array_equal(dequantize(stored), dequantize(want)), node.name
                assert np.array_equal(codes, want.codes)


def test_the_graphs_are_valid_onnx(tmp_path: Path) -> None:
    made = plan(open_variant(tmp_path / "model", "phi3-longrope-partial-tied"), scheme("int4-g32"), target())
    for graph in (made.embeddings, made.lm_head, *made.parts[0].graphs.values()):
        model = onnx.load_from_string(serialize(graph))
        for tensor in model.graph.initializer:
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
        names = [value.name for value in model.graph.output]
        assert len(set(names)) == len(names)
        assert {value.name for value in model.graph.input} == {value.name for value in graph.inputs}


def test_layers_are_spread_evenly_over_parts(tmp_path: Path) -> None:
    model = open_variant(tmp_path, Variant("llama", {"num_hidden_layers": 5}))
    parts = plan(model, scheme("int4-g32"), target({"layers": 2})).parts
    assert [(p.part.first, p.part.last) for p in parts] == [(0, 2), (2, 3), (3, 5)]


def refused(
    tmp_path: Path, message: str, variant: str | Variant = "phi3", context: int = 96, quant: str = "int4-g32", **more: OptionValue
) -> None:
    with pytest.raises(TargetError, match=message):
        plan(open_variant(tmp_path / "model", variant, grid=None), scheme(quant), target(more, context))


@pytest.mark.parametrize(
    ("options", "context", "message"),
    [
        ({"soc": "SM1"}, 96, "unknown chip 'SM1'; known: SM8450, SM8550"),
        ({"chunk": 24}, 96, "wanted 16, 32, 64 or 128, found 24"),
        ({"layers": 0}, 96, "options.layers: wanted at least 1"),
        ({"chunk": 64}, 96, "a context of 96 is no multiple: build with --context 64"),
        ({"chunk": 128}, 96, "set a smaller one"),
        ({"memory_mb": 1000}, 96, "takes about 1.0 GB of memory, options.memory_mb allows 1.0 GB"),
        ({"speed": 1}, 96, "unknown key 'speed'; allowed: soc, runtime, activations, chunk, layers, sharing, reproducible, memory_mb"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, OptionValue], context: int, message: str) -> None:
    refused(tmp_path, message, "phi3", context, **options)


def test_what_does_not_fit_the_npu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path / "a", "whole groups only, and layers.0.q_proj has 80 weights a row in groups of 32", "llama-ragged")
    monkeypatch.setattr(layouts, "MEMORY", 280_000)
    refused(tmp_path / "b", r"KV cache for 96 tokens .* build with --context \d+", layers=2)
    monkeypatch.setattr(layouts, "MEMORY", 3_000)
    refused(tmp_path / "c", "set fewer layers a part", layers=2)


def test_a_chip_without_float16_takes_small_models_in_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path / "a", r'QCS6490 \(HTP v68\) computes no float16; set activations = "uint16"', soc="QCS6490")
    monkeypatch.setattr(layouts, "SMALL", 100_000)
    refused(tmp_path / "b", "weights of 8 bits: 0 MB for test, and 0 MB is the most", soc="QCS6490", activations="uint16")


def test_integers_give_nearly_the_same(tmp_path: Path) -> None:
    """On ONNX Runtime's CPU: a prompt and a token after it, in 16-bit codes with 8-bit weights."""
    floats = export_graphs(open_variant(tmp_path / "model", "phi3-longrope-partial-tied", grid=None), tmp_path)
    made = calibrate(
        floats.layout, floats.model, scheme("int4-g32"), read_companions(floats.model.checkpoint, 320), tmp_path, silent, PLAIN
    )
    steps = [made.embeddings, *(planned.graphs["prompt"] for planned in made.parts), made.lm_head]
    values: dict[str, NDArray[np.generic]] = {
        "input_ids": np.array([TOKENS[:CHUNK]], np.int32),
        "past_seq_len": np.array([[CHUNK - 1]], np.int32),
        "total_seq_len": np.array([96], np.int32),
        "rope_length": np.array([CHUNK], np.int64),
    }
    weights.write(made.cpu, floats.model, tmp_path, silent)
    for graph in steps:
        (tmp_path / "step.onnx").write_bytes(serialize(graph))
        session = onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
        for i in session.get_inputs():
            if i.name.startswith("past_key_values"):
                values[i.name] = np.zeros(i.shape, np.uint16)
        found = session.run(None, {i.name: values[i.name] for i in session.get_inputs()})
        values |= dict(zip([o.name for o in session.get_outputs()], found, strict=True))
    logits, wanted = np.asarray(values["logits"], np.float32)[0, 0], floats.reference(TOKENS[:CHUNK])
    error = np.sqrt(np.mean((logits - wanted) ** 2) / np.mean(wanted**2))
    assert error < 0.1, error


def test_what_the_machine_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(open_variant(tmp_path / "model", "phi3"), scheme("int4-g32"), target())
    check_machine(made, tmp_path)
    monkeypatch.setattr(layouts, "available_memory", lambda: 900_000_000)
    with pytest.raises(TargetError, match=r"takes about 1\.0 GB of memory, and this machine has 0\.9 GB available"):
        check_machine(made, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="has 0 MB free"):
        check_machine(made, tmp_path)


def test_every_chip_has_a_target() -> None:
    ours = [target for target in targets() if target.engine == "qnn"]
    assert {str(target.options["soc"]) for target in ours} == set(SOCS)
    assert all(target.verified == "compiled" for target in ours)

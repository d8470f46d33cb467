"""Folding: the same model in exact arithmetic, every engine gets the same tensors, and what is rounded afterwards comes closer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from checkpoints import make_checkpoint
from edgekit.artifact import load_artifact
from edgekit.build import build
from edgekit.cache import Cache, source_files
from edgekit.calibrate import Fitting, _reach, _times, calibrate, kept_as
from edgekit.calibration_text import LENGTH, calibration_text
from edgekit.catalog import resolve
from edgekit.folds import LayerFolds, folded, folded_norm, rows, value_heads
from edgekit.models import Model, open_model
from edgekit.progress import silent
from edgekit.quant import Format, dequantize, quantize
from edgekit.quant.awq import factors
from edgekit.quant.rtn import F32
from edgekit.quant.scheme import scheme
from edgekit.quantized import Kept, Quantizer, matrices
from edgekit.reference import reference_logits_many
from tiny_artifact import write_target

TEXT = "".join(f"{i} plus {i * 7} is {i * 8}. The light in the kitchen is on, room {i}. " for i in range(60))
VARIANTS = ["phi3-longrope", "mistral-head-dim", "llama3", "qwen2", "llama-ragged"]


def opened(directory: Path) -> Model:
    return open_model(resolve(str(directory), progress=silent))


def arbitrary(model: Model) -> Model:
    """The model with everything folded that may be."""
    rng, decoder = np.random.default_rng(4), model.decoder
    shapes, layers = decoder.weight_shapes(), []
    for i in range(decoder.layers):
        columns: dict[str, F32] = {}
        vectors: dict[str, F32] = {}
        for first, norm in (("q_proj", "input_norm"), ("gate_proj", "post_attention_norm")):
            wanted = np.exp(rng.standard_normal(decoder.hidden_size)).astype(np.float32)
            vectors[norm], columns[first] = folded_norm(model.tensor(f"layers.{i}.{norm}"), wanted)
        columns["o_proj"] = np.exp2(rng.integers(-3, 4, decoder.kv_heads * decoder.head_dim)).astype(np.float32)[value_heads(decoder)]
        columns["down_proj"] = np.exp2(rng.integers(-3, 4, shapes["layers.0.down_proj"][1])).astype(np.float32)
        if decoder.qkv_bias:
            by = rows(decoder, "v_proj", columns)
            assert by is not None
            vectors["v_proj.bias"] = model.tensor(f"layers.{i}.v_proj.bias") * by
        layers.append(LayerFolds(columns, vectors))
    return replace(model, folded=folded(decoder, layers))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folded_model_computes_the_same(tmp_path: Path, variant: str) -> None:
    model = opened(make_checkpoint(tmp_path / "m", variant))
    other = arbitrary(model)
    tokens = [[7, 300, 12, 5, 5, 90, 41, 2, 18], [3, 1]]
    wanted = np.concatenate(reference_logits_many(model.decoder, model.tensor, tokens))
    got = np.concatenate(reference_logits_many(model.decoder, other.tensor, tokens))
    np.testing.assert_allclose(got, wanted, atol=2e-5)
    assert not np.array_equal(other.tensor("layers.0.q_proj"), model.tensor("layers.0.q_proj"))
    np.testing.assert_array_equal(other.rows("layers.0.up_proj", 3, 9), other.tensor("layers.0.up_proj")[3:9])
    np.testing.assert_array_equal(other.stored("layers.0.v_proj", 0, 5), other.tensor("layers.0.v_proj")[:5])


def test_a_folded_norm_is_the_same_in_either_precision() -> None:
    rng = np.random.default_rng(0)
    gain = rng.standard_normal(500).astype(np.float32)
    gain[:3] = 0, 1e-30, 60000
    wanted = np.exp(rng.standard_normal(500) * 3).astype(np.float32)
    wanted[2] = 1e-3  # would leave float16
    new, by = folded_norm(gain, wanted)
    moved = by != 1
    assert moved[3:].mean() > 0.95, "but those that would be subnormal"
    np.testing.assert_array_equal(new[moved].astype(np.float16).astype(np.float32), new[moved])
    np.testing.assert_allclose(new * by, gain, rtol=1e-6)
    assert (by[:3] == 1).all() and np.isfinite(by).all()


def test_rows_times_a_power_of_two_keep_their_codes() -> None:
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((6, 96)) * np.exp(rng.standard_normal((6, 1)) * 4)).astype(np.float32)
    weight[2], weight[3, :64] = 0, 0
    for form in (Format(4, 32), Format(8, 32)):
        made = quantize(weight, form, name="w")
        least, most = _reach(made)
        for by in (np.ones(6, np.float32), 1 / most, 1 / least):
            got = _times(made, by.astype(np.float32))
            np.testing.assert_array_equal(got.codes, made.codes)
            np.testing.assert_array_equal(dequantize(got), dequantize(made) * by[:, None])
            assert (got.scales.astype(np.float32) >= np.float32(2.0**-14)).all()


def test_factors_of_what_lies_on_a_grid_are_one() -> None:
    weight = np.random.default_rng(2).standard_normal((40, 256)).astype(np.float32)
    grid, moments = dequantize(quantize(weight, Format(4, 64), name="w")), np.exp(np.random.default_rng(3).standard_normal(256) * 2)
    np.testing.assert_array_equal(factors([grid], moments, Format(4, 64)), 1)
    assert (factors([weight], moments, Format(4, 64)) != 1).any()


def loss(model: Model, fitted: Model, quantizer: Quantizer, sequences: list[tuple[int, ...]]) -> float:
    """Mean square of what quantizing changes in the logits."""
    from edgekit.quantized import dequantized

    every = {m.weight: m for m in matrices(model, scheme("int4-g128"))}

    def tensor(name: str) -> F32:
        return dequantized(fitted, every[name], quantizer) if name in every else fitted.tensor(name)

    wanted = np.concatenate(reference_logits_many(model.decoder, model.tensor, sequences))
    return float(np.square(np.concatenate(reference_logits_many(model.decoder, tensor, sequences)) - wanted).mean())


@pytest.mark.parametrize("variant", ["phi3", "qwen2"])
def test_every_method_is_closer_than_rounding(tmp_path: Path, variant: str) -> None:
    """qwen2 has biases, which are corrected."""
    model = opened(make_checkpoint(tmp_path / "m", variant))
    rng = np.random.default_rng(5)
    sequences = [tuple(rng.integers(6, 320, 90).tolist()) for _ in range(12)]
    sources = source_files({t.file for t in model.checkpoint.tensors.values()}, None, silent, None)
    quant = scheme("int4-g128")
    plain = loss(model, model, Quantizer(sources=sources, search=False), sequences)
    found: dict[Fitting, float] = {}
    for fitting in ("awq", "gptq", "awq-gptq"):
        store = Kept(Cache(tmp_path / fitting, 1 << 30), sources, kept_as(quant, model, fitting, sequences))
        fitted = calibrate(model, quant, fitting, sequences, store, silent)
        found[fitting] = loss(model, fitted, Quantizer(sources=sources, calibrated=store), sequences)
        changed = {name.split(".", 2)[2] for name in fitted.folded.vectors}
        biases = {"q_proj.bias", "k_proj.bias", "v_proj.bias"} if variant == "qwen2" else set()
        assert changed - {"input_norm", "post_attention_norm"} == biases
        assert bool(fitted.folded.columns) == (fitting != "gptq")
    assert max(found["gptq"], found["awq-gptq"]) < found["awq"] < plain


def test_every_engine_gets_the_folded_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    model = make_checkpoint(tmp_path / "m", "qwen2")
    made = {}
    for engine in ("onnx", "openvino", "mlx"):
        target = write_target(tmp_path / f"{engine}.toml", engine)
        made[engine] = build(model, target=target, output=tmp_path / engine, calibration=TEXT, scheme="int4-g64", verify=engine != "mlx")
        assert load_artifact(tmp_path / engine).manifest.scheme.method == "awq-gptq"
    plain = build(model, target="cpu", output=tmp_path / "plain", verify=False)
    norms = [name for name in plain.weights if name.endswith(("norm", "bias")) and name != "norm"]
    assert norms and all(made["onnx"].weights[name] != plain.weights[name] for name in norms)
    assert made["onnx"].weights == made["openvino"].weights == made["mlx"].weights


def test_the_text_that_comes_with_edgekit() -> None:
    text = calibration_text()
    assert text == calibration_text() and len(text) >= LENGTH and "{" + "name}" not in text
    documents = text.split("\n\n")
    assert len(set(documents)) > 0.95 * len(documents)
    assert all(word in text for word in ("def ", "SELECT", '"customer"', "Der Zug", "Поезд", "图书馆", "ください"))

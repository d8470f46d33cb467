"""Calibrated quantization: the format stays portable INT4, what lies on a grid stays, and the outputs get closer."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgekit
from checkpoints import make_checkpoint
from edgekit import calibrate as module
from edgekit.artifact import load_artifact
from edgekit.build import build
from edgekit.calibrate import calibration_tokens
from edgekit.catalog import resolve
from edgekit.errors import OutputError, UsageError
from edgekit.fidelity import default_text, measure
from edgekit.models import open_model
from edgekit.progress import silent
from edgekit.quant import Format, QuantizedTensor, dequantize, quantize
from edgekit.quant.gptq import DAMPING, Inputs, quantize_for
from edgekit.quant.rtn import F32
from edgekit.windows import QUICK
from tiny_artifact import write_target
from tiny_phi import text as tiny_text

TEXT = "".join(f"{i} plus {i * 7} is {i * 8}. The light in the kitchen is on, room {i}. " for i in range(60))


def inputs(k: int, seed: int = 0) -> np.ndarray:
    """Second moments of 4 K inputs that are correlated and of very different sizes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * k, k)) @ (rng.standard_normal((k, k)) / np.sqrt(k)) * np.exp(rng.standard_normal(k))
    return x.T @ x


def loss(weight: np.ndarray, quantized: np.ndarray, moments: np.ndarray) -> float:
    error = (weight - quantized).astype(np.float64)
    return float(np.einsum("nk,kj,nj->", error, moments, error))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_outputs_are_closer(group: int) -> None:
    weight = np.random.default_rng(1).standard_normal((48, 256)).astype(np.float32)
    moments, form = inputs(256), Format(4, group)
    plain = loss(weight, dequantize(quantize(weight, form, name="w")), moments)
    weighted = loss(weight, dequantize(quantize_for(weight, Inputs(moments), form, compensate=False)), moments)
    gptq = loss(weight, dequantize(quantize_for(weight, Inputs(moments), form)), moments)
    assert gptq < weighted < plain
    assert gptq < 0.6 * plain


@pytest.mark.parametrize("k", [100, 384, 500])
def test_codes_are_those_of_gptq_column_by_column(k: int) -> None:
    """Against its definition in float64: each column's error, taken out of the later ones by the Cholesky factor of the inverse."""
    n, group, moments = 600, 64, inputs(k)
    weight = np.random.default_rng(3).standard_normal((n, k)).astype(np.float32)
    got = quantize_for(weight, Inputs(moments), Format(4, group), sweeps=0)
    scale = np.repeat(got.scales.astype(np.float64), group, axis=1)[:, :k]
    zero = np.repeat(got.zeros, group, axis=1)[:, :k]
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments[np.ix_(order, order)] + np.eye(k) * DAMPING * np.diag(moments).mean()
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, wanted = weight[:, order].astype(np.float64), np.empty((n, k), np.float64)
    for i, at in enumerate(order):
        code = np.clip(np.rint(left[:, i] / scale[:, at]), -zero[:, at].astype(int), 15 - zero[:, at])
        wanted[:, at] = code * scale[:, at]
        left[:, i:] -= ((left[:, i] - wanted[:, at]) / upper[i, i])[:, None] * upper[i, i:]
    differing = (dequantize(got) != wanted.astype(np.float32)).any(axis=1).mean()
    assert differing < 0.02, "a code next to a tie turns over in float32, and with it what follows in its row"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 150), st.sampled_from([32, 64, 128]), st.integers(0, 99))
def test_what_lies_on_a_grid_comes_back(n: int, k: int, group: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    grid = dequantize(quantize(weight, Format(4, group), name="w"))
    np.testing.assert_array_equal(dequantize(quantize_for(grid, Inputs(inputs(k, seed)), Format(4, group))), grid)


def test_the_format_is_the_portable_one() -> None:
    weight = np.random.default_rng(2).standard_normal((8, 100)).astype(np.float32)
    got = quantize_for(weight, Inputs(np.zeros((100, 100))), Format(4, 64))
    assert (got.codes.shape, got.zeros.shape) == ((8, 2, 32), (8, 2))
    assert got.zeros.max() <= 15
    assert not (got.scales.view(np.uint16) & 0b1111).any(), "7 significant bits"
    assert (got.codes[:, 1, 18:] == 17 * got.zeros[:, 1:]).all(), "the filling is the zero point"
    with pytest.raises(ValueError, match="Format"):
        quantize_for(weight, Inputs(np.zeros((100, 100))), Format(8, 64))


def test_text_is_cut_into_sequences() -> None:
    assert calibration_tokens(range(25), [1], 11) == [(1, *range(10)), (1, *range(10, 20))]
    assert calibration_tokens(range(25), [], 25) == [tuple(range(25))]
    with pytest.raises(UsageError, match="give a longer text"):
        calibration_tokens(range(25), [], 30)


def test_a_calibrated_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    model = make_checkpoint(tmp_path / "m", "phi3-longrope")
    kept = build(model, target="cpu", output=tmp_path / "a", calibration=TEXT)
    assert kept.calibration is not None and kept.calibration.method == "awq-gptq" and kept.calibration.tokens > 500
    plain = build(model, target="cpu", output=tmp_path / "b")
    assert plain.calibration is None
    differ = {name for name in kept.weights if kept.weights[name] != plain.weights[name]}
    assert differ == {name for name in kept.weights if name.startswith("layers.")}
    alone = build(model, target="cpu", output=tmp_path / "c", calibration=TEXT, cached=False)
    assert alone.weights == kept.weights and load_artifact(tmp_path / "c").manifest.files == kept.files
    monkeypatch.setattr(module, "quantize_for", lambda *_, **_k: pytest.fail("all of it is kept"))
    again = build(model, target="cpu", output=tmp_path / "d", calibration=TEXT)
    assert again.to_json() == kept.to_json()


def test_a_calibration_that_cannot_be_kept_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEKIT_CACHE_LIMIT", "1kB")
    model = make_checkpoint(tmp_path / "m", "llama")
    with pytest.raises(OutputError, match="calibrated weights cannot be kept"):
        build(model, target="cpu", output=tmp_path / "a", calibration=TEXT)
    assert not (tmp_path / "a").exists()


def test_a_broken_off_calibration_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    model = make_checkpoint(tmp_path / "m", "llama")
    wanted = build(model, target="cpu", output=tmp_path / "a", calibration=TEXT, cached=False).weights
    calls = 0

    def counted(weight: F32, inputs: np.ndarray, form: Format, *, compensate: bool) -> QuantizedTensor:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return quantize_for(weight, inputs, form, compensate=compensate)

    monkeypatch.setattr(module, "quantize_for", counted)
    with pytest.raises(KeyboardInterrupt):
        build(model, target="cpu", output=tmp_path / "b", calibration=TEXT)
    assert build(model, target="cpu", output=tmp_path / "b", calibration=TEXT).weights == wanted
    assert calls == 10 + 7, "the first layer of seven matrices was there"


def test_tiny_phi_at_g128_is_closer_than_plain_rounding_at_g32(tmp_path: Path) -> None:
    model = open_model(resolve("tiny-phi", progress=silent))
    rng = Random(5)
    text = "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for _ in range(20) for m in tiny_text.conversation(rng, 60))
    target = write_target(tmp_path / "t.toml", "onnx", context=512, options="accuracy_level = 0")
    found = []
    for scheme, calibration in (("int4-g128", text), ("int4-g32", None)):
        output = tmp_path / f"{scheme} {calibration is None}"
        edgekit.build("tiny-phi", target=target, output=output, scheme=scheme, calibration=calibration, cached=False, verify=False)
        part = measure(load_artifact(output), model, default_text(model), QUICK, cache=None, progress=silent).parts[0]
        found.append(part.figures.mean_kl.value)
    assert found[0] < found[1]

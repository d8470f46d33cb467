"""Measuring an artifact against its checkpoint: what it finds, what it refuses, what it keeps."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import edgekit
from checkpoints import make_checkpoint
from edgekit.artifact import Artifact, load_artifact
from edgekit.cache import Cache, groups
from edgekit.catalog import resolve
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.errors import EngineError, UsageError
from edgekit.fidelity import Fidelity, default_text, measure
from edgekit.fidelity_report import head, html, rows
from edgekit.models import Model, open_model
from edgekit.progress import silent
from edgekit.quant.scheme import Format, scheme
from edgekit.quantized import Quantizer
from edgekit.tensor_errors import tensor_errors
from edgekit.windows import QUICK, Effort
from tiny_artifact import build_tiny, write_target

TEXT = "The quick brown fox, 12 + 30 = 42; naïve café. " * 40


def model_at(directory: Path) -> Model:
    return open_model(open_checkpoint(directory, Source("test", "local", None, None)))


def measured(artifact: Path, model: Path, effort: Effort = QUICK, cache: Cache | None = None, text: str = TEXT) -> Fidelity:
    return measure(load_artifact(artifact), model_at(model), text, effort, cache=cache, progress=silent)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights on an INT4 grid, so that only the kernels' rounding is left."""
    folder = tmp_path_factory.mktemp("exact")
    build_tiny(folder, "onnx", grid=32, options="accuracy_level = 0")
    return folder


def artifact_in(folder: Path) -> Path:
    return folder / "the artéfact"


def test_an_exact_artifact_has_no_divergence(exact: Path) -> None:
    found = measured(artifact_in(exact), exact / "model")
    assert [part.name for part in found.parts] == ["short", "long"], "the switch, at 24 tokens, is passed too"
    for part in found.parts:
        assert part.figures.mean_kl.value < 1e-6
        assert part.figures.same_top.value == 1
    short, long = found.parts
    assert [(one.agreed, one.length) for one in short.greedy] == [(12, 12)] * 4, "up to the switch"
    assert [(one.agreed, one.length) for one in long.greedy] == [(32, 32)], "from just beyond the switch"
    assert found.same_source


def test_quantizing_shows_and_logits_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    good, bad = tmp_path / "good", tmp_path / "bad"
    edgekit.build(model, target="cpu", output=good, cached=False)
    shutil.copytree(good, bad)
    data = np.memmap(bad / "model.onnx.data", np.uint8, "r+")
    data[len(data) // 2 :] = 255  # NaN, as scales
    data.flush()
    small = measured(good, model).parts[0].figures
    assert 0.001 < small.mean_kl.value < 1
    with pytest.raises(EngineError, match="not finite"):
        measured(bad, model)


def test_the_references_logits_are_kept(exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache", 10**9)
    first = measured(artifact_in(exact), exact / "model", cache=cache)
    assert any(group.format == "logits" for group in groups(cache))
    monkeypatch.setattr("edgekit.models.Model.rows", lambda *_: pytest.fail("the checkpoint is not read again"))
    again = measured(artifact_in(exact), exact / "model", cache=cache)
    # Sums in float64 depend on where an array lies in memory, in their last bits; these divergences are nothing else.
    assert [part.figures.mean_kl.value for part in again.parts] == pytest.approx([p.figures.mean_kl.value for p in first.parts], abs=1e-12)
    assert [part.greedy for part in again.parts] == [part.greedy for part in first.parts]


def test_a_long_switch_is_left_out_of_the_quick_measurement(exact: Path) -> None:
    quick = measured(artifact_in(exact), exact / "model", Effort(16, 16, 23))
    assert [(part.name, part.context, part.figures.positions) for part in quick.parts] == [("short", 15, 8)]


def test_what_cannot_be_measured_is_refused(exact: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give a longer text"):
        measured(artifact_in(exact), exact / "model", text="short")
    artifact = load_artifact(artifact_in(exact))
    other = Artifact(artifact.directory, replace(artifact.manifest, tokens=replace(artifact.manifest.tokens, vocab_size=321)))
    with pytest.raises(UsageError, match="compare the artifact with the model it was built from"):
        measure(other, model_at(exact / "model"), TEXT, QUICK, cache=None, progress=silent)


def test_another_checkpoint_is_told_apart(exact: Path, tmp_path: Path) -> None:
    assert not measured(artifact_in(exact), make_checkpoint(tmp_path / "other", "phi3-longrope")).same_source


def test_a_models_own_text_comes_first(exact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(exact / "model", copy)
    assert "lighthouse" in default_text(model_at(copy))
    (copy / "verification.txt").write_text("own", encoding="utf-8")
    assert default_text(model_at(copy)) == "own"


def test_errors_of_the_weights(exact: Path, tmp_path: Path) -> None:
    zero = tensor_errors(model_at(exact / "model"), scheme("int4-g32"), {}, Quantizer(), silent)
    assert set(zero.values()) == {0.0}
    model = model_at(make_checkpoint(tmp_path / "m", "llama"))
    found = tensor_errors(model, scheme("int4-g32"), {"layers.0.q_proj": Format(8, 32)}, Quantizer(threads=2), silent)
    assert next(iter(found)) == "embed_tokens"
    assert 0.04 < found["layers.0.k_proj"] < 0.2
    assert found["layers.0.q_proj"] < 0.01


def test_the_reports(exact: Path) -> None:
    fidelity = measured(artifact_in(exact), exact / "model")
    manifest = load_artifact(artifact_in(exact)).manifest
    assert all(len(row) == len(head(fidelity)) for row in rows(fidelity))
    json.dumps(asdict(fidelity), allow_nan=False)
    hostile = replace(manifest, model=replace(manifest.model, name="<script>alert(1)</script>"))
    text = html(hostile, fidelity, {"layers.0.q_proj": 0.1, "norm": 0.0})
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "http" not in text, "nothing is fetched"
    assert text.count("<svg") == 3


def test_the_shipped_tiny_phi(tmp_path: Path) -> None:
    edgekit.build("tiny-phi", target=write_target(tmp_path / "t.toml", "onnx", context=512), output=tmp_path / "a", cached=False)
    model = open_model(resolve("tiny-phi", progress=silent))
    short, long = measure(load_artifact(tmp_path / "a"), model, default_text(model), QUICK, cache=None, progress=silent).parts
    assert short.figures.mean_kl.value < 0.01 and long.figures.mean_kl.value < 0.01
    assert short.figures.reference_perplexity.value < 5, "text of its own kind"

"""The gate in the build: what is measured, what ships, and what an artifact that may not ship leaves behind."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_fidelity import model_at

import edgekit
import edgekit.fidelity_gate as gate
import edgekit.quantized as quantized
from checkpoints import make_checkpoint
from command import Edge
from edgekit.artifact import load_artifact
from edgekit.errors import FidelityError, UsageError
from edgekit.fidelity import default_text
from edgekit.fidelity_gate import DEFAULTS, GUESSING, Limits
from edgekit.models import Model
from edgekit.quantized import Matrix, Quantizer
from tiny_artifact import write_target


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("gate") / "model", "phi3-longrope")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def test_the_manifest_says_what_was_measured_and_on_what(edge: Edge, tmp_path: Path) -> None:
    manifest = edgekit.build("tiny-phi", target=write_target(tmp_path / "t.toml", "onnx", context=256), output=tmp_path / "a")
    found = manifest.fidelity
    assert found is not None and found.verified == "quick" and found.reference is not None and "float32" in found.reference
    assert (found.max_kl, found.min_top1) == (0.1, 0.7), "those of int4-g32"
    assert [(part.name, part.positions) for part in found.parts] == [("short", 256), ("long", 127)], "whatever the target's own context"
    assert all(0 < part.mean_kl < 0.002 and part.same_top > 0.8 and part.perplexity < 5 for part in found.parts)
    assert load_artifact(tmp_path / "a").manifest.fidelity == found
    shown = edge("inspect", str(tmp_path / "a")).out
    kl = f"KL {found.parts[0].mean_kl:.3g}"
    assert "fidelity" in shown and kl in shown and "limits: KL 0.1" in shown
    worst = max(part.mean_kl for part in found.parts)
    assert f", KL {worst:.2g}," in edge("build", "tiny-phi", "--target", str(tmp_path / "t.toml"), "--out", str(tmp_path / "b")).out


def test_without_verifying_the_manifest_says_so(edge: Edge, checkpoint: Path, tmp_path: Path) -> None:
    manifest = edgekit.build(checkpoint, target="cpu", output=tmp_path / "a", verify=False)
    assert manifest.fidelity is not None
    assert (manifest.fidelity.verified, manifest.fidelity.parts) == ("not verified", ())
    assert "fidelity       not verified" in edge("inspect", str(tmp_path / "a")).out


@pytest.mark.parametrize("wish", [["--max-kl", "1"], ["--min-top1", "0"], ["--verify-full"]])
def test_what_is_not_verified_has_no_limits(edge: Edge, checkpoint: Path, tmp_path: Path, wish: list[str]) -> None:
    ended = edge("build", str(checkpoint), "--target", "cpu", "--out", str(tmp_path / "a"), "--no-verify", *wish)
    assert ended.code == 2 and "contradict --no-verify" in ended.err
    with pytest.raises(UsageError, match="contradict"):
        edgekit.build(checkpoint, target="cpu", output=tmp_path / "a", verify=False, limits=Limits(1.0))


@pytest.mark.parametrize(("wish", "says"), [(["--max-kl", "0.01"], "is above 0.01 (--max-kl)"), (["--min-top1", "1"], "(--min-top1)")])
def test_beyond_its_limits_nothing_ships_but_a_report(edge: Edge, checkpoint: Path, tmp_path: Path, wish: list[str], says: str) -> None:
    out = tmp_path / "new" / "a"
    ended = edge("build", str(checkpoint), "--target", "cpu", "--out", str(out), "--json", *wish)
    assert ended.code == 12
    report = out.with_name("a.fidelity.html")
    assert says in ended.err and f"Nothing was written but the report {report}" in ended.err
    assert json.loads(ended.out)["error"]["kind"] == "FidelityError"
    assert {path.name for path in out.parent.iterdir()} == {report.name}
    page = report.read_text(encoding="utf-8")
    assert "KL divergence by position" in page and "layers.1.down_proj" in page and "Where they differ most" in page
    assert edge("build", str(checkpoint), "--target", "cpu", "--out", str(out)).code == 0
    assert not report.exists(), "it speaks of an artifact that was not made"


def test_an_artifact_that_is_there_stays_when_its_successor_may_not_ship(checkpoint: Path, tmp_path: Path) -> None:
    first = edgekit.build(checkpoint, target="cpu", output=tmp_path / "a")
    with pytest.raises(FidelityError):
        edgekit.build(checkpoint, target="cpu", output=tmp_path / "a", force=True, limits=Limits(0.001))
    assert load_artifact(tmp_path / "a").manifest == first


def shuffled_rows(model: Model, m: Matrix, quantizer: Quantizer) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    weight = model.tensor(m.weight)
    return weight[np.random.default_rng(0).permutation(len(weight))] if m.weight == "layers.0.o_proj" else weight


@pytest.mark.parametrize("model", ["tiny-phi", "random"])
def test_a_broken_model_is_stopped_by_the_default(checkpoint: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the rows of one matrix of all: a random model's limits are wider, and still closed."""
    monkeypatch.setattr(quantized, "dequantized", shuffled_rows)
    with pytest.raises(FidelityError, match="mean KL divergence"):
        edgekit.build(checkpoint if model == "random" else model, target="cpu", output=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_weights_that_give_nothing_finite(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "dequantized", lambda model, m, _: model.tensor(m.weight) * np.float32("inf"))
    with np.errstate(all="ignore"), pytest.raises(FidelityError, match="give logits that are not finite"):
        edgekit.build(checkpoint, target="cpu", output=tmp_path / "a")


def test_limits_are_the_schemes_unless_asked_for_or_the_model_guesses(checkpoint: Path) -> None:
    from edgekit.companions import read_companions
    from edgekit.progress import silent
    from edgekit.quant.scheme import SCHEMES

    model = model_at(checkpoint)
    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    made = gate.Quantized(model, model, SCHEMES["int4-g64"], Quantizer(), {"any": "digest"})
    found = gate.measure_weights(made, companions, default_text(model), silent)
    assert found.parts[0].figures.reference_perplexity.value > 320, "random weights know nothing of a text"
    assert gate.limits_for(made.scheme, Limits(), found, 320) == GUESSING
    assert gate.limits_for(made.scheme, Limits(), found, 10**6) == DEFAULTS[64]
    assert gate.limits_for(made.scheme, Limits(0.3), found, 10**6) == Limits(0.3, DEFAULTS[64].min_top1)
    assert gate.limits_for(made.scheme, Limits(0.3, 0.0), found, 320) == Limits(0.3, 0.0)


def test_a_second_target_does_not_pay_again(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    first = edgekit.build(checkpoint, target=write_target(tmp_path / "cpu.toml", "onnx"), output=tmp_path / "a")
    monkeypatch.setattr("edgekit.reference._attention", lambda *_: pytest.fail("the reference runs again"))
    second = edgekit.build(checkpoint, target=write_target(tmp_path / "mac.toml", "mlx"), output=tmp_path / "b")
    assert first.fidelity == second.fidelity


def test_other_settings_of_a_model_are_not_taken_for_the_same(checkpoint: Path, tmp_path: Path) -> None:
    """What is kept goes by config.json too: the same tensors with another RoPE give other logits."""
    first = edgekit.build(checkpoint, target="cpu", output=tmp_path / "a").fidelity
    copy = make_checkpoint(tmp_path / "copy", "phi3-longrope")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": 500.0}), encoding="utf-8")
    second = edgekit.build(copy, target="cpu", output=tmp_path / "b").fidelity
    assert first is not None and second is not None and first.parts != second.parts


def test_the_artifact_itself_on_demand(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    manifest = edgekit.build(checkpoint, target="cpu", output=tmp_path / "a", full=True)
    assert manifest.fidelity is not None and manifest.fidelity.verified == "full"
    assert manifest.fidelity.parts[0].positions > 1000


def test_an_engine_without_weights_has_none_to_measure(checkpoint: Path, tmp_path: Path) -> None:
    found = edgekit.build(checkpoint, target=write_target(tmp_path / "t.toml", "null"), output=tmp_path / "a").fidelity
    assert found is not None and (found.verified, found.reason) == ("not verified", "null holds no weights")

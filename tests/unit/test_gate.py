"""The gate in the build: what is measured, what ships, and what an artifact that may not ship leaves behind."""

import json
import re
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
from edgekit.fidelity_advice import LAST, advice
from edgekit.fidelity_gate import DEFAULT, GUESSING, Limits
from edgekit.fitting import ALONE, METHODS, Method
from edgekit.models import Model
from edgekit.precision import finest
from edgekit.quant.scheme import GROUPS, scheme
from edgekit.quantized import Matrix, Quantizer
from smollm2 import smollm2
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
    assert (found.max_kl, found.min_top1) == (0.2, 0.7), "those of every scheme"
    assert [(part.name, part.positions) for part in found.parts] == [("short", 256), ("long", 127)], "whatever the target's own context"
    assert all(0 < part.mean_kl < 0.002 and part.same_top > 0.8 and part.perplexity < 5 for part in found.parts)
    assert load_artifact(tmp_path / "a").manifest.fidelity == found
    shown = edge("inspect", str(tmp_path / "a")).out
    kl = f"KL {found.parts[0].mean_kl:.3g}"
    assert "fidelity" in shown and kl in shown and "limits: KL 0.2" in shown
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


def test_one_message_has_every_limit_missed_and_so_has_the_top_of_the_report(edge: Edge, checkpoint: Path, tmp_path: Path) -> None:
    """In every part: below and beyond the LongRoPE switch."""
    ended = edge("build", str(checkpoint), "--target", "cpu", "--out", str(tmp_path / "a"), "--max-kl", "0.01", "--min-top1", "1")
    assert ended.code == 12 and ended.err.count("edge: error:") == 1
    for part in ("short context (", "long context ("):
        rest = ended.err.split(part)[1].split(";")[0]
        assert "mean KL divergence" in rest and "above 0.01 (--max-kl)" in rest and "below 100.0% (--min-top1)" in rest
    page = (tmp_path / "a.fidelity.html").read_text(encoding="utf-8")
    top = page.split("<h1>")[1].split("KL divergence by position")[0]
    assert top.index("This build was refused") < top.index("positions scored")
    assert top.count("is above 0.01 (--max-kl)") == 2 and top.count("(--min-top1)") == 2 and "times as much" in top and "points less" in top
    assert "What to do: build with --scheme int4-g128 --calibrate default" in top


def test_advice_is_never_what_was_just_done() -> None:
    model = model_at(Path(edgekit.__file__).parent / "tiny_phi")
    done: list[tuple[str, Method, float | None]] = [(f"int4-g{g}", m, None) for g in GROUPS for m in METHODS]
    done += [("int4-g32", "awq-gptq", 6.1), ("int4-g128", "equalize", 5.5)]
    for name, method, bits in done:
        said = advice(model, scheme(name), method, bits)
        steps = re.findall(r"build with (--[^;]+)", said)
        asked = f"--scheme {name}{' --calibrate default' if method == 'awq-gptq' else ''}{'' if bits is None else f' --bits {bits:g}'}"
        assert asked not in steps, (name, method, bits)
        assert steps and len(steps) == len(set(steps)) and all("--calibrate" in step for step in steps)
    assert advice(model, scheme("int4-g32"), "equalize").startswith("build with --scheme int4-g32 --calibrate default;")
    assert "int4-g32 --calibrate default --bits" in advice(model, scheme("int4-g32"), "awq-gptq")
    assert advice(model, finest(model, scheme("int4-g32")), "awq-gptq", 8.2) == LAST
    symmetric = scheme("int4-sym-g128")
    assert "--calibrate" not in advice(model, symmetric, "equalize") and "another --target" in advice(model, symmetric, "equalize")
    assert all(f"--method {method}" not in advice(model, symmetric, method) for method in ALONE)


def follow(edge: Edge, model: str, out: Path, steps: int, cap: float) -> list[float]:
    """The divergence of a default build and of what each refusal advises; a budget has to pass where the last one was not enough."""
    options: list[str] = []
    found: list[float] = []
    for _ in range(steps + 1):
        budget = "--bits" in options
        limit = found[-1] if budget else cap
        ended = edge("build", model, "--target", "cpu", "--out", str(out), "--max-kl", str(limit), "--min-top1", "0", *options, "--json")
        if budget:
            assert ended.code == 0, ended.err
            return [*found, json.loads(ended.out)[0]["mean_kl"]]
        assert ended.code == 12, ended.err
        found.append(max(float(kl) for kl in re.findall(r"mean KL divergence (\S+) is above", ended.err)))
        advised = re.search(r"; build with (--[^;]+)", ended.err)
        assert advised is not None and advised[1].split() != options
        options = advised[1].split()
    return found


def test_following_the_advice_gains_at_each_step(edge: Edge, tmp_path: Path) -> None:
    found = follow(edge, "tiny-phi", tmp_path / "a", 2, 1e-9)
    assert found == sorted(found, reverse=True) and found[0] > 2 * found[1] > 2 * found[2]


@pytest.mark.full_size
@pytest.mark.parametrize("off_grid", [False, True])
def test_on_the_real_model_the_first_advice_passes_and_all_of_it_gains(edge: Edge, tmp_path: Path, off_grid: bool) -> None:
    """Default, calibrated, calibrated in groups of 32, with more bits: half an hour on two cores."""
    model = smollm2(tmp_path / "smollm2", off_grid=off_grid)
    found = follow(edge, str(model), tmp_path / "a", 3, 1e-9)
    assert found == sorted(found, reverse=True) and len(found) == 4
    assert off_grid or found[0] > DEFAULT.max_kl >= found[1]


def test_limits_that_nothing_can_keep_are_known_before_the_long_job(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.precision.sensitivities", lambda *_: pytest.fail("the long job has begun"))
    with pytest.raises(
        FidelityError, match=r"in the finest formats of int4-g128 \(8\.\d+ bits a weight\).*above 1e-09.*no --bits and no --fit"
    ):
        edgekit.build(checkpoint, target="cpu", output=tmp_path / "a", bits=6.0, limits=Limits(1e-9))
    assert not list(tmp_path.glob("a*"))


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


def test_limits_are_edgekits_unless_asked_for_or_the_model_guesses(checkpoint: Path) -> None:
    from edgekit.companions import read_companions
    from edgekit.progress import silent
    from edgekit.quant.scheme import SCHEMES

    model = model_at(checkpoint)
    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    made = gate.Quantized(model, model, SCHEMES["int4-g64"], Quantizer(), {"any": "digest"})
    found = gate.measure_weights(made, companions, default_text(model), silent)
    assert found.parts[0].figures.reference_perplexity.value > 320, "random weights know nothing of a text"
    assert gate.limits_for(Limits(), found, 320) == GUESSING
    assert gate.limits_for(Limits(), found, 10**6) == DEFAULT
    assert gate.limits_for(Limits(0.3), found, 10**6) == Limits(0.3, DEFAULT.min_top1)
    assert gate.limits_for(Limits(0.3, 0.0), found, 320) == Limits(0.3, 0.0)


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

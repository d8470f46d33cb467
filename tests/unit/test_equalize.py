"""Equalized weights: the same model in exact arithmetic, nearer to it once rounded, without a text, the same from any cache or thread."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import make_checkpoint
from edgekit import equalize as module
from edgekit.artifact import load_artifact
from edgekit.build import build
from edgekit.cache import Cache, source_files
from edgekit.catalog import resolve
from edgekit.companions import read_companions
from edgekit.divergence import compare, figures, join
from edgekit.equalize import _product, equalize
from edgekit.fidelity import default_text
from edgekit.folds import NORMS, packed, packed_bytes, unpacked
from edgekit.models import Model, open_model
from edgekit.origin import check_origin
from edgekit.progress import silent
from edgekit.quant.gptq import F64
from edgekit.quant.rtn import F32
from edgekit.quant.scheme import Format, scheme
from edgekit.quantized import Quantizer, dequantized, matrices
from edgekit.reference import reference_logits_many
from edgekit.windows import Effort, windows
from tiny_artifact import write_target

VARIANTS = ["phi3-longrope", "mistral-head-dim", "llama3", "qwen2", "llama-ragged"]


def opened(place: Path | str) -> Model:
    return open_model(resolve(str(place), progress=silent))


def formats(model: Model, name: str = "int4-g32") -> dict[str, Format]:
    return {m.weight: m.format for m in matrices(model, scheme(name))}


@pytest.mark.parametrize("variant", [*VARIANTS, "tiny-phi"])
def test_it_computes_the_same(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_helps", lambda *_: True)
    model = opened("tiny-phi" if variant == "tiny-phi" else make_checkpoint(tmp_path / "m", variant))
    other = equalize(model, formats(model), silent)
    tokens = [[7, 300, 12, 5, 5, 90, 41, 2, 18], [3, 1]]
    wanted = np.concatenate(reference_logits_many(model.decoder, model.tensor, tokens))
    got = np.concatenate(reference_logits_many(model.decoder, other.tensor, tokens))
    np.testing.assert_allclose(got, wanted, atol=2e-5 if variant != "tiny-phi" else 2e-4)
    # Rows of random weights are all alike: no power of two is nearer to their factors than 1.
    for part in ("q_proj", "gate_proj", *(("down_proj",) if variant == "tiny-phi" else ())):
        assert not np.array_equal(other.tensor(f"layers.0.{part}"), model.tensor(f"layers.0.{part}")), part


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_and_biases_take_the_factors_of_the_next_matrix(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights are alike, so their factors are all 1: others, as real models have them."""
    rng = np.random.default_rng(5)

    def spread(moments: F64, squares: F64, *, tied: NDArray[np.intp] | None = None, powers_of_two: bool = False) -> F32:
        group = np.arange(len(moments)) if tied is None else tied
        raw = rng.uniform(-2, 2, int(group.max()) + 1)
        return np.exp2(np.rint(raw) if powers_of_two else raw)[group].astype(np.float32)

    monkeypatch.setattr(module, "balanced", spread)
    monkeypatch.setattr(module, "_helps", lambda *_: True)
    model = opened(make_checkpoint(tmp_path / "m", variant))
    other = equalize(model, formats(model), silent)
    tokens = [[7, 300, 12, 5, 5, 90, 41, 2, 18], [3, 1]]
    wanted = np.concatenate(reference_logits_many(model.decoder, model.tensor, tokens))
    got = np.concatenate(reference_logits_many(model.decoder, other.tensor, tokens))
    np.testing.assert_allclose(got, wanted, atol=2e-5)
    for part in ("o_proj", "down_proj", "v_proj", "up_proj"):
        assert not np.array_equal(other.tensor(f"layers.0.{part}"), model.tensor(f"layers.0.{part}")), part


def test_columns_become_as_large_as_their_inputs_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_helps", lambda *_: True)
    model = opened(make_checkpoint(tmp_path / "m", "llama3"))
    other = equalize(model, formats(model), silent)
    for first, norm in NORMS.items():
        parts = ("q_proj", "k_proj", "v_proj") if first == "q_proj" else ("gate_proj", "up_proj")
        # Of v and up the rows are divided too, by powers of two.
        kept = [part for part in parts if part not in ("v_proj", "up_proj")]
        before, after = (np.concatenate([m.tensor(f"layers.0.{part}") for part in kept]) for m in (model, other))
        by = after[0] / before[0]
        size = np.abs(model.tensor(f"layers.0.{norm}"))
        weight = np.sqrt(sum(np.square(model.tensor(f"layers.0.{part}")).mean(axis=0) for part in parts))
        ratio = by / np.sqrt(size / weight)
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=2e-3)


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.5, 1.0])
def test_size_of_a_gated_product(correlation: float) -> None:
    rng = np.random.default_rng(3)
    gate, up = np.array([0.01, 0.5, 2.0, 9.0]), np.array([1.0, 0.2, 3.0, 4.0])
    z = rng.standard_normal((2, 400_000))
    g = np.sqrt(gate)[:, None] * z[0]
    u = np.sqrt(up)[:, None] * (correlation * z[0] + np.sqrt(1 - correlation**2) * z[1])
    wanted = np.square(g / (1 + np.exp(-g)) * u).mean(axis=1)
    np.testing.assert_allclose(_product(gate, up, correlation * np.sqrt(gate * up)), wanted, rtol=0.05)
    assert _product(np.zeros(1), np.ones(1), np.zeros(1)) == 0


@pytest.mark.parametrize("grid", [32, 128])
def test_what_lies_on_the_grid_stays(tmp_path: Path, grid: int) -> None:
    model = opened(make_checkpoint(tmp_path / "m", "phi3", grid=grid))
    other = equalize(model, formats(model, f"int4-g{grid}"), silent)
    assert not other.folded.columns and not other.folded.vectors


def test_only_4_bits_are_helped(tmp_path: Path) -> None:
    model = opened(make_checkpoint(tmp_path / "m", "llama"))
    fine = formats(model) | {f"layers.{i}.k_proj": Format(8, 32) for i in range(model.decoder.layers)}
    folded = equalize(model, fine, silent).folded.columns
    assert not any(name.endswith(("q_proj", "k_proj", "v_proj")) for name in folded)


def test_scales_stay_within_float16() -> None:
    largest = np.array([0.0, 1e-6, 0.5, 3.0, 5000.0], np.float32)
    least, most = module._reach(module._Seen(np.zeros(1), np.zeros(5), largest))
    assert (least <= 1).all() and (most >= 1).all()
    assert (largest / most >= np.minimum(largest, module.STEPS * 2.0**-14)).all()
    assert (largest / least <= np.maximum(largest, 1000)).all()
    assert most[2] > 16 and most[1] == 1


def test_threads_and_cache_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("tiny-phi")
    form, sources = formats(model, "int4-g128"), source_files({t.file for t in model.checkpoint.tensors.values()}, None, silent, None)
    kept = Cache(tmp_path / "cache", 1 << 30)

    def same(other: Model) -> bool:
        pairs = (
            (other.folded.columns, wanted.folded.columns),
            (other.folded.rows, wanted.folded.rows),
            (other.folded.vectors, wanted.folded.vectors),
        )
        return all(a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a) for a, b in pairs)

    wanted = equalize(model, form, silent, threads=1)
    assert wanted.folded.columns and wanted.folded.vectors
    assert same(equalize(model, form, silent, cache=kept, sources=sources, threads=3))
    other = equalize(model, formats(model, "int4-sym-g128"), silent, cache=kept, sources=sources)
    assert same(equalize(model, formats(model, "int4-sym-g128"), silent)) == same(other), "of another scheme, not of this"
    monkeypatch.setattr(module, "_folds", lambda *_: pytest.fail("all of it is kept"))
    assert same(equalize(model, form, silent, cache=kept, sources=sources))


def test_folds_are_kept_as_they_are(tmp_path: Path) -> None:
    model = opened(make_checkpoint(tmp_path / "m", "qwen2"))
    made = module._folds(model, 1, formats(model))
    payload = b"".join(packed(model, 1, made))
    assert len(payload) == packed_bytes(model.decoder)
    found = unpacked(model, 1, memoryview(payload))
    for a, b in ((made.columns, found.columns), (made.vectors, found.vectors)):
        assert a.keys() >= b.keys() and all(np.array_equal(a[name], b[name]) for name in b)


def test_blocks_of_another_method_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    target = write_target(tmp_path / "t.toml", "null")
    cached = [
        build("tiny-phi", target=target, output=tmp_path / m, method=m, scheme="int4-g128", verify=False).weights
        for m in ("search", "equalize", "minmax")
    ]
    plain = [
        build("tiny-phi", target=target, output=tmp_path / f"{m} anew", method=m, scheme="int4-g128", verify=False, cached=False).weights
        for m in ("search", "equalize", "minmax")
    ]
    assert cached == plain


def test_an_artifact_is_compared_with_its_checkpoint_equalized(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "m", "phi3-longrope")
    manifest = build(model, target=write_target(tmp_path / "t.toml", "onnx"), output=tmp_path / "a")
    assert manifest.scheme.method == "equalize" and manifest.calibration is None
    found = check_origin(load_artifact(tmp_path / "a"), opened(model), same_source=True, progress=silent)
    assert found.problems == () and found.weights == "equal to its model's, quantized again"


@pytest.mark.parametrize("place", ["tiny-phi", "bench/data/tiny-llama", "bench/data/tiny-mistral"])
def test_the_usual_build_at_g128_is_closer_than_plain_rounding_at_g32(place: str) -> None:
    root = Path(__file__).resolve().parents[2]
    model = opened(place if place == "tiny-phi" else root / place)
    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    cut = windows(companions.tokenizer.encode(default_text(opened("tiny-phi"))), [], 256, None, Effort(2048, 256, 0))
    given = [w.given for w in cut]
    reference = reference_logits_many(model.decoder, model.tensor, given)

    def kl(other: Model, name: str, quantizer: Quantizer) -> float:
        weights: dict[str, F32] = {m.weight: dequantized(other, m, quantizer) for m in matrices(other, scheme(name))}
        found = reference_logits_many(model.decoder, lambda n: weights[n] if n in weights else other.tensor(n), given)
        return figures(
            join(compare(p[-w.scored :], q[-w.scored :], w.following) for w, p, q in zip(cut, reference, found, strict=True))
        ).mean_kl.value

    usual = kl(equalize(model, formats(model, "int4-g128"), silent), "int4-g128", Quantizer())
    assert usual < kl(model, "int4-g32", Quantizer(search=False))
    assert usual < 0.5 * kl(model, "int4-g128", Quantizer())

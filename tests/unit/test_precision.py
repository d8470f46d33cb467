"""Mixed precision: the choice is the best there is, keeps its budget, and every engine lays out the same weights."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import make_checkpoint
from edgekit import precision
from edgekit.artifact import Manifest
from edgekit.build import build
from edgekit.catalog import resolve
from edgekit.errors import UsageError
from edgekit.models import Model, open_model
from edgekit.precision import Budget, mixed, options
from edgekit.progress import silent
from edgekit.quant import dequantize, quantize
from edgekit.quant.allocate import allocate
from edgekit.quant.scheme import Format, QuantScheme, scheme
from edgekit.quantized import matrices
from edgekit.reference import reference_logits_many
from edgekit.sensitivity import sensitivities, units

ITEMS = st.lists(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 9)), min_size=1, max_size=4), min_size=1, max_size=5)


def local(directory: Path) -> Model:
    return open_model(resolve(str(directory), progress=silent))


@settings(max_examples=200, deadline=None)
@given(ITEMS, st.integers(0, 150), st.integers(1, 1000))
def test_the_choice_is_the_best(items: list[list[tuple[int, float]]], budget: int, unit: int) -> None:
    costs, losses = [[c * unit for c, _ in item] for item in items], [[loss for _, loss in item] for item in items]
    chosen = allocate(costs, losses, budget * unit)
    within = [
        sum(loss[i] for loss, i in zip(losses, pick, strict=True))
        for pick in itertools.product(*(range(len(item)) for item in items))
        if sum(cost[i] for cost, i in zip(costs, pick, strict=True)) <= budget * unit
    ]
    if chosen is None:
        assert not within
        return
    assert sum(cost[i] for cost, i in zip(costs, chosen, strict=True)) <= budget * unit
    assert sum(loss[i] for loss, i in zip(losses, chosen, strict=True)) == pytest.approx(min(within), abs=1e-9)


def test_many_places_are_rounded_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.quant.allocate.PLACES", 50)
    rng = np.random.default_rng(3)
    costs = [[0, *rng.integers(1, 100_000, 3).tolist()] for _ in range(12)]
    losses = [[9.0, *rng.random(3).tolist()] for _ in range(12)]
    chosen = allocate(costs, losses, 300_000)
    assert chosen is not None
    assert sum(cost[i] for cost, i in zip(costs, chosen, strict=True)) <= 300_000


def test_what_is_measured_is_the_divergence_of_one_unit(tmp_path: Path) -> None:
    """The first form of each unit, against a whole pass with that unit alone quantized."""
    from edgekit.divergence import compare

    model = local(make_checkpoint(tmp_path / "m", "qwen2"))
    sequences = [[5, 9, 200, 31, 7, 7, 12], [1, 2, 3, 4]]
    every, forms = units(model.decoder), [Format(4, 64), Format(4, 32), Format(8, 64)]
    found = sensitivities(model, every, [forms] * len(every), sequences, silent)
    reference = np.concatenate(reference_logits_many(model.decoder, model.tensor, sequences))
    for unit, losses in zip(every, found, strict=True):

        def tensor(name: str, weights: tuple[str, ...] = unit.weights) -> np.ndarray:
            weight = model.tensor(name)
            return dequantize(quantize(weight, forms[0], name=name)) if name in weights else weight

        logits = np.concatenate(reference_logits_many(model.decoder, tensor, sequences))
        wanted = compare(reference, logits, [0] * len(logits)).kl.mean()
        assert losses[0] == pytest.approx(wanted, rel=1e-3)
        assert losses[0] > losses[1] > losses[2] > 0


def portable_bits(model: Model, quant: QuantScheme) -> float:
    every = matrices(model, quant)
    return sum(m.format.bits_per_weight * m.shape[0] * m.shape[1] for m in every) / sum(m.shape[0] * m.shape[1] for m in every)


def test_a_budget_of_bits_is_kept(tmp_path: Path) -> None:
    model = local(make_checkpoint(tmp_path / "m", "phi3"))
    quant = scheme("int4-g128")
    rng = np.random.default_rng(0)
    losses = [sorted(rng.random(len(options(quant, unit, model))), reverse=True) for unit in units(model.decoder)]
    last = 0.0
    for bits in (6.2, 6.5, 7.0, 9.0):
        found = mixed(model, quant, Budget(bits=bits), losses, lambda _: 0)
        assert last <= portable_bits(model, found) <= bits
        last = portable_bits(model, found)
        for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            assert len({found.format_of(f"layers.1.{part}") for part in parts}) == 1, "some engines hold them as one"
    assert {form.bits for _, form in found.exceptions} == {8}, "9 bits are enough for all at INT8"


def test_every_engine_lays_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    made: dict[str, Manifest] = {}
    for target in ("cpu", "intel-cpu", "apple-m"):
        with monkeypatch.context() as patch:
            if made:
                patch.setattr(precision, "sensitivities", lambda *_: pytest.fail("it is kept"))
            made[target] = build("tiny-phi", target=target, output=tmp_path / target, bits=6.5, verify=target != "apple-m")
    first = made["cpu"]
    assert len({form.group for form in first.scheme.exceptions.values()} | {form.bits for form in first.scheme.exceptions.values()}) > 1
    for manifest in made.values():
        assert manifest.weights == first.weights and manifest.scheme.exceptions == first.scheme.exceptions
    og, mlx_lm = pytest.importorskip("onnxruntime_genai"), pytest.importorskip("mlx_lm.utils")
    og.Model(str(tmp_path / "cpu"))
    pytest.importorskip("openvino_genai").LLMPipeline(str(tmp_path / "intel-cpu"), "CPU")
    layers = mlx_lm.load_model(tmp_path / "apple-m")[0].model.layers
    for name, form in first.scheme.exceptions.items():
        at, part = name.split(".")[1:3] if name.startswith("layers.") else ("0", "")
        if part == "o_proj":
            assert (layers[int(at)].self_attn.o_proj.group_size, layers[int(at)].self_attn.o_proj.bits) == (form.group, form.bits)
    plain = build("tiny-phi", target="cpu", output=tmp_path / "plain")
    assert plain.scheme.exceptions == {} and plain.scheme.bits_per_weight < first.scheme.bits_per_weight
    assert first.fidelity is not None and plain.fidelity is not None
    assert first.fidelity.parts[0].mean_kl < plain.fidelity.parts[0].mean_kl


def test_a_budget_of_bytes_is_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    model = make_checkpoint(tmp_path / "m", "llama")
    small = build(model, target="cpu", output=tmp_path / "a", verify=False)
    size = small.files["model.onnx.data"].bytes
    found = build(model, target="cpu", output=tmp_path / "b", verify=False, fit_bytes=size + 60_000)
    assert size < found.files["model.onnx.data"].bytes <= size + 60_000
    assert found.scheme.exceptions


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"bits": 3.9}, r"--bits 3.9 is below the least for .*, \d\.\d+"),
        ({"bits": 9.0}, r"--bits 9 is above the most for .*, \d\.\d+: int4-g128 can be had with \d\.\d+ to \d\.\d+ bits"),
        ({"fit_bytes": 1000}, r"--fit 1e-06GB is below the least for .* here, 0\.\d+GB"),
        ({"bits": 5.0, "fit_bytes": 1000}, "contradict"),
        ({"bits": 5.0, "scheme": "int4-sym-g128"}, "one format only"),
        ({"method": "best"}, "unknown method 'best'; known: minmax, search, equalize, awq, gptq, awq-gptq"),
        ({"method": "search", "calibration": "text"}, "looks at the weights only"),
    ],
)
def test_what_cannot_be_met_is_refused(tmp_path: Path, wishes: dict[str, object], message: str) -> None:
    model = make_checkpoint(tmp_path / "m", "llama")
    with pytest.raises(UsageError, match=message):
        build(model, target="cpu", output=tmp_path / "a", cached=False, **wishes)  # type: ignore[arg-type]

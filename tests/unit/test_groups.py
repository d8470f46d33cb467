"""Widths that the scheme's groups do not divide, as SmolLM2's 576: each matrix in the largest group that does, the same on every engine."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgekit
from checkpoints import make_checkpoint
from edgekit.artifact import Manifest, TensorFormat, load_artifact
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.engines import ENGINES
from edgekit.engines.onnx.export import check as check_onnx
from edgekit.engines.qnn.layout import plan as plan_qnn
from edgekit.listing import description, headline
from edgekit.models import Model, open_model
from edgekit.origin import Reader, check_origin
from edgekit.parity import verify
from edgekit.progress import silent
from edgekit.quant import dequantize
from edgekit.quant.scheme import SCHEMES, Format, QuantizedTensor, scheme
from edgekit.quantized import matrices
from edgekit.reference import reference_logits
from edgekit.target import load_target
from onnx_artifact import random_tokens
from smollm2 import smollm2

TARGETS = ("cpu", "apple-m", "intel-cpu", "directml", "webgpu", "cuda")
WIDTHS = {"llama-576": {576: 64, 1536: 128}, "llama-192": {192: 64, 96: 32}}


def opened(directory: Path) -> Model:
    return open_model(open_checkpoint(directory, Source("test", "local", None, None)))


def stored(directory: Path, model: Model) -> Mapping[str, QuantizedTensor]:
    """Every matrix as the engine's own file holds it, by code that shares nothing with the exporter."""
    artifact = load_artifact(directory)
    module = ENGINES[artifact.manifest.engine.name].read
    assert module is not None
    reader: Reader = importlib.import_module(module)  # type: ignore[assignment]
    held = reader.open_stored(directory, artifact.manifest, model)
    held_as = artifact.manifest.scheme
    kinds = {"embed_tokens": held_as.embedding, "lm_head": held_as.lm_head}
    found = {}
    for name, shape in model.decoder.weight_shapes().items():
        if len(shape) == 2:
            form = held_as.exceptions.get(name) or kinds.get(name, held_as.linear)
            found[name] = held.block(name, 0, shape[0], Format(form.bits, form.group or 0))
    return found


@pytest.mark.parametrize(
    ("k", "groups"),
    [(4096, (32, 64, 128)), (576, (32, 64, 64)), (192, (32, 64, 64)), (96, (32, 32, 32)), (4544, (32, 64, 64)), (80, (32, 64, 128))],
)
def test_the_largest_group_that_divides_is_taken(k: int, groups: tuple[int, ...]) -> None:
    """Up to the scheme's, at 4 and 8 bits, symmetric or not; where none divides the scheme's own is filled up, as it always was."""
    for bits, symmetric in ((4, False), (8, False), (4, True)):
        found = tuple(Format(bits, group, symmetric).fitted(k) for group in (32, 64, 128))
        assert found == tuple(Format(bits, group, symmetric) for group in groups)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("variant", ["llama-576", "llama-192"])
def test_no_scheme_is_larger_than_a_finer_one(tmp_path: Path, variant: str, name: str) -> None:
    model = opened(make_checkpoint(tmp_path, variant))

    def bits(name: str) -> float:
        return sum(m.shape[0] * m.shape[1] * m.format.bits_per_weight for m in matrices(model, scheme(name)))

    assert bits(name) <= bits("int4-g64") <= bits("int4-g32") or name == "int4-g32"
    assert all(m.shape[1] % m.format.group == 0 for m in matrices(model, scheme(name)))


@pytest.mark.parametrize("variant", WIDTHS)
def test_every_engines_file_holds_the_same_codes(tmp_path: Path, variant: str) -> None:
    model = opened(make_checkpoint(tmp_path / "model", variant))
    made: dict[str, Manifest] = {}
    for target in TARGETS:
        made[target] = edgekit.build(tmp_path / "model", target=target, output=tmp_path / target, verify=False)
    first = stored(tmp_path / "cpu", model)
    for name, tensor in first.items():
        assert tensor.format.group == WIDTHS[variant][tensor.shape[1]], name
    for target in TARGETS[1:]:
        for name, tensor in stored(tmp_path / target, model).items():
            for part in ("codes", "scales", "zeros"):
                assert np.array_equal(getattr(tensor, part), getattr(first[name], part)), (target, name, part)
        assert made[target].weights == made["cpu"].weights
        assert made[target].scheme.exceptions == made["cpu"].scheme.exceptions
    report = verify([tmp_path / target for target in TARGETS], weights_only=True)
    assert all(c.agrees and c.weights == "equal" for c in report.compared)
    for target in ("cpu", "directml", "apple-m"):
        assert check_origin(load_artifact(tmp_path / target), model, same_source=True, progress=silent).problems == (), target


@pytest.mark.parametrize("variant", WIDTHS)
def test_manifest_summary_and_mlx_config_say_so(tmp_path: Path, variant: str) -> None:
    make_checkpoint(tmp_path / "model", variant)
    manifest = edgekit.build(tmp_path / "model", target="apple-m", output=tmp_path / "out", verify=False)
    assert manifest.scheme.name == "int4-g128" and manifest.scheme.linear == TensorFormat(4, 128)
    assert manifest.scheme.embedding == manifest.scheme.lm_head == TensorFormat(8, 64)
    assert manifest.scheme.exceptions["layers.0.q_proj"] == TensorFormat(4, 64)
    assert "int4-g128 (also g64" in headline(manifest)
    assert any(text.startswith("4 bits g64: q_proj of ") for _, text in description(manifest, checked=False))
    quantization = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["quantization"]
    assert quantization["model.layers.0.self_attn.q_proj"] == {"group_size": 64, "bits": 4}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("variant", WIDTHS)
def test_engines_with_kernels_for_whole_groups_take_them(tmp_path: Path, variant: str, name: str) -> None:
    """DirectML, MLX and Qualcomm refused such widths at int4-g128."""
    model = opened(make_checkpoint(tmp_path, variant))
    check_onnx(model, scheme(name), load_target("directml"))
    if not SCHEMES[name].linear.symmetric:
        plan_qnn(model, scheme(name), replace(load_target("snapdragon-8-gen3"), context=64))


def test_an_older_artifact_with_filled_up_groups_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest has no exceptions and its matrices five groups of 128: it is read as it says, not as it would be built now."""
    model = opened(make_checkpoint(tmp_path / "model", "llama-576"))
    with monkeypatch.context() as before:
        before.setattr(Format, "fitted", lambda self, k: self)
        manifest = edgekit.build(tmp_path / "model", target="cpu", output=tmp_path / "old", verify=False)
    assert manifest.scheme.exceptions == {} and manifest.scheme.embedding == TensorFormat(8, 128)
    origin = check_origin(load_artifact(tmp_path / "old"), model, same_source=True, progress=silent)
    assert not origin.problems and origin.weights == "equal to its model's, quantized again"
    edgekit.build(tmp_path / "model", target="cpu", output=tmp_path / "new", verify=False)  # with the old one's blocks in the cache
    assert not check_origin(load_artifact(tmp_path / "new"), model, same_source=True, progress=silent).problems
    assert stored(tmp_path / "new", model)["layers.0.q_proj"].format.group == 64


def test_the_logits_are_those_of_the_weights(tmp_path: Path) -> None:
    """Every kernel reads such widths right: the engine against the reference with the dequantized weights."""
    model = opened(make_checkpoint(tmp_path / "model", "llama-576"))
    tokens = random_tokens(40)
    for target, tolerance in (("cpu", 0.15), ("intel-cpu", 0.15), ("apple-m", 0.02)):
        if target == "apple-m":
            pytest.importorskip("mlx_lm")
        edgekit.build(tmp_path / "model", target=target, output=tmp_path / target, verify=False)
        held = {name: dequantize(t) for name, t in stored(tmp_path / target, model).items()}
        artifact = load_artifact(tmp_path / target)
        module = importlib.import_module(ENGINES[artifact.manifest.engine.name].read or "")
        vectors = module.open_stored(tmp_path / target, artifact.manifest, model)

        def tensor(name: str, held: Mapping[str, np.ndarray] = held, vectors: object = vectors) -> np.ndarray:
            return held[name] if name in held else vectors.vector(name).astype(np.float32)

        wanted = reference_logits(model.decoder, tensor, tokens, last=1)[0]
        session = edgekit.runtime.open_session(tmp_path / target, artifact.manifest)
        found = session.forward(tokens)
        session.close()
        assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max(), target


def test_the_real_model_gets_smaller_than_with_the_finer_scheme(tmp_path: Path) -> None:
    model = opened(smollm2(tmp_path))

    def bits(name: str) -> float:
        every = matrices(model, scheme(name))
        return sum(m.shape[0] * m.shape[1] * m.format.bits_per_weight for m in every) / sum(m.shape[0] * m.shape[1] for m in every)

    assert bits("int4-g128") < 5.15 < bits("int4-g64") < 5.18 < bits("int4-g32")

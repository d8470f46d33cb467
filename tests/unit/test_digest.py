"""Digests of portable weights: by the specification in docs/artifact.md, and equal whatever engine, cache or threads."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

import edgekit
from checkpoints import Variant, make_checkpoint
from edgekit import quantized
from edgekit.artifact import load_artifact
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.digest import Ledger, weight_digests
from edgekit.equalize import equalize
from edgekit.models import Model, open_model
from edgekit.progress import silent
from edgekit.quant import quantize
from edgekit.quant.scheme import Format, scheme
from edgekit.quantized import matrices
from tiny_artifact import build_tiny, write_target


def opened(directory: Path) -> Model:
    return open_model(open_checkpoint(directory, Source("test", "local", None, None)))


def specified(model: Model, name: str, form: Format, rows: int) -> str:
    """A matrix's digest as docs/artifact.md says it, by struct and plain loops."""
    whole = quantize(model.tensor(name), form, name=name)
    n, k = whole.shape
    digest = hashlib.sha256(b"INT%d g%d %dx%d\n" % (form.bits, form.group, n, k))
    for start in range(0, n, rows):
        part = slice(start, min(start + rows, n))
        scales = struct.pack(f"<{whole.scales[part].size}e", *whole.scales[part].reshape(-1).tolist())
        digest.update(hashlib.sha256(whole.codes[part].tobytes() + scales + bytes(whole.zeros[part].reshape(-1).tolist())).digest())
    return digest.hexdigest()


@pytest.mark.parametrize("block", [1 << 21, 3000])
def test_they_are_what_the_specification_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(quantized, "BLOCK", block)
    manifest = load_artifact(build_tiny(tmp_path, "onnx", "qwen2")).manifest
    model = opened(tmp_path / "model")
    model = equalize(model, {m.weight: m.format for m in matrices(model, scheme("int4-g32"))}, silent)
    assert model.folded.columns and list(manifest.weights) == list(model.decoder.weight_shapes())
    for name, shape in model.decoder.weight_shapes().items():
        if len(shape) == 2:
            form = Format(8 if name in ("embed_tokens", "lm_head") else 4, 32)
            assert manifest.weights[name] == specified(model, name, form, max(1, block // shape[1])), name
        else:
            values = struct.pack(f"<{shape[0]}f", *model.tensor(name).tolist())
            assert manifest.weights[name] == hashlib.sha256(b"FLOAT32 %d\n" % shape[0] + values).hexdigest(), name


def test_the_cut_of_the_specification_is_the_one_used() -> None:
    assert quantized.BLOCK == 2**21
    assert next(quantized.cuts((10**6, 3072))) == (0, 2**21 // 3072)


def test_engines_cache_and_threads_give_the_same(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", Variant("phi3", {"vocab_size": 4000, "hidden_size": 1024}))
    made = []
    for i, (engine, cached, threads) in enumerate(
        [("onnx", False, 1), ("onnx", True, 2), ("onnx", True, 2), ("mlx", True, 3), ("mlx", False, 2)]
    ):
        target = write_target(tmp_path / f"{engine}.toml", engine)
        manifest = edgekit.build(checkpoint, target=target, output=tmp_path / f"{i}", cached=cached, threads=threads, verify=False)
        made.append(manifest.weights)
    assert len(made[0]) == 2 * 9 + 3
    assert all(other == made[0] for other in made)


def test_a_second_engine_quantizes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one command for several targets does; the artifact is the one that it would be alone."""
    checkpoint = make_checkpoint(tmp_path / "model", "phi3-longrope")
    target = write_target(tmp_path / "mlx.toml", "mlx")
    edgekit.build(checkpoint, target=target, output=tmp_path / "alone", cached=False, verify=False)
    edgekit.build(checkpoint, target=write_target(tmp_path / "onnx.toml", "onnx"), output=tmp_path / "first", verify=False)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("quantized again")

    monkeypatch.setattr(quantized, "quantize", refuse)
    edgekit.build(checkpoint, target=target, output=tmp_path / "second", verify=False)
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_other_weights_give_others(tmp_path: Path) -> None:
    found = []
    for i, (seed, kind) in enumerate([(0, "int4-g32"), (1, "int4-g32"), (0, "int4-g64")]):
        checkpoint = make_checkpoint(tmp_path / f"model{i}", "phi3", seed=seed)
        target = write_target(tmp_path / "mlx.toml", "mlx")
        found.append(edgekit.build(checkpoint, target=target, output=tmp_path / f"{i}", scheme=kind, verify=False).weights)
    for other in found[1:]:
        assert all(other[name] != found[0][name] for name in found[0] if name in ("embed_tokens", "layers.1.q_proj", "lm_head"))
    assert found[2]["norm"] == found[0]["norm"] != found[1]["norm"], "what is not quantized is the checkpoint's"


def test_nothing_is_said_of_an_artifact_without_weights(tmp_path: Path) -> None:
    assert load_artifact(build_tiny(tmp_path, "null")).manifest.weights == {}


def test_a_weight_taken_in_two_formats_counts_in_both(tmp_path: Path) -> None:
    model = opened(make_checkpoint(tmp_path / "model", "llama"))
    weight = model.tensor("embed_tokens")
    digests = []
    for forms in ([Format(8, 32)], [Format(8, 32), Format(4, 32)], [Format(4, 32), Format(8, 32)]):
        ledger = Ledger()
        for form in forms:
            ledger.note("embed_tokens", weight.shape, 0, quantize(weight, form, name="embed_tokens"))  # type: ignore[arg-type]
        digests.append(weight_digests(model, ledger)["embed_tokens"])
    assert digests[1] == digests[2] != digests[0]
    assert np.unique(digests).size == 2

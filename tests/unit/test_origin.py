"""Artifacts that were built wrong, or tampered with afterwards: each is caught, and the message names what is wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_fidelity import TEXT, model_at

import edgekit
from checkpoints import make_checkpoint
from command import Edge
from edgekit import quantized
from edgekit.artifact import Artifact, Manifest, list_files, load_artifact
from edgekit.companions import read_companions
from edgekit.engines.mlx.read import MlxStored
from edgekit.engines.onnx.read import open_stored
from edgekit.errors import ArtifactError
from edgekit.models import Model
from edgekit.origin import Origin, check_origin
from edgekit.progress import silent
from edgekit.quant.scheme import Format, QuantizedTensor
from tiny_artifact import write_target

ENGINES = ["onnx", "openvino", "mlx"]
VARIANT = "phi3-longrope"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("origin") / "model", VARIANT)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def build(model: Path, folder: Path, engine: str, **options: object) -> Artifact:
    """Without running it: what is asked here is read from files."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    more = "tokenizer = false" if engine == "openvino" else ""
    target = write_target(folder / f"{engine}.toml", engine, options=more)
    edgekit.build(model, target=target, output=folder / "artifact", verify=False, cached=False, **options)  # type: ignore[arg-type]
    return load_artifact(folder / "artifact")


def origin(artifact: Artifact, model: Path) -> Origin:
    return check_origin(artifact, model_at(model), same_source=True, progress=silent)


def edited(checkpoint: Path, folder: Path, file: str, change: Callable[[dict[str, object]], object]) -> Path:
    """The same weights beside other settings."""
    copy = make_checkpoint(folder / "other", VARIANT)
    data = json.loads((copy / file).read_text(encoding="utf-8"))
    change(data)
    (copy / file).write_text(json.dumps(data), encoding="utf-8")
    return copy


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variant", ["phi3-longrope-partial-tied", "qwen2", "llama3", "mistral-head-dim"])
def test_nothing_is_wrong_with_what_was_built_right(tmp_path: Path, engine: str, variant: str) -> None:
    model = make_checkpoint(tmp_path / "model", variant)
    for scheme in ("int4-g32", "int4-sym-g128") if variant == "qwen2" else ("int4-g64",):
        found = origin(build(model, tmp_path, engine, scheme=scheme, force=True), model)
        assert (found.problems, found.weights) == ((), "equal to its model's, quantized again")
        assert 0.03 < found.errors["layers.1.down_proj"] < 0.25


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_rows_that_fill_no_group_and_float16_files(tmp_path: Path, engine: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama-ragged")
    assert origin(build(model, tmp_path, engine), model).problems == ()
    if engine == "onnx":
        target = write_target(tmp_path / "gpu.toml", "onnx", options='provider = "webgpu"\nprecision = "float16"\naccuracy_level = 0')
        edgekit.build(model, target=target, output=tmp_path / "half", verify=False, cached=False)
        assert origin(load_artifact(tmp_path / "half"), model).problems == ()


def test_signed_weights_of_an_npu(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = make_checkpoint(tmp_path / "model", "llama")
    options = 'device = "NPU"\nprecision = "float16"\nsymmetric = true\ngroup = 128\nprompt = 32\ntokenizer = false'
    target = write_target(tmp_path / "npu.toml", "openvino", options=options)
    edgekit.build(model, target=target, output=tmp_path / "a", scheme="int4-sym-g128", verify=False, cached=False)
    assert origin(load_artifact(tmp_path / "a"), model).problems == ()


def shuffle_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on quantizing gives ``layers.1.down_proj`` its scales in another order."""
    right = quantized.block

    def block(model: Model, m: quantized.Wanted, start: int, stop: int, quantizer: quantized.Quantizer) -> QuantizedTensor:
        made = right(model, m, start, stop, quantizer)
        if m.weight != "layers.1.down_proj":
            return made
        order = np.random.default_rng(0).permutation(made.scales.size)
        return replace(made, scales=made.scales.reshape(-1)[order].reshape(made.scales.shape))

    monkeypatch.setattr(quantized, "block", block)


@pytest.mark.parametrize("engine", ENGINES)
def test_shuffled_scales_whose_digests_fit(checkpoint: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        shuffle_scales(patch)
        artifact = build(checkpoint, tmp_path, engine)
    (problem,) = origin(artifact, checkpoint).problems
    assert problem.startswith("weights of layers.1.down_proj (")
    assert "the scales are not those that test quantizes to" in problem


@pytest.mark.parametrize("engine", ENGINES)
def test_shuffled_scales_in_an_artifact_of_another_edgekit(
    checkpoint: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its quantizer may have given other weights, but the file does not hold those that its manifest says."""
    right = build(checkpoint, tmp_path, engine).manifest
    older = replace(right, producer="edgekit 0.0.1")
    with monkeypatch.context() as patch:
        shuffle_scales(patch)
        artifact = build(checkpoint, tmp_path, engine, force=True)
    assert origin(Artifact(artifact.directory, replace(artifact.manifest, producer="edgekit 0.0.1")), checkpoint).problems == ()
    (problem,) = origin(Artifact(artifact.directory, older), checkpoint).problems
    assert problem.startswith("weights of layers.1.down_proj (") and "not those that its manifest says" in problem


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("length", [96, 20])
def test_wrong_rope_factors(checkpoint: Path, tmp_path: Path, engine: str, length: int) -> None:
    def change(config: dict[str, object]) -> None:
        scaling = config["rope_scaling"]
        assert isinstance(scaling, dict)
        config["rope_scaling"] = {**scaling, "short_factor": scaling["long_factor"]}

    artifact = build(edited(checkpoint, tmp_path, "config.json", change), tmp_path, engine, context=length)
    problems = origin(artifact, checkpoint).problems
    assert problems and all(problem.startswith("rope factors: ") and str(artifact.directory) in problem for problem in problems)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_wrong_switch_of_the_rope_factors(checkpoint: Path, tmp_path: Path, engine: str) -> None:
    other = edited(checkpoint, tmp_path, "config.json", lambda config: config.update(original_max_position_embeddings=32))
    problems = origin(build(other, tmp_path, engine), checkpoint).problems
    assert "rope factors: the manifest goes over to the long ones at 32 tokens, test at 24" in problems


@pytest.mark.parametrize("engine", ENGINES)
def test_a_wrong_chat_template(checkpoint: Path, tmp_path: Path, engine: str) -> None:
    plain = "{% for message in messages %}{{ message.content }}<|end|>{% endfor %}"
    other = edited(checkpoint, tmp_path, "tokenizer_config.json", lambda config: config.update(chat_template=plain))
    (problem,) = origin(build(other, tmp_path, engine), checkpoint).problems
    assert problem.startswith("chat template: ")
    assert "chat_template.jinja is not the checkpoint's: line 1 begins '{% for message in messages %}{{ message.content" in problem
    bare = tmp_path / "bare"
    bare.mkdir()
    other = edited(checkpoint, bare, "tokenizer_config.json", lambda config: config.pop("chat_template"))
    (problem,) = origin(build(other, bare, engine), checkpoint).problems
    assert problem.startswith("chat template: ") and problem.endswith("is missing")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stop_id_missing(checkpoint: Path, tmp_path: Path, engine: str) -> None:
    right = read_companions(model_at(checkpoint).checkpoint, 320).tokens.stop
    other = edited(checkpoint, tmp_path, "generation_config.json", lambda config: config.update(eos_token_id=right[0]))
    # Without a template that shows it, nothing says any more that <|end|> ends an answer.
    settings = json.loads((other / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["chat_template"]
    (other / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    problems = origin(build(other, tmp_path, engine), checkpoint).problems
    named = [problem for problem in problems if problem.startswith(f"stop id {right[1]} ('<|end|>') is missing in ")]
    assert len(named) == (1 if engine == "openvino" else 2), "the manifest, and the engine's own settings where it has some"
    assert "the manifest of" in named[0]


def resealed(directory: Path, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
    """As somebody would who has changed files and wants nobody to see it."""
    manifest = load_artifact(directory).manifest
    (directory / "edgekit.json").unlink()
    manifest = change(replace(manifest, files=list_files(directory, silent)))
    (directory / "edgekit.json").write_text(manifest.to_json(), encoding="utf-8", newline="\n")


def shuffle_in_file(artifact: Artifact, model: Path) -> None:
    stored = open_stored(artifact.directory, artifact.manifest, model_at(model))
    place = stored.initializers["layers.1.down_proj.scales"]
    data = np.memmap(artifact.directory / place.file, "<f4", "r+", place.offset, place.size // 4)
    data[:] = np.random.default_rng(0).permutation(data)
    data.flush()


def test_the_command_names_what_was_tampered_with(edge: Edge, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    artifact = build(checkpoint, tmp_path, "onnx")
    asked = ["verify", str(artifact.directory), "--against", str(checkpoint), "--text", str(tmp_path / "text")]
    ended = edge(*asked)
    assert ended.code == 0, ended.err
    assert "rope factors, chat template and stop ids are its model's; weights: equal to its model's, quantized again" in ended.out
    shuffle_in_file(artifact, checkpoint)
    ended = edge(*asked)
    assert ended.code == 6, "the digest of model.onnx.data is the first that is wrong"
    assert "model.onnx.data: its content is not what was built" in ended.err
    assert "weights of layers.1.down_proj (model.onnx.data, initializer layers.1.down_proj in " in ended.err
    resealed(artifact.directory, lambda m: replace(m, tokens=replace(m.tokens, stop=m.tokens.stop[:1])))
    ended = edge(*asked, "--json")
    problems = [problem["message"] for problem in json.loads(ended.out)["problems"]]
    assert ended.code == 6 and "stop id" in problems[0]
    assert any("the scales are not those" in problem for problem in problems)
    template = artifact.directory / "chat_template.jinja"
    template.write_bytes(template.read_bytes().replace(b"user", b"you?").replace(b"|>", b"]>"))
    ended = edge(*asked)
    assert ended.code == 6 and "its content, the chat template, is not what was built" in ended.err
    assert "chat template: " in ended.err and "line 1 begins" in ended.err


def test_a_digest_that_is_wrong_says_what_the_file_holds(checkpoint: Path, tmp_path: Path) -> None:
    from edgekit import verify

    artifact = build(checkpoint, tmp_path, "onnx")
    for name, what in (("chat_template.jinja", "the chat template"), ("generation_config.json", "the stop ids")):
        path = artifact.directory / name
        right = path.read_bytes()
        path.write_bytes(right[:-1] + b" ")
        with pytest.raises(ArtifactError, match=f"its content, {what}, is not what was built"):
            verify.verify(artifact.directory, run=False)
        path.write_bytes(right)


def test_a_manifest_without_a_stop_id(checkpoint: Path, tmp_path: Path) -> None:
    from edgekit import verify

    artifact = build(checkpoint, tmp_path, "onnx")
    missing = artifact.manifest.tokens.stop[-1]
    resealed(artifact.directory, lambda m: replace(m, tokens=replace(m.tokens, stop=m.tokens.stop[:-1])))
    with pytest.raises(ArtifactError, match=rf"stop id {missing} of generation_config\.json is missing in the manifest"):
        verify.verify(artifact.directory, run=False)


@pytest.mark.parametrize(("engine", "file"), [("onnx", "model.onnx"), ("openvino", "openvino_model.xml"), ("mlx", "model.safetensors")])
def test_files_that_cannot_be_read_back_are_named(checkpoint: Path, tmp_path: Path, engine: str, file: str) -> None:
    artifact = build(checkpoint, tmp_path, engine)
    path = artifact.directory / file
    path.write_bytes(path.read_bytes()[:100])
    (problem,) = origin(artifact, checkpoint).problems
    assert str(artifact.directory) in problem and problem.endswith("build the artifact again")


def test_a_calibrated_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_checkpoint(tmp_path / "model", VARIANT)
    artifact = build(model, tmp_path, "mlx", calibration=TEXT, method="gptq")
    found = origin(artifact, model)
    assert (found.problems, found.weights) == ((), "as far from its model's as rounding explains")
    right = MlxStored.block
    order = np.random.default_rng(0)

    def shuffled(self: MlxStored, weight: str, start: int, stop: int, form: Format) -> QuantizedTensor:
        made = right(self, weight, start, stop, form)
        mixed = order.permutation(made.scales.reshape(-1)).reshape(made.scales.shape)
        return replace(made, scales=mixed) if weight == "layers.0.o_proj" else made

    monkeypatch.setattr(MlxStored, "block", shuffled)
    (problem,) = origin(artifact, model).problems
    assert problem.startswith("weights of layers.0.o_proj (") and "not those that its manifest says" in problem
    silenced = Artifact(artifact.directory, replace(artifact.manifest, weights={}))
    monkeypatch.setattr("edgekit.origin.WORSE", 2.5)
    (problem,) = origin(silenced, model).problems
    assert problem.startswith("weights of layers.0.o_proj (") and "times as far from test's as rounding explains" in problem

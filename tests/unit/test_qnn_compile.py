"""Artifacts for Qualcomm's NPUs: compiled for every chip, and run in the vendor's emulation."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn needs Python 3.11 or newer")
pytest.importorskip("onnxruntime_genai")

import edgekit
from edgekit import cache_files
from edgekit.artifact import TensorFormat, load_artifact
from edgekit.cache import Cache
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.engines.onnx_format.proto import DataType, Graph, Tape, Value, serialize
from edgekit.engines.qnn import compiler
from edgekit.engines.qnn import export as exporting
from edgekit.engines.qnn.compiler import compile_part
from edgekit.engines.qnn.session import open_session
from edgekit.engines.qnn.socs import SOCS
from edgekit.errors import ContextOverflow, EngineError, EngineMissing, TargetError
from edgekit.models import open_model
from edgekit.reference import reference_logits
from edgekit.resources import data_folder
from edgekit.runtime import Runtime
from edgekit.target import load_target, targets
from onnx_artifact import random_tokens
from tiny_artifact import build_tiny

TOLERANCE = 0.15
"""Of logits that reach 3 to 7, in float16 as the emulation computes it, against the float32 reference; measured at most 0.06."""
TOKENS = random_tokens(60)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(
        tmp_path_factory.mktemp("emulated"), "qnn", "phi3-longrope", grid=32, options='soc = "SM8750"\nsharing = false\nchunk = 32'
    )


@pytest.mark.parametrize("name", [target.name for target in targets() if target.engine == "qnn"])
def test_tiny_phi_is_compiled_for_every_chip(tmp_path: Path, name: str) -> None:
    """By the targets that come along: one binary for both graphs, made for that chip, with what is needed to know it by."""
    soc = SOCS[str(load_target(name).options["soc"])]
    manifest = edgekit.build("tiny-phi", target=name, output=tmp_path / "out")
    facts = manifest.engine.details
    assert (facts["soc"], facts["soc_model"], facts["htp_arch"]) == (soc.name, soc.model, f"v{soc.arch}")
    assert facts["reproducible"] is (compiler.turns() is not None)
    assert re.fullmatch(r"2\.\d+\.\d+\.\d+", str(facts["qairt"])) and str(facts["ep_compatibility"]).startswith("v2:")
    binary = (tmp_path / "out" / "part0_prompt_qnn.bin").read_bytes()
    said = {(found[1].decode(), int(found[2])) for found in re.finditer(rb"soc_type=(\w+);arch=(\d+)", binary)}
    assert {arch for _, arch in said} == {soc.arch}
    for half in ("prompt", "token"):
        assert b"part0_prompt_qnn.bin" in (tmp_path / "out" / f"part0_{half}.onnx").read_bytes()
    assert not (tmp_path / "out" / "part0_token_qnn.bin").exists()
    assert manifest.conformance.greedy.vectors == ()
    assert "loads there only" in str(manifest.conformance.greedy.reason)
    with pytest.raises(EngineMissing, match="sharing = false"):
        edgekit.load(tmp_path / "out")


def test_the_emulation_gives_the_references_logits(emulated: Path) -> None:
    """A prompt in two chunks, then token by token; rewound; and across the LongRoPE switch (24)."""
    with edgekit.load(emulated) as runtime:
        session = runtime.session
        reference = reference_of(emulated)
        near(session.forward(TOKENS[:20]), reference(TOKENS[:20]))
        for row, end in zip(session.forward_last(TOKENS[20:23], 2), (22, 23), strict=True):
            near(row, reference(TOKENS[:end]))
        session.rewind(10)
        near(session.forward([7]), reference([*TOKENS[:10], 7]))
        session.rewind(0)
        near(session.forward(TOKENS[:40]), reference(TOKENS[:40]))
        assert session.position == 40


def test_a_sequence_goes_on_after_tokens_that_end_an_answer(emulated: Path) -> None:
    """Token by token, where genai would read padding in their place; its own end is the vocabulary's last token."""
    with edgekit.load(emulated) as runtime:
        reference, tokens = reference_of(emulated), runtime.manifest.tokens
        sequence = TOKENS[:3]
        runtime.session.forward(sequence)
        for token in (*tokens.stop, 5, tokens.vocab_size - 1, tokens.vocab_size - 1, tokens.stop[0], 7):
            sequence.append(token)
            near(runtime.session.forward([token]), reference(sequence))


def test_greedy_tokens_are_the_cpus_until_a_tie(tmp_path: Path) -> None:
    """tiny-phi against ONNX Runtime on the CPU: equal, or at the first difference within what float16 cannot tell apart."""
    target = tmp_path / "emulated.toml"
    shipped = load_target("snapdragon-8-elite")
    target.write_text(
        f'description = "test"\nengine = "qnn"\nscheme = "{shipped.scheme}"\ncontext = 256\nverified = "compiled"\n'
        '[options]\nsoc = "SM8750"\nsharing = false\n',
        encoding="utf-8",
    )
    manifest = edgekit.build("tiny-phi", target=target, output=tmp_path / "npu", context=256)
    edgekit.build("tiny-phi", target="cpu", output=tmp_path / "cpu", context=256)
    assert manifest.conformance.greedy.computed_by == "qnn"
    with edgekit.load(tmp_path / "cpu") as cpu:
        for vector in manifest.conformance.greedy.vectors:
            for i, token in enumerate(vector.continuation):
                cpu.session.rewind(0)
                logits = cpu.session.forward([*vector.prompt, *vector.continuation[:i]])
                assert logits[token] > logits.max() - TOLERANCE, f"token {i} of {vector.continuation}"
                if token != logits.argmax():
                    break


def test_a_chip_without_float16_gets_integers(tmp_path: Path) -> None:
    """v68: 16-bit activations, 8-bit weights, calibrated; the very program of the shipped target but for sharing, in emulation."""
    target = tmp_path / "emulated.toml"
    shipped = (data_folder("targets") / "qcs6490.toml").read_text(encoding="utf-8")
    target.write_text(shipped.replace("context = 1024", "context = 128") + "sharing = false\n", encoding="utf-8")
    manifest = edgekit.build("tiny-phi", target=target, output=tmp_path / "npu")
    assert manifest.engine.details["precision"] == "uint16" and manifest.engine.details["htp_arch"] == "v68"
    assert manifest.scheme.exceptions["layers.0.down_proj"] == TensorFormat(8, 512)
    assert "layers.0.down_proj" not in manifest.weights and "lm_head" not in manifest.scheme.exceptions
    edgekit.build("tiny-phi", target="cpu", output=tmp_path / "cpu", context=128)
    with edgekit.load(tmp_path / "cpu") as cpu:
        vector = manifest.conformance.greedy.vectors[0]
        wanted = [step.token for step in cpu.generate(vector.prompt, max_tokens=len(vector.continuation))]
        # 8-bit weights against 4-bit ones: other weights, so they need not agree for ever.
        assert wanted[:8] == list(vector.continuation[:8])


def test_genai_opens_the_artifact_unaided(emulated: Path) -> None:
    """Its own loop gives the session's tokens; a LongRoPE artifact asks for the length, so that it is never guessed."""
    import onnxruntime_genai as genai

    with edgekit.load(emulated) as runtime:
        manifest = replace(runtime.manifest, tokens=replace(runtime.manifest.tokens, stop=()))
        wanted = [step.token for step in Runtime(manifest, runtime.tokenizer, None, runtime.session).generate(TOKENS[:9], max_tokens=4)]
    model = genai.Model(str(emulated))
    params = genai.GeneratorParams(model)
    generator = genai.Generator(model, params)
    with pytest.raises(Exception, match="rope_length"):
        generator.append_tokens(np.array(TOKENS[:9], np.int32))
    generator = genai.Generator(model, params)
    length = np.array([13], np.int64)
    generator.set_model_input("rope_length", length)
    generator.append_tokens(np.array(TOKENS[:9], np.int32))
    for _ in wanted:
        generator.generate_next_token()
    assert list(generator.get_sequence(0))[-len(wanted) :] == wanted


def test_limits_are_errors(emulated: Path) -> None:
    session = open_session(emulated, load_artifact(emulated).manifest)
    with pytest.raises(ContextOverflow, match="96"):
        session.forward([1] * 97)
    with pytest.raises(edgekit.EdgekitError, match="outside the vocabulary"):
        session.forward([100_000])
    assert session.position == 0
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.forward([1])
    manifest = load_artifact(emulated).manifest
    newer = replace(manifest, engine=replace(manifest.engine, requires={"onnxruntime-qnn": "99"}))
    with pytest.raises(EngineMissing, match="needs onnxruntime-qnn 99 or newer"):
        open_session(emulated, newer)


def test_files_that_genai_refuses_are_an_error(emulated: Path, tmp_path: Path) -> None:
    shutil.copytree(emulated, tmp_path / "broken")
    (tmp_path / "broken" / "part0_token.onnx").write_bytes(b"nothing")
    with pytest.raises(EngineError, match="onnxruntime-genai cannot open"):
        open_session(tmp_path / "broken", load_artifact(emulated).manifest)


def graph_with(kind: str, dtype: DataType) -> bytes:
    """One Add that the NPU takes, and an operator behind it."""
    a = Value("a", dtype, (1, 4))
    b = Value("b", dtype if kind != "NonZero" else DataType.INT64, (1, 4) if kind != "NonZero" else (2, "n"))
    tape = Tape()
    (total,) = tape.add("Add", [a, a])
    tape.add(kind, [total], outputs=[b])
    return serialize(Graph(tape.nodes, [a], [b], [], {"": 20}, 10))


def compile_graph(folder: Path, *, memory: int = 8_000_000_000) -> None:
    compile_part(
        folder,
        {"a.onnx": "made.onnx"},
        SOCS["SM8750"].model,
        sharing=False,
        reproducible=True,
        memory=memory,
        what="a part",
        tell=lambda done: None,
    )


def test_a_graph_that_would_fall_back_to_the_cpu_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(graph_with("Relu", DataType.FLOAT16))
    compile_graph(tmp_path)
    assert (tmp_path / "made.onnx").exists()
    (tmp_path / "made.onnx").unlink()
    (tmp_path / "a.onnx").write_bytes(graph_with("NonZero", DataType.FLOAT))
    with pytest.raises(TargetError, match="the NPU does not take every operator"):
        compile_graph(tmp_path)


def test_a_compiler_that_crashes_or_may_have_no_more_memory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(graph_with("Relu", DataType.FLOAT16))
    with pytest.raises(EngineError, match=r"compiling a part failed: .* run the same command again"):
        compile_graph(tmp_path, memory=30_000_000)
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match="compiling a part failed"):
        compile_graph(tmp_path)


def test_a_build_goes_on_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler fails in the second part: the next build compiles that one only, and gives what one in peace gives."""
    options = 'soc = "SM8650"\nlayers = 1\nchunk = 32'
    compiled: list[str] = []

    def failing(*arguments: object, what: str, **more: object) -> None:
        compiled.append(what)
        if len(compiled) == 2:
            raise EngineError("it crashed")
        compile_part(*arguments, what=what, **more)  # type: ignore[arg-type]

    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(exporting, "compile_part", failing)
    with pytest.raises(EngineError, match="it crashed"):
        build_tiny(tmp_path / "one", "qnn", "mistral", options=options)
    resumed = build_tiny(tmp_path / "one", "qnn", "mistral", options=options)
    assert compiled == ["layers 0 to 0 for SM8650", "layers 1 to 1 for SM8650", "layers 1 to 1 for SM8650"]
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "other"))
    undisturbed = build_tiny(tmp_path / "two", "qnn", "mistral", options=options)
    assert len(compiled) == 5
    assert load_artifact(resumed).manifest.files == load_artifact(undisturbed).manifest.files


def test_files_in_the_cache_are_whole_or_not_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1 << 30)
    for name, content in (("a", b"x" * 5_000_000), ("b", b"y")):
        (tmp_path / name).write_bytes(content)
    to = tmp_path / "to"
    to.mkdir()
    assert not cache_files.restore(cache, "group", to)
    cache_files.keep(cache, "group", {name: tmp_path / name for name in "ab"}, {"model": "m", "file": "f", "format": "compiled"})
    assert cache_files.restore(cache, "group", to)
    assert [(to / name).read_bytes() == (tmp_path / name).read_bytes() for name in "ab"] == [True, True]
    (cache.directory / "blocks" / "group" / "b").write_bytes(b"z" * 33)
    assert not cache_files.restore(cache, "group", to) and list(to.iterdir()) == []
    (cache.directory / "blocks" / "group" / "b").unlink()
    assert not cache_files.restore(cache, "group", to)


def near(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0)


def reference_of(artifact: Path) -> Callable[[list[int]], NDArray[np.float32]]:
    model = open_model(open_checkpoint(artifact.parent / "model", Source("test", "local", None, None)))
    return lambda tokens: reference_logits(model.decoder, model.tensor, tokens, last=1)[0]

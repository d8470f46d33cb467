"""The INT8 KV cache: scales that hold at every position, ONNX Runtime's arithmetic with them, and a gate that measures it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

import edgekit
from checkpoints import SWITCH, make_checkpoint
from edgekit import reference
from edgekit.companions import read_companions
from edgekit.engines.onnx import kv_cache, operator
from edgekit.engines.onnx.export import INT8_CACHE, check, footprint
from edgekit.engines.onnx.kv_cache import MARGIN, Scales, fit_scales, key_lengths
from edgekit.engines.onnx.profile import cache_bytes
from edgekit.engines.onnx.session import OnnxSession, open_session
from edgekit.errors import CheckpointError, EngineError, EngineMissing, FidelityError, TargetError
from edgekit.models import Model
from edgekit.progress import silent
from edgekit.quant.scheme import scheme
from edgekit.quantized import PLAIN
from edgekit.runtime.prefix import PrefixCache
from edgekit.target import OptionValue
from onnx_artifact import FLOAT32, Built, build, open_variant, random_tokens, skip_below, skip_unless_runnable, target
from tiny_artifact import write_target

INT8: dict[str, OptionValue] = {**FLOAT32, "kv_cache": "int8"}
VARIANTS = ("phi3-longrope", "phi3-longrope-partial-tied", "mistral-window", "llama3", "qwen2")
TOKENS = random_tokens(60, seed=3)
F32 = NDArray[np.float32]


def scales_of(model: Model) -> list[Scales]:
    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    return fit_scales(model, scheme("int4-g32"), companions, PLAIN, silent)


def rounded(values: F32, scales: F32) -> F32:
    """[KV, T, head_dim] as the cache holds them: symmetric, halves to even."""
    step = scales.reshape(len(values), 1, -1)
    codes: F32 = np.clip(np.rint(values / step), -128, 127).astype(np.float32) * step
    return codes


def reference_with(built: Built, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> F32:
    """The reference decoder's logits with keys and values rounded before it attends."""
    layers, attend = iter(scales_of(built.model)), reference._attend

    def attends(q: F32, k: F32, v: F32, window: int | None) -> F32:
        scales = next(layers)
        return attend(q, rounded(k, scales.keys), rounded(v, scales.values), window)

    with monkeypatch.context() as patch:
        patch.setattr(reference, "_attend", attends)
        return built.reference(tokens)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_reference_with_a_rounded_cache(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one call, in pieces and rewound, below, at and beyond the LongRoPE switch. Where the two round a key to neighbouring codes the
    logits, which reach 5, differ by 0.01; without rounding in the reference by 0.3."""
    built = build(tmp_path, variant, options=INT8)
    skip_unless_runnable(built)
    session = open_session(built.directory, built.manifest)
    cache = PrefixCache(session, switch=built.manifest.context.rope_switch)
    for length in (1, 7, 13, SWITCH, SWITCH + 1, 60, 12):
        found = cache.extend_to(TOKENS[:length])[0]
        assert np.abs(found - reference_with(built, TOKENS[:length], monkeypatch)).max() < 0.03
    session.close()


def test_the_cache_takes_a_quarter_and_hardly_anything_of_it_is_clipped(tmp_path: Path) -> None:
    built = build(tmp_path, "llama3", options=INT8)
    skip_unless_runnable(built)
    session = open_session(built.directory, built.manifest)
    assert isinstance(session, OnnxSession)
    session.forward(TOKENS)
    for held in session._buffers.caches.values():
        assert isinstance(held, np.ndarray) and held.dtype == np.int8
        codes = np.abs(held[:, :, : len(TOKENS)].astype(int))
        assert codes.max() > 60 and (codes >= 127).mean() < 1e-3
    assert (cache_bytes(built.manifest), built.manifest.engine.details["kv_dtype"]) == (1, "int8")
    sizes = [footprint(built.model, built.scheme, target(options)).cache for options in (FLOAT32, INT8)]
    assert sizes[0] == 4 * sizes[1]
    session.close()


def test_the_engines_own_loader_gives_the_same_tokens(tmp_path: Path) -> None:
    og = pytest.importorskip("onnxruntime_genai", minversion="0.18")
    built = build(tmp_path, "llama3", options=INT8, stop=[0])
    skip_unless_runnable(built)
    model = og.Model(str(built.directory))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=40, min_length=40, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(TOKENS[:13], np.int32))
    session, sequence = open_session(built.directory, built.manifest), TOKENS[:13]
    logits = session.forward(sequence)
    for _ in range(20):
        generator.generate_next_token()
        logits[0] = -np.inf  # its stop token, which genai holds back as long
        sequence.append(int(logits.argmax()))
        logits = session.forward(sequence[-1:])
    assert [int(token) for token in generator.get_sequence(0)[: len(sequence)]] == sequence
    session.close()


@pytest.mark.parametrize("variant", ["phi3-longrope", "phi3-longrope-partial-tied"])
def test_lengths_of_keys_hold_at_every_position(tmp_path: Path, variant: str) -> None:
    """Whichever way a pair is turned, by the short and by the long factors; what is not turned keeps its own."""
    decoder = open_variant(tmp_path / "model", variant).decoder
    keys = np.random.default_rng(0).standard_normal((5, decoder.kv_heads * decoder.head_dim)).astype(np.float32)
    bound = key_lengths(keys, decoder).reshape(decoder.kv_heads, 1, decoder.head_dim)
    heads = keys.reshape(5, decoder.kv_heads, decoder.head_dim).transpose(1, 0, 2)
    greatest = np.zeros_like(bound)
    for long in (False, True):
        cos, sin = decoder.rope.cos_sin(90, long=long)
        for at in range(90):
            turned = reference._rotate(heads, cos[at], sin[at])
            greatest = np.maximum(greatest, np.abs(turned).max(axis=1, keepdims=True))
    assert (greatest <= bound * np.float32(1 + 1e-6)).all()
    assert np.median(greatest / bound) > 0.9
    assert (greatest[..., decoder.rope.dims :] == bound[..., decoder.rope.dims :]).all()


def test_scales_leave_room_and_are_the_same_again(tmp_path: Path) -> None:
    model = open_variant(tmp_path / "model", "qwen2")
    first, seen = scales_of(model), dict[str, F32]()

    def note(name: str, inputs: F32) -> None:
        if name.endswith(".v_proj"):
            seen[name] = inputs @ model.tensor(name).T + model.tensor(f"{name}.bias")

    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    reference.reference_logits_many(model.decoder, model.tensor, kv_cache.sequences(companions, model.decoder.context), last=1, seen=note)
    for i, scales in enumerate(first):
        used = np.abs(seen[f"layers.{i}.v_proj"]).max(axis=0) / scales.values
        assert used.max() <= 127 / MARGIN * 1.0001 and used.min() > 126 / MARGIN
    assert all(np.array_equal(a.keys, b.keys) and np.array_equal(a.values, b.values) for a, b in zip(first, scales_of(model), strict=True))


def test_a_cache_that_clips_does_not_pass_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are as good as ever; what is measured is the artifact."""
    checkpoint = make_checkpoint(tmp_path / "model", "llama3", grid=32)
    wanted = write_target(tmp_path / "test.toml", "onnx", options='kv_cache = "int8"')
    skip_below(INT8_CACHE)
    made = edgekit.build(checkpoint, target=wanted, output=tmp_path / "good")
    assert made.fidelity is not None and made.fidelity.verified == "run" and 1e-5 < made.fidelity.parts[0].mean_kl < 0.01
    monkeypatch.setattr(kv_cache, "MARGIN", 0.02)
    with pytest.raises(FidelityError, match=r"run by onnx with its INT8 KV cache.*leave kv_cache out of the target's"):
        edgekit.build(checkpoint, target=wanted, output=tmp_path / "clipped")
    assert not (tmp_path / "clipped").exists()


def test_keys_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflowing(decoder: object, tensor: object, i: int, hidden: object, spans: object, seen: Any) -> None:
        seen("layers.0.k_proj", np.full((1, model.decoder.hidden_size), np.nan, np.float32))

    model = open_variant(tmp_path / "model", "llama3")
    monkeypatch.setattr(kv_cache, "apply_layer", overflowing)
    with pytest.raises(CheckpointError, match=r"layers\.0\.k_proj gives values that are not finite"):
        scales_of(model)


@pytest.mark.parametrize("other", [{"provider": "cuda", "precision": "float16"}, {"precision": "float16"}, {"provider": "webgpu"}])
def test_only_the_cpu_in_float32_has_one(tmp_path: Path, other: dict[str, OptionValue]) -> None:
    model = open_variant(tmp_path / "model", "llama3")
    with pytest.raises(TargetError, match=r'kv_cache = "int8" is for provider = "cpu" and precision = "float32"'):
        check(model, scheme("int4-g32"), target({**other, "kv_cache": "int8"}))


def test_edgekits_products_take_part(tmp_path: Path) -> None:
    for level, taken in ((4, True), (0, False)):
        folder = tmp_path / str(level)
        folder.mkdir()
        assert operator.computes(build(folder, "llama3", options={**INT8, "accuracy_level": level}).manifest) is taken


def test_a_cache_of_another_type_is_an_error(tmp_path: Path) -> None:
    """ONNX Runtime has one of 4 bits as well, two values to a byte."""
    built = build(tmp_path, "llama3", options=INT8)
    skip_unless_runnable(built)
    path = built.directory / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values", "present")):
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
            value.type.tensor_type.shape.dim[3].dim_value //= 2
    for attribute in (a for node in model.graph.node for a in node.attribute):
        if attribute.name == "kv_cache_bit_width":
            attribute.i = 4
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"past_key_values\.0\.key is tensor\(uint8\), and this edgekit knows no such KV cache"):
        open_session(built.directory, built.manifest)


def test_nothing_of_a_chat_is_clipped(tmp_path: Path) -> None:
    """Which begins with tokens that no text has, where a text begins."""
    wanted = write_target(tmp_path / "test.toml", "onnx", options='kv_cache = "int8"')
    skip_below(INT8_CACHE)
    made = edgekit.build("tiny-phi", target=wanted, output=tmp_path / "a", verify=False)
    with edgekit.load(tmp_path / "a") as runtime:
        session = runtime.session
        assert isinstance(session, OnnxSession)
        for chat in (*made.conformance.chat[:2], "<|user|>\nWhat lights are on in the hall?<|end|>\n<|assistant|>\n"):
            tokens = runtime.tokenizer.encode(chat if isinstance(chat, str) else chat.rendered)
            session.rewind(0)
            session.forward(tokens)
            for held in session._buffers.caches.values():
                assert isinstance(held, np.ndarray) and np.abs(held[:, :, : len(tokens)].astype(int)).max() < 127


def test_a_build_that_could_not_be_measured_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama3", grid=32)
    wanted = write_target(tmp_path / "test.toml", "onnx", options='kv_cache = "int8"')
    monkeypatch.setattr(onnxruntime, "__version__", "1.30.0")
    with pytest.raises(EngineMissing, match=r"needs onnxruntime 1\.31 or newer, installed is 1\.30\.0.*--no-verify builds without"):
        edgekit.build(checkpoint, target=wanted, output=tmp_path / "out")
    assert edgekit.build(checkpoint, target=wanted, output=tmp_path / "out", verify=False).engine.requires["onnxruntime"] == "1.31"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineMissing, match=r'this build needs onnxruntime 1\.31 or newer.*pip install "onnxruntime>=1\.31"'):
        edgekit.build(checkpoint, target=wanted, output=tmp_path / "more")

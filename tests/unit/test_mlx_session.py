"""The session on MLX against the numpy reference, and mlx-lm opening the same directory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from checkpoints import SWITCH, VARIANTS
from edgekit.engines.mlx.session import MlxSession, open_session
from edgekit.errors import ArtifactError, ContextOverflow, EngineError, EngineMissing, UsageError
from edgekit.quant import dequantize, quantize
from edgekit.resources import release
from mlx_artifact import FLOAT32, REFUSED, ROUNDING, Built, build, copy_of
from onnx_artifact import random_tokens

mx = pytest.importorskip("mlx.core", reason="MLX has wheels for macOS on Apple silicon and for Linux")
pytest.importorskip("mlx_lm")
from edgekit.engines.mlx import model as module  # noqa: E402

TOKENS = random_tokens(96)
LENGTHS = (1, 9, 11, 13, SWITCH, SWITCH + 1, 60, 96)
"""Around the switch (24) and over the windows (10, 12)."""
BUILDABLE = [name for name in VARIANTS if name not in REFUSED]


def opened(built: Built) -> MlxSession:
    return open_session(built.directory, built.manifest)


def with_compiled_steps(built: Built) -> MlxSession:
    """As on a GPU, but in float32."""
    decoder = module.load(built.directory, widen=True, compiled=True)
    return MlxSession(decoder, built.directory, built.manifest.context.length, None, module.CHUNK)


def off(built: Built, session: MlxSession, tokens: list[int]) -> float:
    """The greatest error of the logits after ``tokens``, computed in one piece."""
    session.rewind(0)
    return float(np.abs(session.forward(tokens) - built.reference(tokens)).max())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def session(llama: Built) -> Iterator[MlxSession]:
    session = opened(llama)
    yield session
    session.close()


@pytest.mark.parametrize("variant", BUILDABLE)
def test_logits_are_those_of_the_reference(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill at every length, whole and in chunks; then decoding on either side of the switch, plainly and by compiled steps."""
    built = build(tmp_path, variant)
    session = opened(built)
    for length in LENGTHS:
        for chunk in (512, 7):
            monkeypatch.setattr(module, "CHUNK", chunk)
            assert off(built, session, TOKENS[:length]) < ROUNDING
            assert session.position == length
    for decoding in (session, with_compiled_steps(built)):
        for begin, end in ((3, SWITCH), (40, 50)):
            assert off(built, decoding, TOKENS[:begin]) < ROUNDING
            for i in range(begin, end):
                logits = decoding.forward(TOKENS[i : i + 1])
            assert np.abs(logits - built.reference(TOKENS[:end])).max() < ROUNDING
        decoding.close()


@pytest.mark.parametrize("variant", BUILDABLE)
def test_mlx_lm_itself_is_right_as_far_as_the_manifest_says_and_no_further(tmp_path: Path, variant: str) -> None:
    from mlx_lm import utils

    built = build(tmp_path, variant, options=FLOAT32)
    model, _ = utils.load_model(built.directory)
    reach = built.exported.details["mlx_lm_tokens"]
    assert isinstance(reach, int)
    for length in {*LENGTHS, 10, 12} - {1}:
        logits = np.array(model(mx.array([TOKENS[:length]]))[0, -1])
        error = np.abs(logits - built.reference(TOKENS[:length])).max()
        assert error < ROUNDING if length <= reach else error > 100 * ROUNDING


def test_mlx_lm_opens_the_directory_unaided_and_says_the_same(tmp_path: Path) -> None:
    """Its loader, tokenizer, chat template and stop ids; float32, so that its tokens are the reference's."""
    import mlx_lm

    built = build(tmp_path, "phi3-longrope", options=FLOAT32)
    model, tokenizer = mlx_lm.load(str(built.directory))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "on"}], add_generation_prompt=True)
    said = [r.token for r in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=6)]
    sequence = list(prompt)
    for token in said:
        assert token == built.reference(sequence).argmax()
        sequence.append(token)
    assert len(sequence) <= SWITCH
    assert set(tokenizer.eos_token_ids) == set(built.config["eos_token_id"])  # type: ignore[call-overload]


@pytest.mark.parametrize("variant", ["phi3-longrope", "qwen2-tied"])
def test_the_session_computes_with_the_portable_weights_bit_for_bit(tmp_path: Path, variant: str) -> None:
    """Gaussian weights in a file for float16, whose INT8 embedding has rounded biases: they come back exact, also where the embedding is
    the lm_head."""
    built = build(tmp_path, variant, grid=None)
    decoder = module.load(built.directory, widen=False, compiled=False)
    leaf = decoder._inner.embed_tokens
    want = dequantize(quantize(built.model.tensor("embed_tokens"), built.scheme.embedding, name="embed_tokens"))
    got = mx.dequantize(leaf.weight, leaf.scales, leaf.biases, group_size=leaf.group_size, bits=leaf.bits)
    assert np.array_equal(np.array(got), want)
    assert decoder._inner.layers[0].mlp.down_proj.scales.dtype == mx.float16, "activations stay float16"


def test_float16_stays_near_the_reference(tmp_path: Path) -> None:
    """As on a GPU. Few tokens: MLX's float16 is slow on a CPU."""
    built = build(tmp_path, "phi3-longrope")
    session = MlxSession(module.load(built.directory, widen=False, compiled=True), built.directory, 96, None, module.CHUNK)
    session.forward(TOKENS[:8])
    assert session._caches[0].keys.dtype == mx.float16
    error = session.forward(TOKENS[8:9]) - built.reference(TOKENS[:9])
    assert 1e-4 < np.sqrt(np.mean(error**2)) < 0.03  # measured 0.006


def test_logits_of_several_positions_in_chunks_and_while_the_cache_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they reach over a cut, and between calls for one position."""
    monkeypatch.setattr(module, "CHUNK", 7)
    built = build(tmp_path, "phi3-longrope")
    session = opened(built)
    monkeypatch.setattr(module.mlx_lm_models("cache").KVCache, "step", 4)
    for end, last in ((14, 7), (14, 1), (20, 9), (SWITCH, 3), (60, 30)):
        session.rewind(0)
        rows = session.forward_last(TOKENS[:end], last)
        # Of a whole sequence beyond the switch, every position takes the long factors: only its last row is also that of a shorter one.
        lengths = range(end, end + 1) if end > SWITCH else range(end - last + 1, end + 1)
        for length, row in zip(reversed(lengths), rows[::-1], strict=False):
            assert np.abs(row - built.reference(TOKENS[:length])).max() < ROUNDING
        assert (rows.shape, session.position) == ((last, 320), end)


@pytest.mark.parametrize("variant", ["phi3-longrope", "qwen2-window"])
def test_compiled_steps_while_the_cache_grows_and_after_rewinding(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of what was forgotten still lie in the buffers; no step may see them."""
    built = build(tmp_path, variant)
    session = with_compiled_steps(built)
    monkeypatch.setattr(module.mlx_lm_models("cache").KVCache, "step", 4)
    session.forward(random_tokens(20, seed=2))
    session.rewind(0)
    for i in range(SWITCH):
        logits = session.forward(TOKENS[i : i + 1])
        assert np.abs(logits - built.reference(TOKENS[: i + 1])).max() < ROUNDING
    session.rewind(5)
    other = [*TOKENS[:5], 7, 8]
    for i in (5, 6):
        logits = session.forward(other[i : i + 1])
    assert np.abs(logits - built.reference(other)).max() < ROUNDING


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_a_failed_call_leaves_the_session_usable(llama: Built, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """After the caches of some layers have taken the new tokens in."""
    for session in (opened(llama), with_compiled_steps(llama)):
        session.forward(TOKENS[:5])
        head = session._decoder._head  # type: ignore[union-attr]

        def fail(_: object) -> None:
            raise error

        for new in (TOKENS[5:9], TOKENS[5:6]):
            monkeypatch.setattr(session._decoder, "_head", fail)
            with pytest.raises(EngineError if error is RuntimeError else error):
                session.forward(new)
            monkeypatch.setattr(session._decoder, "_head", head)
            assert session.position == 5
        assert np.abs(session.forward(TOKENS[5:6]) - llama.reference(TOKENS[:6])).max() < ROUNDING


def test_context_overflow_leaves_the_cache(llama: Built, session: MlxSession) -> None:
    assert session.context == 96
    session.forward(TOKENS[:90])
    with pytest.raises(ContextOverflow, match="90 tokens and 7 more do not fit into the context of 96"):
        session.forward(TOKENS[:7])
    assert session.position == 90
    assert np.abs(session.forward(TOKENS[90:]) - llama.reference(TOKENS)).max() < ROUNDING


def test_impossible_tokens(session: MlxSession) -> None:
    session.forward(TOKENS[:5])
    for token in (320, -1):
        with pytest.raises(UsageError, match=rf"token {token} is outside the vocabulary of 320"):
            session.forward([1, token])
    assert session.position == 5


def test_closing_frees_the_model(llama: Built) -> None:
    session = opened(llama)
    session.forward(TOKENS)
    before = mx.get_active_memory()
    session.close()
    session.close()
    assert mx.get_active_memory() < before
    with pytest.raises(EngineError, match="closed"):
        session.forward([1])


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json"])
def test_damaged_files(llama: Built, tmp_path: Path, name: str) -> None:
    damaged = copy_of(llama, tmp_path / "damaged")
    path = damaged.directory / name
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EngineError, match=r"MLX cannot load .*build the artifact again"):
        opened(damaged)
    path.unlink()
    with pytest.raises(EngineError, match=r"MLX cannot load"):
        opened(damaged)


def test_a_config_that_edgekit_did_not_write_is_refused(llama: Built, tmp_path: Path) -> None:
    other = copy_of(llama, tmp_path / "other")
    path = other.directory / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"edgekit"', '"another"'), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"config\.json has no key 'edgekit'; build the artifact again"):
        opened(other)


def test_missing_or_old_packages(llama: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = replace(llama.manifest.engine, requires={"mlx": "99.1"})
    with pytest.raises(EngineMissing, match=r"needs mlx 99\.1 or newer, installed is"):
        open_session(llama.directory, replace(llama.manifest, engine=engine))
    engine = replace(llama.manifest.engine, requires={"no-such-package": "1"})
    with pytest.raises(EngineMissing, match=r'no-such-package is not installed.*pip install "edgekit\[mlx\]"'):
        open_session(llama.directory, replace(llama.manifest, engine=engine))
    assert release("0.9.1") < release("0.31") < release("0.31.3") < release("0.32.0rc1")


def test_a_macs_memory_is_wired_while_the_session_is_open(llama: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Structure only: there is no Mac here."""
    limits = [0]

    def set_limit(limit: int) -> int:
        limits.append(limit)
        return limits[-2]

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 12_000})
    monkeypatch.setattr(mx, "set_wired_limit", set_limit)
    session = opened(llama)
    assert limits == [0, 12_000]
    session.close()
    assert limits == [0, 12_000, 0]


def test_opening_a_session_loads_neither_transformers_nor_anything_of_the_build(llama: Built) -> None:
    (llama.directory / "edgekit.json").write_text(llama.manifest.to_json(), encoding="utf-8")
    code = f"""
import sys
from pathlib import Path
from edgekit.artifact import Manifest
from edgekit.engines.mlx.session import open_session
assert "mlx" not in sys.modules
directory = Path({str(llama.directory)!r})
session = open_session(directory, Manifest.from_json((directory / "edgekit.json").read_text(encoding="utf-8")))
session.forward([1, 2, 3])
build = {{"torch", "transformers", "huggingface_hub", "safetensors", "mlx_lm", "mlx_lm.utils"}}
build |= {{"edgekit.quant", "edgekit.models", "edgekit.checkpoint", "edgekit.target"}}
print(sorted(build & set(sys.modules)))
import mlx_lm
from mlx_lm.models import llama
assert llama.Model is not sys.modules["edgekit_mlx_lm_models.llama"].Model
"""
    env = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "[]"

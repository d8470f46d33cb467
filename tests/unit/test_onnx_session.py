"""The session on plain ONNX Runtime against the numpy reference."""

import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import SWITCH, VARIANTS
from edgekit.engines.onnx import session as module
from edgekit.engines.onnx.session import OnnxSession, open_session
from edgekit.errors import ContextOverflow, EngineError, EngineMissing, UsageError
from edgekit.parallel import cores
from edgekit.resources import release
from onnx_artifact import ROUNDING, Built, build, random_tokens, skip_unless_runnable

TOKENS = random_tokens(96)


def opened(built: Built) -> OnnxSession:
    return open_session(built.directory, built.manifest, threads=1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def session(llama: Built) -> Iterator[OnnxSession]:
    session = opened(llama)
    yield session
    session.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_reference(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill at lengths around the switch (24) and over the windows (10, 12), whole and in chunks; then decoding."""
    monkeypatch.setattr(module, "FIRST_CAPACITY", 16)
    built = build(tmp_path, variant)
    skip_unless_runnable(built)
    session = opened(built)
    for length in (1, 9, 11, 13, SWITCH, SWITCH + 1, 60, 96):
        want = built.reference(TOKENS[:length])
        for chunk in (512, 7):
            monkeypatch.setattr(module, "CHUNK", chunk)
            session.rewind(0)
            assert np.abs(session.forward(TOKENS[:length]) - want).max() < ROUNDING
            assert session.position == length
    # Decoding on either side of the switch; crossing it is the runtime's matter.
    for begin, end in ((3, SWITCH), (40, 55)):
        session.rewind(0)
        session.forward(TOKENS[:begin])
        for i in range(begin, end):
            logits = session.forward(TOKENS[i : i + 1])
        assert np.abs(logits - built.reference(TOKENS[:end])).max() < ROUNDING
    session.close()


def test_int8_products_stay_near_the_reference(tmp_path: Path) -> None:
    built = build(tmp_path, "phi3-longrope", options={})
    session = opened(built)
    error = session.forward(TOKENS) - built.reference(TOKENS)
    assert 1e-4 < np.sqrt(np.mean(error**2)) < 0.1  # measured 0.055; and it truly is another kernel


def test_logits_of_several_positions_in_chunks_and_while_the_cache_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they reach over a cut, and between calls for one position."""
    monkeypatch.setattr(module, "FIRST_CAPACITY", 4)
    monkeypatch.setattr(module, "CHUNK", 7)
    built = build(tmp_path, "phi3-longrope")
    session = opened(built)
    for end, last in ((14, 7), (14, 1), (20, 9), (SWITCH, 3), (60, 30)):
        session.rewind(0)
        rows = session.forward_last(TOKENS[:end], last)
        # Of a whole sequence beyond the switch, every position takes the long factors: only its last row is also that of a shorter one.
        lengths = range(end, end + 1) if end > SWITCH else range(end - last + 1, end + 1)
        for length, row in zip(reversed(lengths), rows[::-1], strict=False):
            assert np.abs(row - built.reference(TOKENS[:length])).max() < ROUNDING
        assert (rows.shape, session.position) == ((last, 320), end)


def test_onnx_runtime_prints_nothing(llama: Built, capfd: pytest.CaptureFixture[str]) -> None:
    """The graph declares logits of one position; those of several are no less welcome."""
    session = opened(llama)
    session.forward_last(TOKENS[:9], 5)
    session.forward(TOKENS[9:10])
    assert capfd.readouterr() == ("", "")


def test_a_failed_call_for_several_positions_leaves_the_session_usable(
    llama: Built, session: OnnxSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    session.forward(TOKENS[:5])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "run", fail)
        session.forward_last(TOKENS[5:9], 3)
    assert session.position == 5
    assert np.abs(session.forward(TOKENS[5:6]) - llama.reference(TOKENS[:6])).max() < ROUNDING


def test_an_artifact_of_before_logits_positions_is_refused(tmp_path: Path) -> None:
    built = build(tmp_path, "llama")
    path = built.directory / "model.onnx"
    path.write_bytes(path.read_bytes().replace(b"logits_positions", b"logits_elsewhere"))
    with pytest.raises(EngineError, match=r"has no input logits_positions: an older edgekit built it; build the artifact again"):
        opened(built)


def test_rewind_forgets_exactly(llama: Built, session: OnnxSession) -> None:
    session.forward(TOKENS[:30])
    session.forward(random_tokens(10, seed=2))
    session.rewind(20)
    assert session.position == 20
    assert np.abs(session.forward(TOKENS[20:40]) - llama.reference(TOKENS[:40])).max() < ROUNDING
    for length in (-1, 41):
        with pytest.raises(ValueError, match=r"holds 40 tokens"):
            session.rewind(length)


def test_returned_logits_are_not_overwritten(session: OnnxSession) -> None:
    first = session.forward(TOKENS[:3])
    kept = first.copy()
    session.forward(TOKENS[3:5])
    assert np.array_equal(first, kept)


def test_the_cache_grows_and_keeps_what_it_holds(llama: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_CAPACITY", 4)
    session = opened(llama)
    for i in range(96):
        logits = session.forward(TOKENS[i : i + 1])
    assert np.abs(logits - llama.reference(TOKENS)).max() < ROUNDING


def test_growth_that_is_broken_off_leaves_the_session_usable(llama: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are copied one by one; those that were get their old length back."""
    monkeypatch.setattr(module, "FIRST_CAPACITY", 8)
    session = opened(llama)
    session.forward(TOKENS[:6])
    zeros, made = module.zeros, iter(range(3))

    def scarce(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[np.generic]:
        if shape[2] > 8 and next(made, None) is None:
            raise MemoryError
        return zeros(shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(module, "zeros", scarce)
        with pytest.raises(MemoryError):
            session.forward(TOKENS[6:12])
    assert session.position == 6
    assert np.abs(session.forward(TOKENS[6:8]) - llama.reference(TOKENS[:8])).max() < ROUNDING
    assert np.abs(session.forward(TOKENS[8:]) - llama.reference(TOKENS)).max() < ROUNDING


def test_a_cache_gives_its_memory_back() -> None:
    """Views and ONNX Runtime's borrowing keep it alive, nothing else does."""
    array = module.zeros((1, 2, 64, 16), np.float16)
    assert array.dtype == np.float16 and array.shape == (1, 2, 64, 16) and not array.any() and array.flags.writeable
    array[0, 1, 63] = 1
    gone = weakref.ref(array)
    del array
    assert gone() is None


def test_context_overflow_leaves_the_cache(llama: Built, session: OnnxSession) -> None:
    assert session.context == 96
    session.forward(TOKENS[:90])
    with pytest.raises(ContextOverflow, match="90 tokens and 7 more do not fit into the context of 96"):
        session.forward(TOKENS[:7])
    assert session.position == 90
    assert np.abs(session.forward(TOKENS[90:]) - llama.reference(TOKENS)).max() < ROUNDING


def test_nothing_and_impossible_tokens(session: OnnxSession) -> None:
    session.forward(TOKENS[:5])
    with pytest.raises(ValueError, match="at least one token"):
        session.forward([])
    for token in (320, -1):
        with pytest.raises(UsageError, match=rf"token {token} is outside the vocabulary of 320"):
            session.forward([1, token])
    assert session.position == 5


def test_closing(session: OnnxSession) -> None:
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.forward([1])


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    built = build(tmp_path, "llama")
    path = built.directory / name
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EngineError, match=r"cannot load .*model\.onnx: .*build the artifact again"):
        opened(built)
    path.unlink()
    with pytest.raises(EngineError, match=r"cannot load"):
        opened(built)


def test_missing_engine(llama: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineMissing, match=r'pip install "edgekit\[onnx\]"'):
        opened(llama)


def test_engine_too_old(llama: Built) -> None:
    engine = replace(llama.manifest.engine, requires={"onnxruntime": "99.1"})
    with pytest.raises(EngineMissing, match=r"needs onnxruntime 99\.1 or newer"):
        open_session(llama.directory, replace(llama.manifest, engine=engine))


def test_releases_compare_as_numbers() -> None:
    assert release("1.9.0") < release("1.23") < release("1.23.2") < release("1.24.0rc1")
    assert release("1.24.0.dev20250101+cpu") >= release("1.24")


def test_telemetry_is_switched_off(llama: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    calls: list[bool] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: calls.append(True))
    opened(llama).close()
    assert calls == [True]


def test_threads_default_to_the_usable_cpus(llama: Built) -> None:
    assert cores() >= 1
    session = open_session(llama.directory, llama.manifest)
    assert session.forward(TOKENS[:2]).shape == (320,)


def test_opening_a_session_loads_nothing_of_the_build(llama: Built) -> None:
    (llama.directory / "edgekit.json").write_text(llama.manifest.to_json(), encoding="utf-8")
    code = f"""
import sys
from pathlib import Path
from edgekit.artifact import Manifest
from edgekit.engines.onnx.session import open_session
assert "onnxruntime" not in sys.modules
directory = Path({str(llama.directory)!r})
session = open_session(directory, Manifest.from_json((directory / "edgekit.json").read_text(encoding="utf-8")), threads=1)
session.forward([1, 2, 3])
build = {{"onnx", "onnx_ir", "torch", "transformers", "safetensors"}}
build |= {{"edgekit.quant", "edgekit.models", "edgekit.checkpoint", "edgekit.target"}}
print(sorted(build & set(sys.modules)))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "[]"

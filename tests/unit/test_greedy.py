"""The built model runs in a process of its own: what it says, and what becomes of the build when it dies."""

import os
import signal
import sys
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from edgekit import child
from edgekit.artifact import Manifest, load_artifact
from edgekit.build import build
from edgekit.engines.null.session import open_session
from edgekit.errors import EngineError
from edgekit.greedy import compute
from edgekit.progress import Progress, silent
from tiny_artifact import write_target

START = "import sys; sys.path[:] = sys.argv[1:]; "
RUN = "from edgekit.greedy import main; main()"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "model", "llama")
    write_target(tmp_path / "null.toml", "null")
    return tmp_path


def built(place: Path, target: str = "null.toml", progress: Progress = silent) -> Manifest:
    return build(place / "model", target=place / target if target.endswith(".toml") else target, output=place / "out", progress=progress)


def as_child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """``code`` runs where the engine's process would."""
    monkeypatch.setattr(child, "command", lambda module: [sys.executable, "-c", code, *sys.path])


def failed(place: Path) -> str:
    with pytest.raises(EngineError) as raised:
        built(place)
    assert {path.name for path in place.iterdir()} == {"model", "null.toml"}, "nothing is left"
    return str(raised.value)


def test_vectors_are_those_the_engine_gives_here(place: Path) -> None:
    greedy = built(place).conformance.greedy
    assert (greedy.computed_by, len(greedy.vectors)) == ("null", 2)
    manifest = load_artifact(place / "out").manifest
    assert compute(place / "out", manifest, [vector.prompt for vector in greedy.vectors], None) == greedy.vectors
    session = open_session(place / "out", manifest)
    assert int(session.forward(greedy.vectors[0].prompt).argmax()) == greedy.vectors[0].continuation[0]


def test_what_the_engine_prints_is_no_answer(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    noisy = "import os; from edgekit.engines.null import session as s; old = s.NullSession.close; "
    noisy += "s.NullSession.close = lambda self: (print('noise'), os.write(1, b'more'), os.write(2, b'yet more'), old(self)); "
    as_child(monkeypatch, START + noisy + RUN)
    assert built(place).conformance.greedy.vectors
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals that end a process")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL] if sys.platform != "win32" else [])
def test_a_crash_of_the_engine_is_an_error_of_the_build(place: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    as_child(monkeypatch, f"import os; os.kill(os.getpid(), {int(number)})")
    assert f"null cannot run what was built, and nothing was written: the engine was ended by {number.name}" in failed(place)


def test_any_other_failure_shows_its_last_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, "raise MemoryError('no room')")
    assert "the engine failed with exit code 1 while it ran the model. MemoryError: no room" in failed(place)
    as_child(monkeypatch, "raise SystemExit(7)")
    assert "exit code 7" in failed(place)
    monkeypatch.setattr(sys, "executable", str(place / "nowhere"))
    assert "cannot start" in failed(place)


def test_errors_of_the_engine_keep_their_kind_and_words(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import numpy; from edgekit.engines.null import session as s; "
    broken += "s.NullSession.forward = lambda self, tokens: numpy.full(320, numpy.nan, numpy.float32); "
    as_child(monkeypatch, START + broken + RUN)
    assert "the built model gives logits that are not finite" in failed(place)


def test_without_the_engine_there_is_the_reason(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, START + "sys.modules['onnxruntime'] = None; " + RUN)
    greedy = built(place, "cpu").conformance.greedy
    assert (greedy.computed_by, greedy.vectors) == (None, ())
    assert 'pip install "edgekit[onnx]"' in (greedy.reason or "")


@pytest.mark.skipif(sys.platform == "win32", reason="a process that has ended cannot be told from another by its number")
def test_ctrl_c_ends_the_engines_process_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = place / "model" / "pid"
    script = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    as_child(monkeypatch, script)

    def interrupt(stage: str, done: int, total: int, /) -> None:
        while stage == "digest of the artifact":
            if pid.is_file() and pid.read_text(encoding="utf-8"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(place, progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text(encoding="utf-8")), 0)
    assert not (place / "out").exists()

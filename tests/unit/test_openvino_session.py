"""The session on plain OpenVINO against the numpy reference, its settings, and what it never does."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino

from checkpoints import SWITCH, VARIANTS
from edgekit.engines.openvino import session as module
from edgekit.engines.openvino import settings
from edgekit.engines.openvino.plugins import check_device
from edgekit.engines.openvino.session import OpenvinoSession, open_session
from edgekit.engines.openvino.settings import Settings, choose, fastest
from edgekit.errors import ContextOverflow, EngineError, EngineMissing, UsageError
from edgekit.resources import release
from onnx_artifact import random_tokens
from openvino_artifact import ROUNDING, Built, build, process_with_session

TOKENS = random_tokens(96)
TOOLKIT = str(Path(__file__).parents[2] / "toolkit")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def session(llama: Built) -> Iterator[OpenvinoSession]:
    session = llama.open()
    yield session
    session.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_reference(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill at lengths around the switch (24) and over the windows (10, 12), whole and in chunks; then decoding."""
    built = build(tmp_path, variant)
    session = built.open()
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


@pytest.mark.parametrize("variant", ["phi3-longrope", "mistral-window"])
def test_rewinding_again_and_again_leaves_nothing_behind(tmp_path: Path, variant: str) -> None:
    built = build(tmp_path, variant)
    session = built.open()
    session.forward(TOKENS[:3])
    for end in range(4, SWITCH, 2):
        session.forward(random_tokens(4, seed=end)[: SWITCH - end])
        session.rewind(end - 1)
        assert np.abs(session.forward(TOKENS[end - 1 : end]) - built.reference(TOKENS[:end])).max() < ROUNDING
        session.rewind(end - 1)
        session.forward(TOKENS[end - 1 : end + 1])
    session.close()


def test_a_failed_call_leaves_the_session_usable(llama: Built, session: OpenvinoSession, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = OpenvinoSession._compute

    def fail(self: OpenvinoSession, *arguments: "object") -> None:
        compute(self, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    session.forward(TOKENS[:5])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(OpenvinoSession, "_compute", fail)
        session.forward_last(TOKENS[5:9], 3)
    assert session.position == 5
    assert np.abs(session.forward(TOKENS[5:6]) - llama.reference(TOKENS[:6])).max() < ROUNDING


def test_returned_logits_are_not_overwritten(session: OpenvinoSession) -> None:
    first = session.forward(TOKENS[:3])
    kept = first.copy()
    session.forward(TOKENS[3:5])
    assert np.array_equal(first, kept)


def test_what_cannot_be_is_refused(session: OpenvinoSession) -> None:
    with pytest.raises(UsageError, match="token 320 is outside the vocabulary of 320"):
        session.forward([1, 320])
    with pytest.raises(ContextOverflow, match="context of 96"):
        session.forward(TOKENS[:90] + TOKENS[:7])
    session.forward(TOKENS[:5])
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.forward([1])


@pytest.mark.parametrize("end", ["pass", "session.close()", "del session", "session.forward([1])"])
def test_a_session_that_is_left_in_any_state_ends_the_process_well(llama: Built, tmp_path: Path, end: str) -> None:
    """Its first inference goes on in the background, and OpenVINO aborts a process whose threads are inside it."""
    for _ in range(3):
        done = process_with_session(llama, tmp_path, end)
        assert (done.returncode, done.stderr) == (0, "")


def test_openvino_prints_nothing(llama: Built, capfd: pytest.CaptureFixture[str]) -> None:
    session = llama.open()
    session.forward_last(TOKENS[:9], 5)
    session.close()
    assert capfd.readouterr() == ("", "")


def test_an_older_openvino_or_another_file_is_refused(llama: Built, tmp_path: Path) -> None:
    newer = replace(llama.manifest, engine=replace(llama.manifest.engine, requires={"openvino": "9000.1"}))
    with pytest.raises(EngineMissing, match=r"needs openvino 9000\.1 or newer, installed is 20"):
        open_session(llama.directory, newer)
    (tmp_path / "openvino_model.xml").write_text("<net>", encoding="utf-8")
    with pytest.raises(EngineError, match=r"cannot load .*openvino_model\.xml"):
        open_session(tmp_path, llama.manifest)
    assert release("2026.4.1-22982-e213a147257-releases/2026/4") == (2026, 4, 1)


def test_without_openvino_the_extra_is_named(llama: Built) -> None:
    code = "import sys; sys.modules['openvino'] = None\nfrom edgekit.engines.openvino.plugins import import_openvino\nimport_openvino()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": TOOLKIT})
    assert "EngineMissing: this artifact runs on OpenVINO" in done.stderr and 'pip install "edgekit[openvino]"' in done.stderr


@pytest.mark.parametrize("device", ["GPU", "NPU"])
def test_a_device_that_is_not_here_is_not_replaced(llama: Built, device: str) -> None:
    if device in openvino.Core().available_devices:
        pytest.skip(f"there is a {device} here")
    details = {**llama.manifest.engine.details, "device": device, "precision": "float16"}
    elsewhere = replace(llama.manifest, engine=replace(llama.manifest.engine, details=details))
    with pytest.raises(EngineMissing, match=rf"for OpenVINO's {device}; found here: CPU"):
        open_session(llama.directory, elsewhere)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_precision_the_cpu_does_not_have_is_not_replaced(llama: Built, precision: str) -> None:
    if {"bfloat16": "BF16", "float16": "FP16"}[precision] in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip(f"this CPU has {precision}")
    details = {**llama.manifest.engine.details, "precision": precision}
    asking = replace(llama.manifest, engine=replace(llama.manifest.engine, details=details))
    with pytest.raises(EngineError, match=f"computes in {precision}, which this CPU does not; it has float32"):
        open_session(llama.directory, asking)


@pytest.mark.parametrize(("code", "said"), [("import os; os.abort()", r"crashed \(SIGABRT\)"), ("raise OSError('no card')", "no card")])
def test_a_driver_that_crashes_is_reported(code: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        available_devices = ("CPU", "GPU.0")

    monkeypatch.setattr("edgekit.engines.openvino.plugins.PROBE", code)
    with pytest.raises(EngineError, match=f"OpenVINO's GPU driver .*{said}"):
        check_device(Core(), "GPU")  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["session", "export", "tokenizer", "settings"])
def test_importing_openvino_tells_nobody(tmp_path: Path, module: str) -> None:
    """In a home whose owner was never asked OpenVINO's own import does send; here its telemetry is not even loaded."""
    code = (
        "import json, socket, sys, urllib.request\n"
        "def refuse(*a, **k): raise SystemExit('the network was asked for')\n"
        "socket.socket.connect = socket.create_connection = urllib.request.urlopen = refuse\n"
        f"import edgekit.engines.openvino.{module}\n"
        "from edgekit.engines.openvino.plugins import import_openvino\n"
        "import_openvino()\n"
        "import openvino.tools.ovc.telemetry_utils as used\n"
        "print(json.dumps([used.tm.__name__, [m for m in sys.modules if m.startswith('openvino_telemetry') and sys.modules[m]]]))\n"
    )
    home = {"HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "PYTHONPATH": TOOLKIT}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **home}, check=True)
    assert json.loads(done.stdout) == ["openvino.tools.ovc.telemetry_stub", []]
    assert list(tmp_path.iterdir()) == []


def test_settings_are_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    measured: list[Settings] = []

    def cost(_: object, tried: Settings, group: int) -> float:
        measured.append(tried)
        return {"f32": 1.0, "bf16": 0.5}[tried.precision]

    monkeypatch.setattr(settings, "cost", cost)
    wanted = [Settings("f32", 0, 2), Settings("bf16", 0, 2)]
    core = openvino.Core()
    assert [choose(core, wanted, 128) for _ in range(3)] == [wanted[1]] * 3
    assert measured == wanted
    assert choose(core, wanted[:1], 128) == wanted[0] and len(measured) == 2, "without a choice nothing is measured"
    choose(core, wanted, 64)
    assert len(measured) == 4, "another group is another product"
    (tmp_path / settings.FILE).write_text("{", encoding="utf-8")
    choose(core, wanted, 128)
    assert len(measured) == 6


def test_a_less_exact_setting_must_be_clearly_faster() -> None:
    wanted = [Settings("f32", 0, 2), Settings("f32", 128, 2), Settings("bf16", 0, 2)]
    assert fastest(wanted, [1.0, 0.96, 0.97]) == wanted[0]
    assert fastest(wanted, [1.0, 0.9, 0.89]) == wanted[1]
    assert fastest(wanted, [1.0, 0.9, 0.5]) == wanted[2]


def test_the_measured_product_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SHAPE", (256, 256))
    assert settings.cost(openvino.Core(), Settings("f32", 0, 1), 128) > 0


def test_a_cache_in_float16_stays_near_the_reference(tmp_path: Path) -> None:
    built = build(tmp_path, "phi3-longrope", options={"precision": "float32", "dynamic_quantization": "off", "tokenizer": False})
    session = built.open()
    session.forward(TOKENS[:-1])
    error = np.abs(session.forward(TOKENS[-1:]) - built.reference(TOKENS)).max()
    session.close()
    assert ROUNDING < error < 0.02  # measured 0.002; and it truly is another precision

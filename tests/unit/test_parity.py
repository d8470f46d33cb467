"""``edge verify``: several artifacts of one model against the first."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgekit
from checkpoints import SWITCH, make_checkpoint
from command import Edge
from edgekit import child
from edgekit.artifact import load_artifact
from edgekit.engines.null.session import open_session
from edgekit.errors import ArtifactError, EngineError, EngineMissing, UsageError
from edgekit.parity import verify
from edgekit.target import target_names
from tiny_artifact import write_target

FLOAT32 = {"onnx": "accuracy_level = 0", "mlx": 'precision = "float32"'}


def build(
    folder: Path, name: str, engine: str, *, model: str = "model", variant: str = "phi3-longrope", seed: int = 0, **options: str
) -> Path:
    """An artifact in ``folder / name`` of the checkpoint ``folder / model``, which is made where there is none."""
    if not (folder / model).exists():
        make_checkpoint(folder / model, variant, grid=32, seed=seed)
    target = write_target(folder / f"{name}.toml", engine, options=FLOAT32.get(engine, ""))
    edgekit.build(folder / model, target=target, output=folder / name, verify=False, **options)  # type: ignore[arg-type]
    return folder / name


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same weights on two engines, both in float32."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("mlx_lm")
    folder = tmp_path_factory.mktemp("pair")
    return build(folder, "a", "onnx"), build(folder, "b", "mlx")


@pytest.fixture
def apart(tmp_path: Path) -> tuple[Path, Path]:
    """Two null artifacts whose logits have nothing to do with each other: the scheme is part of the seed."""
    return build(tmp_path, "a", "null"), build(tmp_path, "b", "null", scheme="int4-g64")


def test_two_engines_agree_across_the_switch(pair: tuple[Path, Path]) -> None:
    report = verify(pair, prompts=["on", "hello"], tokens=20)
    (found,) = report.compared
    assert (report.engine, found.engine, found.weights, found.different_weights) == ("onnx", "mlx", "equal", ())
    assert report.agrees and found.agrees
    assert found.same == found.positions and found.first is None
    with edgekit.load(pair[0]) as runtime:
        answers = [runtime.complete([{"role": "user", "content": text}], max_tokens=20) for text in ("on", "hello")]
    assert any(a.prompt_tokens < SWITCH - 1 and a.prompt_tokens + len(a.tokens) > SWITCH + 2 for a in answers)
    assert found.positions == sum(len(a.tokens) for a in answers)
    assert found.greatest < 1e-4


def test_the_command_says_so(edge: Edge, pair: tuple[Path, Path]) -> None:
    ended = edge("verify", str(pair[0]), str(pair[1]), str(pair[0]))
    assert ended.code == 0, ended.err
    assert ended.out.count(": agrees\n  weights equal\n") == 2
    ended = edge("verify", *map(str, pair), "--json", "--tokens", "3", "--prompt", "hello")
    said = json.loads(ended.out)
    assert ended.code == 0 and said["parity"]["agrees"] is True and not said["problems"]
    found = said["parity"]["compared"][0]
    assert found["weights"] == "equal" and found["positions"] <= 3


def test_the_first_divergent_token_and_its_margin(apart: tuple[Path, Path]) -> None:
    """Recomputed here from the two sessions, in one process."""
    report = verify(apart, prompts=["hello", "turn on the lamp"], tokens=5)
    (found,) = report.compared
    assert found.first is not None
    a, b = (open_session(directory, load_artifact(directory).manifest) for directory in apart)
    prompts = [artifact_prompt(apart[0], text) for text in ("hello", "turn on the lamp")]
    margins = []
    for i, prompt in enumerate(prompts):
        said: list[int] = []
        while len(said) < 5 and not (said and said[-1] in load_artifact(apart[0]).manifest.tokens.stop):
            for session in (a, b):
                session.rewind(0)
            mine, theirs = (session.forward([*prompt, *said]) for session in (a, b))
            x, y = int(mine.argmax()), int(theirs.argmax())
            if x != y:
                margins.append((float(max(mine[x] - mine[y], theirs[y] - theirs[x])), i, len(said), x, y))
            said.append(x)
    margin, prompt_index, token, x, y = margins[0]
    first = found.first
    assert (first.prompt, first.token, first.expected, first.found) == (prompt_index, token, x, y)
    assert first.margin == pytest.approx(margin)
    assert found.margin == pytest.approx(max(m[0] for m in margins))
    assert found.positions - found.same == len(margins)
    assert (found.weights, found.agrees, report.agrees) == ("not recorded", False, False)
    assert verify(apart, tokens=5, margin=1e9).agrees, "a limit of one's own"


def artifact_prompt(directory: Path, text: str) -> list[int]:
    with edgekit.load(directory) as runtime:
        return runtime.tokenizer.encode(runtime.render([{"role": "user", "content": text}]))


def test_the_command_names_it_and_fails(edge: Edge, apart: tuple[Path, Path]) -> None:
    ended = edge("verify", *map(str, apart), "--tokens", "4")
    assert ended.code == 12
    assert f"edge: error: {apart[1]} does not agree with {apart[0]}" in ended.err
    assert "DOES NOT AGREE" in ended.out and "weights not recorded" in ended.out
    assert " first at token 0 of prompt 0, after '': " in ended.out and "greatest margin" in ended.out and "allowed 0.5" in ended.out
    ended = edge("verify", *map(str, apart), "--tokens", "4", "--json")
    said = json.loads(ended.out)
    assert (ended.code, said["parity"]["agrees"], said["parity"]["compared"][0]["first"]["token"]) == (12, False, 0)


def test_other_weights_are_no_parity_however_alike_the_answers(tmp_path: Path) -> None:
    """The digests of two checkpoints that differ in one matrix."""
    pytest.importorskip("onnxruntime")
    build(tmp_path, "a", "onnx")
    other = load_artifact(tmp_path / "a").manifest
    changed = replace(other, weights={**other.weights, "layers.1.o_proj": "0" * 64})
    (tmp_path / "b").mkdir()
    for path in (tmp_path / "a").iterdir():
        os.link(path, tmp_path / "b" / path.name) if path.name != "edgekit.json" else None
    (tmp_path / "b" / "edgekit.json").write_text(changed.to_json(), encoding="utf-8")
    report = verify([tmp_path / "a", tmp_path / "b"], tokens=3)
    (found,) = report.compared
    assert (found.weights, found.different_weights, found.margin) == ("different", ("layers.1.o_proj",), 0.0)
    assert not report.agrees
    assert any("weights different (layers.1.o_proj)" in line for line in report.as_lines())


def test_weights_alone_need_no_engine(edge: Edge, tmp_path: Path, apart: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As for engines that run elsewhere only. Equal weights are proved, or it fails."""
    a, b, c = build(tmp_path, "c", "onnx"), build(tmp_path, "d", "mlx"), build(tmp_path, "e", "mlx", scheme="int4-g64")
    as_child(monkeypatch, "raise SystemExit(3)")
    report = verify([a, b], weights_only=True)
    assert report.agrees and report.compared[0].weights == "equal"
    assert report.as_lines() == [f"against {a} (onnx), weights only:", f"{b} (mlx): agrees", "  weights equal"]
    assert edge("verify", str(a), str(b), "--no-run").code == 0
    ended = edge("verify", str(a), str(b), str(c), "--no-run", "--json")
    said = json.loads(ended.out)
    assert (ended.code, [x["weights"] for x in said["parity"]["compared"]]) == (12, ["equal", "different"])
    assert not verify(apart, weights_only=True).agrees, "not recorded is not proved"


def test_what_cannot_be_compared(edge: Edge, tmp_path: Path, apart: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="at least two artifacts"):
        verify([apart[0]])
    assert edge("verify", str(apart[0]), "--prompt", "hello").code == 2
    with pytest.raises(ArtifactError, match="is no artifact"):
        verify([apart[0], tmp_path])
    make_checkpoint(tmp_path / "stops", "phi3-longrope")
    (tmp_path / "stops" / "generation_config.json").write_text('{"eos_token_id": [5]}', encoding="utf-8")
    with pytest.raises(ArtifactError, match="different tokenizers or stop ids: they are not of one model"):
        verify([apart[0], build(tmp_path, "c", "null", model="stops")])
    with pytest.raises(UsageError, match=r"an answer of 500 do not fit; the contexts hold 96: lower --tokens"):
        verify(apart, tokens=500)
    with pytest.raises(UsageError, match=r"a prompt of \d+ tokens and an answer of 32 do not fit"):
        verify(apart, prompts=["hello " * 90])


def as_child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """``code`` runs where an engine's process would."""
    monkeypatch.setattr(child, "command", lambda module: [sys.executable, "-c", code, *sys.path])


def test_errors_of_an_engines_process(apart: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    start, run = "import sys; sys.path[:] = sys.argv[1:]; ", "from edgekit.parity import main; main()"
    broken = "import numpy; from edgekit.engines.null import session as s; "
    broken += "s.NullSession.forward = lambda self, tokens: numpy.full(320, numpy.nan, numpy.float32); "
    as_child(monkeypatch, start + broken + run)
    with pytest.raises(EngineError, match=r"logits after \d+ tokens are not finite"):
        verify(apart)
    as_child(monkeypatch, "import os; os._exit(9)")
    with pytest.raises(
        EngineError,
        match=r"/a: the engine failed with exit code 9 while it ran the model. it said nothing"
        if sys.platform != "win32"
        else "exit code 9",
    ):
        verify(apart)
    missing = (
        "import edgekit.engines.null.session as s; from edgekit.errors import EngineMissing\ndef no(*a, **k): raise EngineMissing('gone')\n"
    )
    as_child(monkeypatch, start + missing + "s.open_session = no\n" + run)
    with pytest.raises(EngineMissing, match=r"/a: gone" if sys.platform != "win32" else "gone"):
        verify(apart)


def test_what_an_engine_prints_is_no_answer(
    apart: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start, run = "import sys; sys.path[:] = sys.argv[1:]; ", "from edgekit.parity import main; main()"
    noisy = "import os; from edgekit.engines.null import session as s; old = s.NullSession.forward; "
    noisy += "s.NullSession.forward = lambda self, t: (print('noise'), os.write(1, b'more'), old(self, t))[2]; "
    as_child(monkeypatch, start + noisy + run)
    assert verify(apart, tokens=3).compared
    assert capfd.readouterr() == ("", "")


def test_the_engines_agree_on_the_embedded_model(tmp_path: Path) -> None:
    """tiny-phi as its targets build it, one of each engine: INT8 products on one, float16 in the file of another."""
    places = [tmp_path / target for target in ("cpu", "apple-m", "intel-cpu") if target in target_names()]
    for place in places:
        edgekit.build("tiny-phi", target=place.name, output=place, verify=False)
    try:
        report = verify(places)
    except EngineMissing as error:
        pytest.skip(str(error))
    assert report.agrees
    for found in report.compared:
        assert found.weights == "equal"
        assert found.same >= 0.95 * found.positions and np.isfinite(found.rms)

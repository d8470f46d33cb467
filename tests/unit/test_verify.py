"""``edge verify``: every way in which an artifact can be other than what was built is found, and told with the right exit code."""

import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_imports import BUILD_ONLY, modules_after

from command import Edge
from edgekit import child, verify
from edgekit.artifact import GreedyVector, load_artifact
from edgekit.engines.null.session import open_session
from edgekit.errors import ArtifactError, EdgekitError, EngineError
from edgekit.verify import NEAR
from tiny_artifact import build_tiny


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("verify"), "null", "llama")


@pytest.fixture
def artifact(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "a"))


def edit(artifact: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = artifact / "edgekit.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_an_artifact_as_it_was_built(artifact: Path) -> None:
    report = verify.verify(artifact)
    manifest = load_artifact(artifact).manifest
    assert (report.files, report.unlisted) == (len(manifest.files), ())
    assert (report.encode, report.chat) == (len(manifest.conformance.encode), len(manifest.conformance.chat))
    assert report.encode > 8 and report.chat > 2
    tokens = sum(len(vector.continuation) for vector in manifest.conformance.greedy.vectors)
    assert report.greedy == verify.Answers("equal", tokens, 0, 0.0, None) and tokens > 1


@pytest.mark.parametrize("engine", ["null", "onnx"])
def test_each_engine_answers_as_when_it_was_built(tmp_path: Path, engine: str) -> None:
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    assert verify.verify(build_tiny(tmp_path, engine, "llama")).greedy.outcome == "equal"


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def encode(data: dict[str, object]) -> None:
    data["conformance"]["encode"][0]["ids"].append(5)  # type: ignore[index]


def chat(data: dict[str, object]) -> None:
    data["conformance"]["chat"][0]["rendered"] += " "  # type: ignore[index]


def schema(data: dict[str, object]) -> None:
    data["tokens"]["stop"] = ["</s>"]  # type: ignore[index]


def newer(data: dict[str, object]) -> None:
    data["version"] = 99


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: longer(a / "tokenizer.json"), r"tokenizer\.json has \d+ bytes, the manifest says"),
        (lambda a: flipped(a / "null.json"), r"null\.json: its content is not what was built"),
        (lambda a: (a / "config.json").unlink(), r"config\.json is missing"),
        (lambda a: (a / "edgekit.json").unlink(), "is no artifact"),
        (lambda a: edit(a, encode), "the tokenizer turns"),
        (lambda a: edit(a, chat), "the chat template renders"),
        (lambda a: edit(a, schema), r"tokens\.stop\[0\]: wanted an integer"),
        (lambda a: edit(a, newer), "newer than this edgekit knows"),
    ],
    ids=["size", "digest", "missing", "no manifest", "encode", "chat", "schema", "version"],
)
def test_what_is_not_as_it_was_built(edge: Edge, artifact: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(artifact)
    with pytest.raises(ArtifactError, match=message):
        verify.verify(artifact)
    assert edge("verify", str(artifact), "--quiet").code == 6


def greedy_leads(artifact: Path, vector: GreedyVector) -> tuple[list[int], list[float]]:
    """The tokens of the null engine's logits after the prompt, likeliest first, and by how much the first leads each."""
    session = open_session(artifact, load_artifact(artifact).manifest)
    logits = session.forward(vector.prompt).astype(np.float64)
    order = np.argsort(-logits)
    return order.tolist(), ((logits[order[0]] - logits[order]) / logits.std()).tolist()


@pytest.mark.parametrize("near", [True, False])
def test_another_greedy_token_is_a_near_tie_or_an_error(edge: Edge, artifact: Path, near: bool) -> None:
    vector = load_artifact(artifact).manifest.conformance.greedy.vectors[0]
    order, leads = greedy_leads(artifact, vector)
    at = 1 if near else next(i for i, lead in enumerate(leads) if lead > NEAR)

    def other(data: dict[str, object]) -> None:
        data["conformance"]["greedy"]["vectors"][0]["continuation"] = [order[at]]  # type: ignore[index]

    edit(artifact, other)
    if near:
        found = verify.verify(artifact).greedy
        assert (found.outcome, found.different) == ("near ties", 1)
        assert found.margin == pytest.approx(leads[1])
        assert "1 of" in edge("verify", str(artifact)).out
        return
    with pytest.raises(EngineError, match="answers differently than when it was built, though every file is right"):
        verify.verify(artifact)
    assert edge("verify", str(artifact)).code == 11
    assert edge("verify", str(artifact), "--no-run").code == 0


def test_weights_changed_together_with_their_digest_answer_differently(artifact: Path) -> None:
    """Digests say that a directory agrees with its manifest, vectors that it still answers as the model did."""
    (artifact / "null.json").write_text(json.dumps({"seed": "00" * 32}) + "\n", encoding="utf-8")
    raw = (artifact / "null.json").read_bytes()

    def listed(data: dict[str, object]) -> None:
        data["files"]["null.json"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}  # type: ignore[index]

    edit(artifact, listed)
    with pytest.raises(EngineError, match="answers differently"):
        verify.verify(artifact)


def test_vectors_that_were_not_recorded_are_said_to_be_missing(edge: Edge, artifact: Path) -> None:
    def none(data: dict[str, object]) -> None:
        data["conformance"]["greedy"] = {"computed_by": None, "vectors": [], "reason": "not verified (--no-verify)"}  # type: ignore[index]

    edit(artifact, none)
    assert verify.verify(artifact).greedy == verify.Answers("not compared", 0, 0, 0.0, "not verified (--no-verify)")
    assert "not compared: not verified (--no-verify)" in edge("verify", str(artifact)).out


def test_files_that_are_no_part_of_it_are_named(edge: Edge, artifact: Path) -> None:
    (artifact / "sub").mkdir()
    (artifact / "sub" / "planted.so").write_bytes(b"x")
    assert verify.verify(artifact, run=False).unlisted == ("sub/planted.so",)
    assert "no part of the artifact: sub/planted.so" in edge("verify", str(artifact), "--no-run").out


def test_several_artifacts_each_get_their_say(edge: Edge, artifact: Path, built: Path, tmp_path: Path) -> None:
    flipped(artifact / "null.json")
    ended = edge("verify", str(built), str(artifact), str(tmp_path / "none"), str(built), "--json")
    said = json.loads(ended.out)
    good, again = said["artifacts"]
    assert ended.code == 6
    assert good == again and good["greedy"]["outcome"] == "equal"
    assert [(p["directory"], p["kind"]) for p in said["problems"]] == [
        (str(artifact), "ArtifactError"),
        (str(tmp_path / "none"), "ArtifactError"),
    ]
    assert said["parity"] is None, "what is damaged is compared with nothing"
    assert ended.err.count("edge: error: ") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_engine_that_crashes_is_reported(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    monkeypatch.setattr(child, "command", lambda module: [sys.executable, "-c", code])
    with pytest.raises(EngineError, match="SIGSEGV"):
        verify.verify(artifact)


def test_nothing_of_the_build_side_is_loaded(artifact: Path) -> None:
    loaded = modules_after("import sys\nfrom edgekit.verify import verify\nverify(sys.argv[1])", str(artifact))
    assert not {name for name in loaded if name in BUILD_ONLY or name.split(".")[0] in BUILD_ONLY}


def test_errors_of_the_process_come_back_as_they_are(artifact: Path) -> None:
    (artifact / "null.json").write_text("{" * (artifact / "null.json").stat().st_size, encoding="utf-8")
    with pytest.raises(EdgekitError, match=r"null\.json"):
        child.ask("edgekit.verify", {"directory": str(artifact), "threads": None})

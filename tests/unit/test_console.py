"""What the command prints: nothing that a terminal obeys, errors as JSON where JSON is asked for, and a stdout that takes no more."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from command import Edge
from edgekit import console
from edgekit.artifact import MANIFEST, load_artifact
from edgekit.commands.common import described
from edgekit.errors import CheckpointError, OutputError, UsageError
from edgekit.signing import make_keys
from tiny_artifact import build_tiny

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(edgekit.__file__).parents[1])}
EDGE = [sys.executable, "-m", "edgekit"]
EVIL = "m\x1b]0;owned\x07\x9b2J\u202eevil\x7f\nedge: error: none"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("console"), "null")


@pytest.fixture
def named(artifact: Path, tmp_path: Path) -> Path:
    """A stranger chose its names."""
    copy = Path(shutil.copytree(artifact, tmp_path / "a"))
    data = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    data["model"] |= {"name": EVIL, "license": EVIL, "architecture": EVIL}
    data |= {"target": EVIL, "producer": EVIL}
    data["scheme"]["exceptions"][EVIL] = {"bits": 8, "group": 32}
    data["engine"]["details"][EVIL] = EVIL
    data["conformance"]["greedy"] = {"computed_by": None, "vectors": [], "reason": EVIL}
    (copy / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    return copy


def test_names_are_not_obeyed(named: Path, tmp_path: Path, edge: Edge) -> None:
    private = make_keys(tmp_path / "k")[0]
    for arguments in (["inspect", named], ["verify", named], ["verify", named, named, "--no-run"], ["run", named, "hi", "--stats"]):
        ended = edge(*map(str, arguments))
        assert not set(ended.out + ended.err) & set("\x1b\x07\x9b\u202e\x7f"), arguments
    for arguments in (["inspect", named, "--json"], ["verify", named, "--json"], ["sign", named, "--key", private, "--json"]):
        ended = edge(*map(str, arguments))
        assert not set(ended.out + ended.err) & set("\x1b\x07\x9b\u202e\x7f"), arguments
        json.loads(ended.out)
    assert json.loads(edge("inspect", str(named), "--json").out)["model"]["name"] == EVIL


def test_errors_are_not_obeyed(artifact: Path, tmp_path: Path, edge: Edge) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "a"))
    data = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    data["engine"]["name"] = EVIL
    (copy / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    ended = edge("run", str(copy), "hi")
    assert ended.code == 6 and "\x1b" not in ended.err
    edge("inspect", str(tmp_path / "\x1b[2J"))
    assert "\x1b" not in edge("inspect", str(tmp_path / "\x1b[2J")).err


def test_answers_are_as_they_are_but_to_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    console.stream("a\x1b[2Jb\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    console.stream("a\x1b[2Jb\n")
    assert capsys.readouterr().out == "a\x1b[2Jb\na\\x1b[2Jb\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "x", "--nonsense", "--json"],
        ["verify", "--json"],
        ["verify", "x", "--tokens", "many", "--json"],
        ["nonsense", "--json"],
        ["--json"],
        ["cache", "--json"],
        ["build", "tiny-phi", "--json"],
        ["serve", "x", "--json"],
        ["cache", "prune", "--limit", "5", "--all", "--json"],
        ["profile", "--json"],
        ["pull", "nowhere", "--out", "x", "--json"],
        ["verify", "x", "--min-release", "3", "--json"],
    ],
)
def test_usage_errors_are_json_too(edge: Edge, arguments: list[str]) -> None:
    ended = edge(*arguments)
    error = json.loads(ended.out)["error"]
    assert ended.code == UsageError.exit_code == error["exit_code"]
    assert error["kind"] == "UsageError" and error["message"] and ended.err


def test_without_json_stdout_is_empty(edge: Edge) -> None:
    assert edge("run", "x", "--nonsense").out == ""
    assert edge("run", "x", "--", "--json").out == ""


def test_python_m_edgekit() -> None:
    done = subprocess.run([*EDGE, "--version"], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == f"edgekit {edgekit.__version__}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_stdout(artifact: Path) -> None:
    wanted = [
        ["models"],
        ["models", "--json"],
        ["--help"],
        ["--version"],
        ["inspect", str(artifact)],
        ["run", str(artifact), "hi", "--max-tokens", "3"],
        ["inspect", "/nowhere", "--json"],
        ["run", "--json"],
    ]
    with Path("/dev/full").open("wb") as full:
        for arguments in wanted:
            done = subprocess.run([*EDGE, *arguments], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert done.returncode == OutputError.exit_code, (arguments, done.stderr)
            assert "cannot write to standard output: No space left on device" in done.stderr and "Traceback" not in done.stderr
        done = subprocess.run([*EDGE, "inspect", "/nowhere"], env=ENVIRONMENT, stdout=full, stderr=full, check=False)
        assert done.returncode in (6, OutputError.exit_code)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")
def test_closed_streams(artifact: Path) -> None:
    for closing in (">&-", "2>&-", ">&- 2>&-"):
        command = f'{sys.executable} -m edgekit inspect "$1" {closing}'
        assert subprocess.run(["sh", "-c", command, "sh", artifact], env=ENVIRONMENT, check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_names_that_are_no_utf8(artifact: Path, tmp_path: Path) -> None:
    copy = os.fsencode(shutil.copytree(artifact, tmp_path / os.fsdecode(b"a\xff")))
    for arguments in (
        [b"inspect"],
        [b"verify"],
        [b"verify", b"--json"],
        [b"profile", b"--json", b"--quiet", b"--loads", b"1", b"--rounds", b"1"],
    ):
        done = subprocess.run([*EDGE, *arguments, copy], env=ENVIRONMENT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        if b"--json" in arguments:
            json.loads(done.stdout)
    (tmp_path / "profile.json").write_bytes(done.stdout)
    done = subprocess.run(
        [*EDGE, "profile", "--compare", *[tmp_path / "profile.json"] * 2], env=ENVIRONMENT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*EDGE, b"inspect", copy + b"\xfe", b"--json"], env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 6 and json.loads(done.stdout)["error"]["kind"] == "ArtifactError"


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_checkpoint_whose_names_are_no_utf8(tmp_path: Path) -> None:
    """Its directory's name is the model's, and a licence's comes along."""
    from checkpoints import make_checkpoint
    from tiny_artifact import write_target

    model = make_checkpoint(tmp_path / os.fsdecode(b"m\xff"), "llama")
    out = tmp_path / os.fsdecode(b"out\xff")
    edgekit.build(model, target=write_target(tmp_path / "t.toml", "null"), output=out)
    assert load_artifact(out).manifest.model.name == "m\\xff"
    (model / os.fsdecode(b"LICENSE\xff")).write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError, match="no manifest can list it"):
        edgekit.build(model, target=tmp_path / "t.toml", output=out, force=True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:secret@host/x", "https://***@host/x"),
        ("for url 'https://s3.example/b/o?X-Amz-Signature=abc&X-Amz-Credential=def'", "for url 'https://s3.example/b/o?***'"),
        (
            "HTTPSConnectionPool(host='s3', port=443): url: /b/o?X-Amz-Signature=abc (Caused by x)",
            "HTTPSConnectionPool(host='s3', port=443): url: /b/o?*** (Caused by x)",
        ),
        ("{'Authorization': 'Bearer abcdefghijkl'}", "{'Authorization': 'Bearer ***'}"),
        ("Is the name right? hf_abcdefghij", "Is the name right? hf_***"),
    ],
)
def test_secrets_are_in_no_message(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.notice(text)
    assert capsys.readouterr().err == shown + "\n"
    assert described("DownloadError", text, 10)["message"] == shown

"""The ``edge`` command: what it prints where, its JSON, its exit codes, and the conversation."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints import make_checkpoint
from command import Edge
from edgekit import __version__, cli, console, talk
from edgekit.artifact import Greedy, load_artifact
from edgekit.engines.exported import Exported
from edgekit.engines.null import export
from edgekit.errors import EngineError, OutputError, UsageError
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant.scheme import QuantScheme
from edgekit.runtime import Sampling, load
from edgekit.target import Target

NULL = 'description = "d"\nengine = "null"\nscheme = "int4-g32"\ncontext = 96\nverified = "executed"\n'
ONNX = 'description = "d"\nengine = "onnx"\nscheme = "int4-g32"\ncontext = 96\nverified = "executed"\n'
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parent.parent)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint ``small``, a target ``null.toml`` and the artifact ``small-null``."""
    directory = tmp_path_factory.mktemp("cli")
    make_checkpoint(directory / "small", "llama")
    (directory / "null.toml").write_text(NULL, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        cli.app(
            ["build", str(directory / "small"), "--target", str(directory / "null.toml"), "--out", str(directory / "small-null"), "--quiet"]
        )
    assert ended.value.code == 0
    return directory


@pytest.fixture
def artifact(place: Path) -> str:
    return str(place / "small-null")


def test_help_and_version(edge: Edge) -> None:
    ended = edge("--help")
    assert ended.code == 0
    for command in ("build", "run", "chat", "inspect", "targets", "models"):
        assert f"\n  {command}" in ended.out
        assert edge(command, "--help").code == 0
    assert edge("--version").out == f"edgekit {__version__}\n"


def test_help_loads_nothing_that_only_commands_need() -> None:
    code = "import sys; from edgekit import cli; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, check=True, text=True).stdout.split())
    assert not {"numpy", "tokenizers", "jinja2", "onnx_ir", "onnxruntime", "huggingface_hub", "rich", "edgekit.artifact"} & loaded


@pytest.mark.parametrize(
    "arguments", [["build"], ["build", "tiny-phi"], ["nonsense"], ["run"], ["build", "m", "--target", "cpu", "--context", "0"]]
)
def test_wrong_usage_is_2(edge: Edge, arguments: list[str]) -> None:
    assert edge(*arguments).code == 2


def test_build_reports_on_stdout_and_its_progress_on_stderr(edge: Edge, place: Path, tmp_path: Path) -> None:
    # On a slow machine the digest would be known by now from the build that the fixture made.
    ended = edge("build", str(place / "small"), "--target", str(place / "null.toml"), "--out", str(tmp_path / "a"), "--no-cache")
    assert ended.code == 0
    assert ended.out.startswith(f"{tmp_path / 'a'}: small for null, int4-g32, ")
    assert "digest of the model: 100% of" in ended.err
    quiet = edge("build", str(place / "small"), "--target", str(place / "null.toml"), "--out", str(tmp_path / "b"), "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_build_for_several_targets_as_json(edge: Edge, place: Path, tmp_path: Path) -> None:
    (tmp_path / "second.toml").write_text(NULL.replace("g32", "g64"), encoding="utf-8")
    targets = ["--target", str(place / "null.toml"), "--target", str(tmp_path / "second.toml")]
    ended = edge("build", str(place / "small"), *targets, "--out", str(tmp_path / "out"), "--json")
    assert (ended.code, ended.err) == (0, "")
    written = json.loads(ended.out)
    assert [w["scheme"] for w in written] == ["int4-g32", "int4-g64"]
    assert [Path(w["directory"]) for w in written] == [tmp_path / "out" / "small-null", tmp_path / "out" / "small-second"]
    for one in written:
        assert load_artifact(one["directory"]).manifest.target == one["target"]
        assert one["not_tried"] is None


def test_every_target_is_checked_before_the_first_is_built(edge: Edge, place: Path, tmp_path: Path) -> None:
    for name in ("other", "null"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.toml").write_text(NULL, encoding="utf-8")
    (tmp_path / "speedy.toml").write_text(NULL + "speed = 1\n", encoding="utf-8")
    (tmp_path / "out" / "small-other").mkdir(parents=True)
    (tmp_path / "out" / "small-other" / "mine.txt").write_text("x", encoding="utf-8")
    for second, code in {"nope": 4, "speedy.toml": 4, "other/other.toml": 9, "null/null.toml": 2}.items():
        path = str(tmp_path / second) if second.endswith(".toml") else second
        both = ["--target", str(place / "null.toml"), "--target", path]
        ended = edge("build", str(place / "small"), *both, "--out", str(tmp_path / "out"), "--json")
        assert (ended.code, set(json.loads(ended.out))) == (code, {"error"}), second
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["small-other"]


def test_a_later_build_that_fails_still_reports_what_was_written(
    edge: Edge, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be known before: the second export fails."""
    (tmp_path / "fast.toml").write_text(NULL, encoding="utf-8")
    plain = export.export

    def failing(model: Model, scheme: QuantScheme, target: Target, *rest: Any) -> Exported:
        if target.name == "fast":
            raise OutputError("the disk has gone")
        return plain(model, scheme, target, *rest)

    monkeypatch.setattr(export, "export", failing)
    command = ["build", str(place / "small"), "--target", str(place / "null.toml"), "--target", str(tmp_path / "fast.toml")]
    ended = edge(*command, "--out", str(tmp_path / "out"), "--json")
    document = json.loads(ended.out)
    assert (ended.code, document["error"]["kind"]) == (9, "OutputError")
    assert [Path(one["directory"]) for one in document["written"]] == [tmp_path / "out" / "small-null"]
    assert "edge: error: the disk has gone" in ended.err


@pytest.mark.parametrize(
    ("second", "options", "code", "message"),
    [
        (NULL + "[options]\nspeed = 1\n", [], 4, "target second: options: unknown key 'speed'"),
        (NULL, ["--context", "1000000"], 2, "context 1000000 is not between 1 and"),
        (ONNX + '[options]\nprovider = "cuda"\n', [], 4, "has no float32 GroupQueryAttention"),
        (ONNX, ["--bits", "2"], 2, "--bits 2 is below the least"),
    ],
)
def test_what_any_target_lacks_is_known_before_the_first_is_built(
    edge: Edge, place: Path, tmp_path: Path, second: str, options: list[str], code: int, message: str
) -> None:
    """Options, context, kernels, budget."""
    (tmp_path / "second.toml").write_text(second, encoding="utf-8")
    command = ["build", str(place / "small"), "--target", str(place / "null.toml"), "--target", str(tmp_path / "second.toml"), *options]
    ended = edge(*command, "--out", str(tmp_path / "out"), "--json")
    assert (ended.code, set(json.loads(ended.out))) == (code, {"error"}), ended.err
    assert message in ended.err and not (tmp_path / "out").exists()


def test_all_targets_together_have_to_fit_the_disk(edge: Edge, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "second.toml"
    other.write_text(NULL, encoding="utf-8")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=50_000_000, total=0, used=0))
    command = ["build", str(place / "small"), "--target", str(place / "null.toml")]
    assert edge(*command, "--out", str(tmp_path / "one")).code == 0
    ended = edge(*command, "--target", str(other), "--out", str(tmp_path / "out"))
    assert ended.code == 9 and "about 64 MB are needed" in ended.err and not (tmp_path / "out").exists()


def test_a_build_says_when_its_engine_could_not_try_it(edge: Edge, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def missing(*arguments: object) -> Iterator[Callable[[], Greedy]]:
        yield lambda: Greedy(None, (), "it is not here; install it: pip install it")

    monkeypatch.setattr(sys.modules["edgekit.build"], "greedy_vectors", missing)
    command = ["build", str(place / "small"), "--target", str(place / "null.toml"), "--out"]
    ended = edge(*command, str(tmp_path / "a"), "--quiet")
    note = f"edge: note: {tmp_path / 'a'} is built, but was not tried here: it is not here; install it: pip install it\n"
    assert (ended.code, ended.out, ended.err) == (0, "", note)
    ended = edge(*command, str(tmp_path / "b"), "--json")
    assert json.loads(ended.out)[0]["not_tried"] == "it is not here; install it: pip install it"


def test_an_error_leaves_the_bar_first(edge: Edge, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object, scheme: object, target: object, directory: object, progress: Progress, quantizer: object) -> None:
        progress("quantize", 1, 4)
        raise EngineError("it broke")

    monkeypatch.setattr(export, "export", fail)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ended = edge("build", str(place / "small"), "--target", str(place / "null.toml"), "--out", str(tmp_path / "a"))
    assert re.search(r"\rquantize: \[###### +\]  25% of 4 B *\nedge: error: it broke\n$", ended.err)


def test_inspect(edge: Edge, artifact: str) -> None:
    ended = edge("inspect", artifact, "--check")
    assert ended.code == 0
    for text in ("small (local), llama", "int4-g32", "96 tokens", "every digest is right", "tokenizer.json"):
        assert text in ended.out
    assert json.loads(edge("inspect", artifact, "--json").out)["format"] == "edgekit"


def test_targets_and_models(edge: Edge) -> None:
    assert "raspberry-pi-5" in edge("targets").out
    assert {"name", "engine", "verified", "context"} <= set(json.loads(edge("targets", "--json").out)[0])
    assert "tiny-phi" in edge("models").out
    assert {"name", "hub", "license", "parameters"} <= set(json.loads(edge("models", "--json").out)[0])


def test_run_streams_the_answer_to_stdout_alone(edge: Edge, artifact: str) -> None:
    ended = edge("run", artifact, "hello", "--max-tokens", "12", "--stats")
    with load(artifact) as runtime:
        answer = runtime.complete([{"role": "user", "content": "hello"}], max_tokens=12).text
    assert (ended.code, ended.out) == (0, answer + "\n")
    assert "tokens/s" in ended.err
    assert "first token after" in ended.err


def test_run_as_json(edge: Edge, artifact: str) -> None:
    ended = edge("run", artifact, "hello", "--max-tokens", "5", "--json")
    document = json.loads(ended.out)
    assert (document["finish"], len(document["tokens"]), document["decode"]["tokens"]) == ("length", 5, 4)
    assert set(document) == {"text", "finish", "tokens", "prefill", "decode", "seconds_to_first_token"}


def test_run_options_reach_the_sampler(edge: Edge, artifact: str) -> None:
    drawn = ["run", artifact, "hello", "--max-tokens", "8", "--temperature", "1.5", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.001"]
    first, again, other = (json.loads(edge(*drawn, "--json", "--seed", seed).out)["tokens"] for seed in ("1", "1", "2"))
    assert first == again != other
    with load(artifact) as runtime:
        sampling = Sampling(1.5, 50, 0.95, 0.001, seed=1)
        assert list(runtime.complete([{"role": "user", "content": "hello"}], sampling=sampling, max_tokens=8).tokens) == first


@pytest.mark.parametrize("command", ["run", "chat"])
def test_options_that_would_change_nothing_are_refused(edge: Edge, artifact: str, command: str) -> None:
    ended = edge(command, artifact, "--top-k", "5", "--seed", "1")
    assert (ended.code, ended.out) == (2, "")
    assert "edge: error: --top-k, --seed would change nothing" in ended.err
    assert "add --temperature" in ended.err
    for option in (["--top-p", "0.9"], ["--min-p", "0.1"], ["--temperature", "0", "--seed", "0"]):
        assert edge(command, artifact, *option).code == 2


def test_run_raw_and_system(edge: Edge, artifact: str) -> None:
    tokens = {}
    for name, options in {"chat": [], "raw": ["--raw"], "system": ["--system", "be brief"]}.items():
        tokens[name] = str(json.loads(edge("run", artifact, "hello", "--max-tokens", "5", "--json", *options).out)["tokens"])
    assert len(set(tokens.values())) == 3
    assert edge("run", artifact, "hello", "--raw", "--system", "x").code == 2


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_run_reads_a_piped_prompt(edge: Edge, artifact: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    plain = edge("run", artifact, "héllo", "--max-tokens", "5")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("héllo\n".encode()), encoding="ascii"))
    assert edge("run", artifact, *arguments, "--max-tokens", "5").out == plain.out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n")))
    assert edge("run", artifact, *arguments).code == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    ended = edge("run", artifact, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "the prompt is empty" in ended.err


def test_an_empty_prompt_is_refused(edge: Edge, artifact: str) -> None:
    assert edge("run", artifact, "").code == edge("run", artifact, "", "--raw").code == 2


def test_chat_reads_a_pipe_as_utf8(edge: Edge, artifact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = edge("run", artifact, "héllo", "--max-tokens", "5")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("héllo\r\n".encode()), encoding="cp1252"))
    assert edge("chat", artifact, "--max-tokens", "5").out == plain.out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n")))
    with pytest.raises(UsageError, match="the input is not UTF-8"):
        talk.ask()


def test_errors_are_json_on_stdout_when_json_is_asked_for(edge: Edge, tmp_path: Path) -> None:
    ended = edge("inspect", str(tmp_path), "--json")
    error = json.loads(ended.out)["error"]
    assert (ended.code, error["kind"], error["exit_code"]) == (6, "ArtifactError", 6)
    assert error["message"] in ended.err


def test_ctrl_c_in_an_answer_keeps_what_there_is_and_is_130(edge: Edge, artifact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(edge("run", artifact, "hello", "--max-tokens", "9", "--json").out)
    monkeypatch.setattr(console, "hide", interrupt_after(4))
    ended = edge("run", artifact, "hello", "--max-tokens", "9", "--json")
    assert ended.code == 130
    cut = json.loads(ended.out)
    assert (cut["finish"], cut["tokens"]) == ("interrupted", whole["tokens"][:4])


def interrupt_after(steps: int) -> Callable[[str], None]:
    seen: list[str] = []

    def show(text: str) -> None:
        seen.append(text)
        if len(seen) == steps:
            raise KeyboardInterrupt

    return show


def test_a_closed_pipe_ends_quietly() -> None:
    command = [sys.executable, "-m", "edgekit.cli", "models"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(timeout=60)
    process.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_leave_no_half_written_artifact(place: Path, tmp_path: Path, number: str, code: int) -> None:
    """The build reports its progress through a file that the test watches; then it waits for the signal."""
    script = f"""
import contextlib, signal, sys, time
from edgekit import cli, console
# A shell starts background jobs, as this test may be one, with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def progress(stage, done, total, /):
    if stage == "digest of the artifact":
        print("working", flush=True)
        time.sleep(60)
console.progress = lambda *, quiet: contextlib.nullcontext(progress)
sys.argv[1:] = ["build", {str(place / "small")!r}, "--target", {str(place / "null.toml")!r}, "--out", {str(tmp_path / "a")!r}]
cli.main()
"""
    process = subprocess.Popen([sys.executable, "-c", script], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"working\n"
    assert len(list(tmp_path.glob(".a.partial-*"))) == 1
    process.send_signal(signal.Signals[number])
    process.communicate(timeout=60)
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_output_that_the_console_cannot_show_does_not_crash() -> None:
    """A console of one byte a character, as Windows has them."""
    code = "from edgekit import console; console.make_safe(); print('世界 ok'); console.show_json({'text': '世界'})"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
    )
    assert ended.returncode == 0
    assert b"?? ok" in ended.stdout
    assert b'"\\u4e16\\u754c"' in ended.stdout


def test_a_pipe_gets_utf8_whatever_the_platform_says() -> None:
    """LC_ALL=C without Python's own repair is ASCII, as a pipe on Windows is a code page; a file name need not be text."""
    code = "from edgekit import console; console.make_safe(); print('\\u4e16', '\\udcff'); console.show_json({'text': '\\u4e16\\udcff'})"
    environment = {key: value for key, value in ENVIRONMENT.items() if key not in ("PYTHONIOENCODING", "LANG", "LC_CTYPE")}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, capture_output=True
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    lines = ended.stdout.decode("utf-8").splitlines()
    assert lines[0] == "世 \\udcff"
    assert json.loads("".join(lines[1:])) == {"text": "世\udcff"}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_inspect_as_json_survives_any_encoding(artifact: str, encoding: str) -> None:
    command = [sys.executable, "-m", "edgekit.cli", "inspect", artifact, "--json"]
    ended = subprocess.run(command, env=ENVIRONMENT | {"PYTHONIOENCODING": encoding}, capture_output=True, check=True)
    written = (Path(artifact) / "edgekit.json").read_text(encoding="utf-8")
    assert json.loads(ended.stdout.decode(encoding)) == json.loads(written)
    assert "世界" in written


class Script:
    """Plays the user: lines, or exceptions that reading raises; then the end of input."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines: Iterator[str | BaseException] = iter(lines)

    def __call__(self) -> str:
        line = next(self.lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line


def conversation(artifact: str, *lines: str | BaseException, max_tokens: int = 4, show: Callable[[str], None] | None = None) -> list[str]:
    """The answers of a conversation."""
    shown: list[str] = []
    with load(artifact) as runtime:
        talk.converse(
            runtime,
            Sampling(),
            system=None,
            max_tokens=max_tokens,
            stop=(),
            lookup=0,
            stats=False,
            show=show or shown.append,
            read=Script(*lines),
        )
    return "".join(shown).split("\n")[:-1] if show is None else []


def test_conversation_remembers_until_it_is_reset(artifact: str) -> None:
    once = conversation(artifact, "hello")
    assert conversation(artifact, "hello", "/reset", "hello") == once * 2
    assert conversation(artifact, "hello", "hello") != once * 2
    assert conversation(artifact, "hello", "/exit", "hello") == once
    assert conversation(artifact, "", "   ", "/what", "hello") == once


def test_ctrl_c_twice_leaves_a_conversation(artifact: str) -> None:
    once = conversation(artifact, "hello")
    assert conversation(artifact, KeyboardInterrupt(), "hello") == once
    assert conversation(artifact, KeyboardInterrupt(), KeyboardInterrupt(), "hello") == []
    # The first one ends an answer.
    read = Script("hello", KeyboardInterrupt(), "never reached")
    with load(artifact) as runtime:
        talk.converse(runtime, Sampling(), system=None, max_tokens=9, stop=(), lookup=0, stats=False, show=interrupt_after(2), read=read)
    assert read() == "never reached"


def test_conversation_goes_on_after_the_context_overruns(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert conversation(artifact, "the " * 200, "hello") == conversation(artifact, "hello")
    assert "/reset begins anew" in capsys.readouterr().err


def test_bar_shows_share_bytes_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    display = console.Display(stream, bar=True)
    display("quantize", 0, 4_000_000)
    display("quantize", 1_000_000, 4_000_000)
    display("quantize", 2_000_000, 4_000_000)
    display("quantize", 4_000_000, 4_000_000)
    drawn = stream.getvalue().split("\r")
    assert drawn[3].startswith("quantize: [############            ]  50% of 4 MB, 1 MB/s, 2.0 s left")
    assert drawn[-1].startswith("quantize: [########################] 100% of 4 MB in 4.0 s, 1 MB/s")
    assert drawn[-1].endswith("\n")


def test_what_counts_layers_is_not_said_to_be_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    display = console.Display(stream, bar=True)
    for done in (0, 16, 32):
        display("equalize", done, 32)
    drawn = [line.strip() for line in stream.getvalue().split("\r")]
    assert drawn[-2:] == [
        "equalize: [############            ]  50% of 32, 2.0 s left",
        "equalize: [########################] 100% of 32 in 4.0 s",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (5_767_168, "5.77 MB"), (123_456_789, "123 MB"), (7.6e9, "7.6 GB"), (2e12, "2 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert console.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59, "59 s"), (185, "3:05"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert console.clock(seconds) == text

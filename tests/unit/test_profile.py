"""``edge profile``: measured on small artifacts of every engine; its journal, figures, comparison and limits."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from command import Edge
from edgekit import child
from edgekit.artifact import load_artifact
from edgekit.device import load_device
from edgekit.engines import ENGINES
from edgekit.engines.observing import observer
from edgekit.errors import EngineError, UsageError
from edgekit.profile import compare, figures, html, journal, report, run, statistics, subject
from edgekit.profile.report import Report, Settings
from edgekit.resources import data_folder
from tiny_artifact import build_tiny

ROOT = Path(__file__).resolve().parents[2]
NEEDS = {"onnx": "onnxruntime", "qnn": "onnxruntime_qnn", "openvino": "openvino", "mlx": "mlx", "null": "numpy"}
QUICK = ("--tokens", "4", "--rounds", "2", "--loads", "1", "--prompt", "8", "--prompt", "16", "--quiet")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("profile"), "null")


@pytest.fixture(scope="module")
def measured(artifact: Path) -> Report:
    settings = Settings((8, 16), 4, 5, 5, None, 0.0)
    return run.profile(artifact, settings, journal_path=None, trace=None, command="edge profile", tell=lambda text: None)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_is_measured_into_one_schema(engine: str, tmp_path: Path, edge: Edge) -> None:
    if importlib.util.find_spec(NEEDS.get(engine, engine)) is None:
        pytest.skip(f"{engine} is not installed")
    schema = pytest.importorskip("jsonschema")
    directory = build_tiny(tmp_path, engine)
    trace = ["--trace", str(tmp_path / "trace.json")] if engine not in ("mlx", "qnn") else []
    ended = edge("profile", str(directory), *QUICK, "--json", "--sustained", "0.5", *trace, "--html", str(tmp_path / "page.html"))
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    schema.validate(found, json.loads((ROOT / "docs" / "profile.schema.json").read_text(encoding="utf-8")))
    (tmp_path / "report.json").write_text(ended.out, encoding="utf-8")
    read = report.read(tmp_path / "report.json")
    assert json.loads(json.dumps(report.as_json(read))) == found, "nothing is lost on the way"
    assert read.complete and read.subject.engine == engine
    assert [p.tokens for p in read.prefill] == [d.depth for d in read.decode] == [8, 16]
    assert all(len(p.rate.samples) == 2 and min(p.rate.samples) > 0 for p in read.prefill)
    assert all(d.tokens == 8 and 0 < d.p50 <= d.p95 <= d.p99 for d in read.decode)
    assert read.sustained is not None and read.sustained.tokens > 0
    assert (read.memory.peak or 0) >= (read.memory.loaded or 0) >= (read.memory.runtime or 0) > 0
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")
    if trace:
        events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
        assert {event["cat"] for event in events} == {"prefill", "decode"} and min(event["ts"] for event in events) == 0
        for phase in ("prefill", "decode"):
            assert math.isclose(sum(o.share for o in read.operators or () if o.phase == phase), 1)


def test_an_engine_without_counters_says_so(tmp_path: Path) -> None:
    directory = tmp_path
    with pytest.raises(EngineError, match="Instruments"):
        observer("mlx").trace(directory, cast(object, None), None, lambda session: None)  # type: ignore[arg-type]


def test_every_engine_can_be_observed() -> None:
    for name in ENGINES:
        module = observer(name)
        assert all(callable(getattr(module, what)) for what in ("host_memory", "cache_bytes", "device_memory", "trace"))


def test_the_table(artifact: Path, edge: Edge) -> None:
    ended = edge("profile", str(artifact), *QUICK)
    assert ended.code == 0 and ended.err == ""
    for words in ("peak memory", "cold load", "prefill of 16 tokens", "decode at 8 tokens", "bandwidth", "not measured  "):
        assert words in ended.out


def test_lengths_that_fit_the_context(artifact: Path, edge: Edge) -> None:
    held = load_artifact(artifact)
    wanted = Settings((), 32, 1, 1, None, 0.0)
    assert run.settled(held, wanted).prompts == (32,), "of 96 tokens"
    assert run.settled(held, replace(wanted, tokens=90)) == replace(wanted, prompts=(48,), tokens=48)
    ended = edge("profile", str(artifact), "--prompt", "90", "--tokens", "7")
    assert ended.code == 2 and "do not fit into the context of 96" in ended.err


def test_bytes_of_a_token(tmp_path: Path) -> None:
    """Counted from the file sizes; against the tensors that the graph's matrix products read."""
    onnx = pytest.importorskip("onnx")
    for variant in ("phi3-longrope", "llama"):
        directory = build_tiny(tmp_path / variant, "onnx", variant)
        graph = onnx.load(str(directory / "model.onnx"), load_external_data=False).graph
        read = {name for node in graph.node if node.op_type == "MatMulNBits" for name in node.input}
        sizes = [
            next((int(e.value) for e in t.external_data if e.key == "length"), t.ByteSize()) for t in graph.initializer if t.name in read
        ]
        of = subject.subject(load_artifact(directory))
        other = load_artifact(directory).manifest.files["model.onnx"].bytes  # the graph itself and norms: 40 % of so small a model
        assert sum(sizes) <= of.weights_read <= sum(sizes) * 1.1 + other + 4096
        assert subject.read_for_token(of, 10) == of.weights_read + 10 * of.cache_token
    windowed = replace(of, cache_window=4)
    assert subject.read_for_token(windowed, 10) == of.weights_read + 4 * of.cache_token


def test_a_run_goes_on_where_it_was(artifact: Path, tmp_path: Path, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends in the middle of everything, as the machine would: what was measured stays, and is not measured again."""
    path = tmp_path / "journal"
    first = edge("profile", str(artifact), *QUICK, "--json", "--journal", str(path))
    lines = path.read_bytes().splitlines(keepends=True)
    assert first.code == 0
    for kept in (1, 3, len(lines) - 2):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:7])  # a line was being written
        again = edge("profile", str(artifact), *QUICK, "--json", "--journal", str(path))
        assert again.code == 0, again.err
        now = path.read_bytes().splitlines(keepends=True)
        assert now[:kept] == lines[:kept] and len(now) == len(lines)
        assert json.loads(again.out)["complete"] and json.loads(again.out)["began"] == json.loads(first.out)["began"]
    monkeypatch.setattr(child, "ask", lambda *given, **named: pytest.fail("nothing is left to measure"))
    last = edge("profile", str(artifact), *QUICK, "--json", "--journal", str(path))
    assert last.code == 0 and json.loads(last.out)["prefill"] == json.loads(again.out)["prefill"]


def test_a_journal_of_something_else_is_refused(artifact: Path, tmp_path: Path, edge: Edge) -> None:
    path = tmp_path / "journal"
    assert edge("profile", str(artifact), *QUICK, "--journal", str(path)).code == 0
    ended = edge("profile", str(artifact), *QUICK, "--rounds", "3", "--journal", str(path))
    assert ended.code == 2 and "rounds was 2 and is 3" in ended.err
    path.write_text("shopping list\n", encoding="utf-8")
    ended = edge("profile", str(artifact), *QUICK, "--journal", str(path))
    assert ended.code == 2 and "no journal" in ended.err
    ended = edge("profile", str(artifact), *QUICK, "--journal", str(tmp_path))
    assert ended.code == 9


def test_an_engine_that_crashes_loses_nothing(artifact: Path, tmp_path: Path, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    real = child.ask

    def ask(module: str, request: child.Json, **named: float) -> child.Json:
        if request["do"] == "rounds":
            raise EngineError("the engine was ended by SIGKILL while it ran the model")
        return real(module, request)

    monkeypatch.setattr(child, "ask", ask)
    ended = edge("profile", str(artifact), *QUICK, "--json")
    found = json.loads(ended.out)
    assert ended.code == 11 and "SIGKILL" in ended.err
    assert found["complete"] is False and found["load"] and not found["decode"]
    assert {"length/8", "length/16", "text"} <= {part["part"] for part in found["missing"] if not part["cannot"]}


def test_a_length_that_the_engine_cannot_do(artifact: Path, tmp_path: Path, edge: Edge) -> None:
    path = tmp_path / "journal"
    assert edge("profile", str(artifact), *QUICK, "--journal", str(path)).code == 0
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if b'"length/16"' not in line]
    path.write_bytes(b"".join(kept) + b'{"part": "length/16", "error": "prompts over 12 tokens do not fit"}\n')
    held = journal.load(path)
    assert held.done("length/16") == 0 and held.done("length/8") == 2


LOADED = """
import sys, time
block = bytearray(512 << 20)
for at in range(0, len(block), 4096):
    block[at] = 1
print("ready", flush=True)
while True:
    sum(range(100000))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_is_the_process_s_own(artifact: Path, edge: Edge) -> None:
    """Another process takes half a gigabyte and a core meanwhile, and so does the one that asks."""
    others = [subprocess.Popen([sys.executable, "-c", LOADED], stdout=subprocess.PIPE) for _ in range(2)]
    own = bytearray(512 << 20)
    own[::4096] = b"x" * len(own[::4096])
    try:
        for other in others:
            assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        beside = json.loads(edge("profile", str(artifact), *QUICK, "--json").out)["memory"]
    finally:
        for other in others:
            other.kill()
            other.wait()
            assert other.stdout is not None
            other.stdout.close()
    del own
    alone = json.loads(edge("profile", str(artifact), *QUICK, "--json").out)["memory"]
    assert beside["peak"] < 300e6, "interpreter, numpy and tokenizers; none of 1.5 GB around it"
    assert abs(beside["peak"] - alone["peak"]) < 0.1 * alone["peak"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_is_what_the_kernel_says_at_the_end(tmp_path: Path) -> None:
    """Against getrusage of the ended process, which is what `time` shows."""
    script = (
        "import subprocess, sys, os, resource, json\n"
        'code = \'import json\\nfrom edgekit.profile import memory\\nb = bytearray(200 << 20)\\nb[::4096] = b"x" * len(b[::4096])\\n'
        "del b\\nprint(memory.peak(), memory.anonymous())'\n"
        "said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()\n"
        "print(json.dumps([*map(int, said), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "toolkit")}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
    own, anonymous, outside = json.loads(said)
    assert own > 200e6 and anonymous < 100e6
    assert abs(own - outside) <= 2 << 20


def test_ctrl_c_leaves_no_process(artifact: Path, tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("signals of POSIX")
    path = tmp_path / "journal"
    command = [sys.executable, "-m", "edgekit.cli", "profile", str(artifact), "--json", "--journal", str(path), "--sustained", "60"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "toolkit")}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        while process.poll() is None and (
            not path.exists() or b"sustained" not in path.read_bytes()[500:].replace(b'"sustained": 60', b"")
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    size = path.stat().st_size
    time.sleep(1.5)
    assert path.stat().st_size == size, "nobody writes any more"


def test_comparison(measured: Report) -> None:
    measured = steady(measured)
    rows = {row.name: row for row in compare.compare(measured, faster(measured, 2.0))}
    assert rows["decode@8"].verdict == "better" and rows["decode@8"].ratio == pytest.approx(2)
    assert rows["decode@8"].p == pytest.approx(2 / math.comb(10, 5))
    rows = {row.name: row for row in compare.compare(measured, faster(measured, 0.5))}
    assert rows["decode@16"].verdict == "worse" and rows["peak"].verdict == "one sample"
    same = compare.compare(measured, measured)
    assert {row.verdict for row in same} <= {"no difference seen", "one sample"} and all(row.ratio == 1 for row in same)
    assert html.two(measured, faster(measured, 2.0), ("before", "<after>")).count("&lt;after&gt;") > 2


def faster(measured: Report, times: float) -> Report:
    """With other decode rates, without noise."""
    decode = [replace(d, rate=statistics.spread([times * rate for rate in d.rate.samples])) for d in measured.decode]
    return replace(measured, decode=tuple(decode))


def steady(measured: Report) -> Report:
    """Rates that lie within 5 %."""
    decode = [replace(d, rate=statistics.spread([100 + i for i in range(5)])) for d in measured.decode]
    return replace(measured, decode=tuple(decode))


@pytest.mark.parametrize(
    ("limit", "times", "broken"),
    [
        ("decode < 0.9x", 0.8, ["decode@8 is 81.6 tok/s, 0.800x of the baseline's 102 tok/s", "decode@16 is 81.6 tok/s"]),
        ("decode@16 < 0.9x", 0.8, ["decode@16 is"]),
        ("decode < 0.9x", 0.95, []),
        ("decode < 0.99x", 0.985, []),  # beyond the limit, but no more than noise
        ("decode >= 1.5x", 2.0, ["decode@8 is", "decode@16 is"]),
        ("decode < 90 tok/s", 0.5, ["decode@8 is 51 tok/s", "decode@16 is 51 tok/s"]),
        ("decode < 90", 0.5, ["decode@8 is", "decode@16 is"]),
        ("peak > 1 MB", 1.0, ["peak is"]),
        ("peak > 1.01x", 1.0, []),
        ("peak > 100 GB", 1.0, []),
        ("ttft@8 > 1e5 ms", 1.0, []),
        ("load@warm > 0 s", 1.0, ["load@warm is"]),
    ],
)
def test_limits(measured: Report, limit: str, times: float, broken: Sequence[str]) -> None:
    before = steady(measured)
    found = compare.check([compare.parse_limit(limit)], faster(before, times), before)
    assert len(found) == len(broken)
    assert all(words in str(error) and limit in str(error) and error.exit_code == 15 for words, error in zip(broken, found, strict=True))


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("decode", "wanted a figure, a sign and a number"),
        ("decode == 3", "wanted a figure, a sign and a number"),
        ("decode < 0.9x or so", "wanted a figure, a sign and a number"),
        ("speed < 3", "no figure 'speed'"),
        ("decode < 1.2.3", "'1.2.3' is no number"),
        ("decode < 3 GB", "decode is not measured in 'GB'; wanted tok/s, or x"),
        ("peak > 3 s", "wanted B, kB, MB, GB"),
        ("ttft > 3 parsecs", "wanted s, ms"),
    ],
)
def test_a_limit_that_cannot_be_meant(limit: str, words: str, artifact: Path, edge: Edge) -> None:
    ended = edge("profile", str(artifact), "--fail-if", limit)
    assert ended.code == 2 and words in ended.err, "before anything is measured"


def test_limits_that_cannot_be_told(measured: Report) -> None:
    with pytest.raises(UsageError, match="was not measured; there is decode@8, decode@16"):
        compare.check([compare.parse_limit("decode@999 < 3")], measured, None)
    with pytest.raises(UsageError, match=r"joules > 3.: that was not measured"):
        compare.check([compare.parse_limit("joules > 3")], measured, None)
    with pytest.raises(UsageError, match="--baseline"):
        compare.check([compare.parse_limit("decode < 0.9x")], measured, None)
    few = replace(measured, decode=tuple(replace(d, rate=statistics.spread(d.rate.samples[:3])) for d in measured.decode))
    with pytest.raises(UsageError, match="3 and 3 samples of decode@8 cannot show a difference; measure 5 rounds"):
        compare.check([compare.parse_limit("decode < 0.9x")], few, few)
    assert compare.compare(few, few)[0].verdict == "too few samples"


def test_the_command_compares_files(measured: Report, tmp_path: Path, edge: Edge) -> None:
    before, after, page = tmp_path / "before.json", tmp_path / "after.json", tmp_path / "page.html"
    before.write_text(json.dumps(report.as_json(steady(measured))), encoding="utf-8")
    after.write_text(json.dumps(report.as_json(faster(steady(measured), 0.5))), encoding="utf-8")
    ended = edge("profile", "--compare", str(before), str(after), "--html", str(page), "--fail-if", "decode < 0.9x")
    assert ended.code == 15 and "decode@8 is 51 tok/s" in ended.err
    assert "Mann-Whitney" in ended.out and "worse" in ended.out and "worse" in page.read_text(encoding="utf-8")
    ended = edge("profile", "--compare", str(before), str(after), "--json")
    said = json.loads(ended.out)
    assert ended.code == 0 and said["comparison"][0]["verdict"] == "worse" and "subject" not in said
    assert edge("profile", "--compare", str(before), str(before), "--fail-if", "decode < 0.9x").code == 0
    assert edge("profile").code == 2
    assert edge("profile", str(tmp_path), "--compare", str(before), str(after)).code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("{}", "is no profile"),
        ('{"format": "edgekit-profile", "version": 99}', "version 99"),
        ("[]", "is no profile"),
    ],
)
def test_files_that_are_no_profile(text: str, words: str, tmp_path: Path, edge: Edge) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    ended = edge("profile", "--compare", str(tmp_path / "a.json"), str(tmp_path / "a.json"))
    assert ended.code == 2 and words in ended.err


def test_a_baseline_while_measuring(artifact: Path, measured: Report, tmp_path: Path, edge: Edge) -> None:
    before = tmp_path / "before.json"
    before.write_text(json.dumps(report.as_json(measured)), encoding="utf-8")
    ended = edge("profile", str(artifact), *QUICK, "--rounds", "5", "--json", "--baseline", str(before), "--fail-if", "peak > 3x")
    said = json.loads(ended.out)
    assert ended.code == 0 and said["comparison"] and said["subject"]["engine"] == "null"


def test_saved_into_a_device_profile(artifact: Path, tmp_path: Path, edge: Edge) -> None:
    path = tmp_path / "board.toml"
    path.write_text((data_folder("profiles") / "raspberry-pi-5-8gb.toml").read_text(encoding="utf-8"), encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    ended = edge("profile", str(artifact), *QUICK, "--json", "--save", str(path))
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert path.read_text(encoding="utf-8").startswith(before.rstrip("\n"))
    found = load_device(path).measured[-1]
    assert found.artifact == said["subject"]["manifest_sha256"] and found.target == said["subject"]["target"]
    assert found.figures["decode_8_tokens_s"] == pytest.approx(said["decode"][0]["rate"]["median"], rel=1e-3)
    assert {"load_cold_s", "load_warm_s", "peak_bytes", "ttft_16_s", "bandwidth_bytes_s"} <= found.figures.keys()
    assert found.versions["edgekit"] and "profile" in found.command
    assert edge("profile", str(artifact), *QUICK, "--save", "no-such-board").code == 4, "before anything is measured"


def test_mann_whitney_is_scipy_s() -> None:
    """p of scipy 1.17's stats.mannwhitneyu (method "exact", and "asymptotic" for many), computed apart and written down here."""
    assert statistics.mann_whitney([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(0.007936507936507936)
    assert statistics.mann_whitney([1.1, 2.5, 3.3, 4.0], [2.0, 3.1, 5.2, 6.1, 7.0]) == pytest.approx(0.2857142857142857)
    assert statistics.mann_whitney([1, 1, 1], [1, 1, 1]) == 1
    assert statistics.mann_whitney(list(range(20)), list(range(3, 23))) == pytest.approx(0.13650248074290677, rel=1e-9)
    assert statistics.mann_whitney([5.0] * 10, [5.0] * 10) == 1
    assert statistics.least_p(5, 5) < 0.01 < 0.05 < statistics.least_p(3, 3)


def test_quantiles_are_samples() -> None:
    values = [float(v) for v in range(1, 101)]
    assert [statistics.quantile(values, part) for part in (0.5, 0.95, 0.99, 1)] == [50, 95, 99, 100]
    assert statistics.quantile([3.0], 0.99) == 3.0


def test_units_of_figures() -> None:
    assert [figures.shown(*given) for given in ((0.0123, "s"), (2.5, "s"), (3.2e9, "B"), (1234.5, "tok/s"), (0.5, "J"))] == [  # type: ignore[arg-type]
        "12.3 ms", "2.5 s", "3.2 GB", "1,234 tok/s", "0.5 J",
    ]  # fmt: skip

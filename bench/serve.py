"""Puts ``edge serve`` under load: hostile requests, many clients at once, clients that leave.

    python bench/serve.py --out bench/results/serve.json

Everything runs on this machine's loopback address. Raises AssertionError for an answer lost, mixed or cut, a 5xx, work left running.
"""

import argparse
import asyncio
import collections
import http.client
import itertools
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "tests"), str(ROOT / "bench")]

import openai  # noqa: E402

import edgekit  # noqa: E402
from measure import status_bytes  # noqa: E402
from serving import Served, serving  # noqa: E402
from tiny_phi import exam  # noqa: E402

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SETTLE = 60.0
"""Seconds in which a server has to be idle after its last client has left."""


@dataclass(frozen=True)
class Question:
    messages: list[dict[str, str]]
    answer: str


def questions(artifact: Path, count: int) -> list[Question]:
    """Prompts, most of them short, some on either side of the LongRoPE switch, and what the runtime, asked by itself, answers greedily."""
    with edgekit.load(artifact) as runtime:
        found = exam.prompts(max(1, count // 5), lambda messages: len(runtime.tokenizer.encode(runtime.render(messages))), seed=3)
        chosen = list(itertools.islice(found, count))
        return [Question(list(p.messages), runtime.complete(p.messages, max_tokens=60).text) for p in chosen]


def figures(served: Served) -> dict[str, float]:
    """What /metrics says."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {name: float(value) for name, value in re.findall(r"(?m)^(edge_\S+) (\S+)$", text)}


def fuzz(artifact: Path, cases: int, phases: str = "coverage,fuzzing") -> dict[str, Any]:
    """Schemathesis, until it has made at least ``cases`` requests. Raises AssertionError for each failure it reports."""
    made, runs, statuses = 0, 0, collections.Counter[str]()
    with tempfile.TemporaryDirectory() as folder, serving(artifact, "--max-tokens", "8") as served:
        while made < cases:
            runs += 1
            report = Path(folder) / f"{runs}.json"
            command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json", "--phases", phases]
            command += ["--mode", "all", "--max-examples", str(max(1, cases // 12)), "--seed", str(runs), "--checks", CHECKS, "--no-color"]
            command += ["--suppress-health-check", "all", "--report", "json", "--report-json-path", str(report)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
            found = re.search(r"([\d,]+) generated", done.stdout)
            assert found is not None, done.stdout[-3000:]
            made += int(found[1].replace(",", ""))
        for name, count in figures(served).items():
            if status := re.match(r'edge_requests_total\{.*status="(\w+)"', name):
                statuses[status[1]] += int(count)
        settle(served)
        assert served.end() == 0
    assert not [status for status in statuses if status.startswith("5")], statuses
    return {"cases": made, "answers_by_status": dict(sorted(statuses.items())), "server_errors": 0}


async def _client(
    number: int, client: openai.AsyncOpenAI, asked: list[Question], until: float, tally: "collections.Counter[str]", waits: list[float]
) -> None:
    """Asks one question after the other, every other one streamed, and compares each answer."""
    chance = random.Random(number)
    for turn in itertools.count():
        question, began = chance.choice(asked), time.monotonic()
        common: dict[str, Any] = {"model": "tiny-phi", "messages": question.messages, "temperature": 0, "max_tokens": 60}
        if turn % 2:
            pieces = []
            reason = None
            async for chunk in await client.chat.completions.create(stream=True, **common):
                pieces.append(chunk.choices[0].delta.content or "")
                reason = chunk.choices[0].finish_reason or reason
            text = "".join(pieces)
        else:
            whole = await client.chat.completions.create(**common)
            text, reason = whole.choices[0].message.content or "", whole.choices[0].finish_reason
        waits.append(time.monotonic() - began)
        tally["streamed" if turn % 2 else "whole"] += 1
        tally["wrong"] += text != question.answer
        tally["without an end"] += reason is None
        if text != question.answer:
            print(f"wrong: {question.messages[-1]} {text!r} instead of {question.answer!r}", file=sys.stderr)
        if time.monotonic() >= until:
            return


def soak(artifact: Path, asked: list[Question], clients: int, seconds: float, queue: int) -> dict[str, Any]:
    """Official clients, each asking again as soon as it has its answer. Where the queue is shorter than they are many, they are told to
    come back and do."""

    async def all_of_them(served: Served) -> tuple["collections.Counter[str]", list[float]]:
        tally, waits = collections.Counter[str](), list[float]()
        until = time.monotonic() + seconds
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=1000, timeout=300) as client:
            await asyncio.gather(*(_client(i, client, asked, until, tally, waits) for i in range(clients)))
        return tally, waits

    with serving(artifact, "--queue", str(queue), "--threads", "1") as served:
        tally, waits = asyncio.run(all_of_them(served))
        after = settle(served)
        assert served.end() == 0
    answers = tally["streamed"] + tally["whole"]
    good = int(sum(count for name, count in after.items() if name.startswith("edge_requests_total") and 'status="200"' in name))
    refused = int(sum(count for name, count in after.items() if name.startswith("edge_requests_total") and 'status="429"' in name))
    assert not tally["wrong"] and not tally["without an end"], tally
    assert good == answers, f"the server gave {good} answers, the clients got {answers}"
    return {
        "clients": clients,
        "seconds": seconds,
        "queue": queue,
        "answers": answers,
        "streamed": tally["streamed"],
        "lost_mixed_or_cut": 0,
        "told_to_come_back": refused,
        "median_seconds": round(statistics.median(waits), 2),
        "greatest_seconds": round(max(waits), 2),
    }


def settle(served: Served) -> dict[str, float]:
    """Waits until nothing runs or waits any more, and looks a second later whether that holds. Raises AssertionError after SETTLE."""
    until = time.monotonic() + SETTLE
    while (found := figures(served))["edge_requests_running"] or found["edge_requests_waiting"]:
        assert time.monotonic() < until, f"work is left running: {found}"
        time.sleep(0.05)
    time.sleep(1)
    again = figures(served)
    assert not again["edge_requests_running"] and not again["edge_requests_waiting"], again
    assert again["edge_completion_tokens_total"] == found["edge_completion_tokens_total"]
    return again


def leave(served: Served, chance: random.Random, stops: list[int], crowd: int) -> None:
    """``crowd`` clients ask for long answers at once and leave at random moments: of a stream, of a whole answer, in the queue, in the
    middle of sending."""
    held = []
    for _ in range(crowd):
        body = {"model": "tiny-phi", "messages": [{"role": "user", "content": "count " + "one two " * chance.randrange(1, 60)}]}
        body |= {"temperature": 0, "stream": chance.random() < 0.5, "max_tokens": 1500, "logit_bias": {str(token): -100 for token in stops}}
        raw = json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(raw)))
        connection.endheaders(raw if chance.random() < 0.9 else raw[: len(raw) // 2])
        held.append(connection)
    chance.shuffle(held)
    for connection in held:
        time.sleep(chance.uniform(0, 0.1))
        connection.close()


def disconnects(artifact: Path, count: int, crowd: int = 10) -> dict[str, Any]:
    """``count`` clients leave, after as many that warm the server up; then nothing is at work, and nothing has been kept."""
    chance = random.Random(5)
    stops = list(edgekit.load_artifact(artifact).manifest.tokens.stop)
    with serving(artifact) as served:
        states = []
        for _ in range(3):
            for _ in range(count // crowd):
                leave(served, chance, stops, crowd)
            found = settle(served)
            states.append((_state(served), found))
        end = time.monotonic() + 30  # a connection that was left in the middle of a body may take a moment to close
        while states[2][0]["descriptors"] != states[1][0]["descriptors"] and time.monotonic() < end:
            time.sleep(0.1)
            states[2] = (_state(served), states[2][1])
        assert served.end() == 0
    (_, _), (before, first), (after, last) = states
    left = int(sum(last[key] - first.get(key, 0) for key in last if key.startswith("edge_requests_total") and 'status="gone"' in key))
    streams = int(sum(last[key] - first.get(key, 0) for key in last if key.startswith("edge_requests_total") and 'status="200"' in key))
    grown = after["anonymous"] - before["anonymous"]
    assert after["threads"] == before["threads"] and after["descriptors"] == before["descriptors"], (before, after)
    assert grown < 4 << 20, f"memory grew by {grown:,} bytes"
    return {
        "disconnects": count,
        "noticed": left,
        "complete_before": streams,
        "running_after": 0,
        "waiting_after": 0,
        "anonymous_bytes_before": before["anonymous"],
        "anonymous_bytes_after": after["anonymous"],
        "threads": after["threads"],
        "descriptors": after["descriptors"],
    }


def _state(served: Served) -> dict[str, int]:
    folder = Path(f"/proc/{served.process.pid}")
    return {
        "anonymous": status_bytes("RssAnon", folder / "status"),
        "threads": len(list((folder / "task").iterdir())),
        "descriptors": _least_descriptors(folder / "fd"),
    }


def _least_descriptors(folder: Path) -> int:
    """Over two seconds: the connection that asked for figures may still be closing."""
    counts = []
    for _ in range(20):
        counts.append(len(list(folder.iterdir())))
        time.sleep(0.1)
    return min(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--disconnects", type=int, default=200)
    parser.add_argument("--part", action="append", choices=["soak", "disconnects", "fuzz"], help="only this; may be repeated")
    parser.add_argument("--out", type=Path, help="what is there of other parts stays")
    arguments = parser.parse_args()
    parts = arguments.part or ["soak", "disconnects", "fuzz"]
    start = {"load_average_at_start": round(os.getloadavg()[0], 1)}
    report: dict[str, Any] = {}
    if arguments.out is not None and arguments.out.exists():
        report = json.loads(arguments.out.read_text(encoding="utf-8"))
    report |= {
        "command": f"python bench/serve.py --cases {arguments.cases} --clients {arguments.clients} --seconds {arguments.seconds:g} "
        f"--disconnects {arguments.disconnects}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("openai", "schemathesis", "starlette", "uvicorn", "onnxruntime")}
        | {"python": platform.python_version()},
    }
    with tempfile.TemporaryDirectory(prefix="edgekit-serve-") as scratch:
        artifact = Path(scratch) / "tiny-phi"
        edgekit.build("tiny-phi", target="cpu", output=artifact)
        if "soak" in parts:
            asked = questions(artifact, 96)
            report["soak"] = soak(artifact, asked, arguments.clients, arguments.seconds, queue=arguments.clients) | start
            report["soak_short_queue"] = soak(artifact, asked, arguments.clients, arguments.seconds, queue=8) | start
        if "disconnects" in parts:
            report["disconnects"] = disconnects(artifact, arguments.disconnects) | start
        if "fuzz" in parts:
            report["fuzz"] = fuzz(artifact, arguments.cases) | start
    print(json.dumps(report, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

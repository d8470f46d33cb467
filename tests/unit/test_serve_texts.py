"""A server whose tokenizer is given a long word to chew on: it answers others meanwhile, and ends that in time."""

import http.client
import json
import select
import time
from pathlib import Path
from typing import Any

import pytest

import edgekit
from checkpoints import make_checkpoint
from serving import Served, serving
from tiny_artifact import write_target

pytest.importorskip("uvicorn")
WORD = "a" * 4_000_000


def built(folder: Path, normalizer: object) -> Path:
    checkpoint = make_checkpoint(folder / "model", "llama")
    path = checkpoint / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | {"normalizer": normalizer}), encoding="utf-8")
    edgekit.build(checkpoint, target=write_target(folder / "test.toml", "null"), output=folder / "artifact")
    return folder / "artifact"


def asked(served: Served, content: str) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=300)
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def answer(connection: http.client.HTTPConnection) -> tuple[int, Any]:
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def healthy(served: Served) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=300)
    connection.request("GET", "/health")
    return connection.getresponse().status == 200


def test_others_are_answered_while_a_text_is_encoded_and_the_time_limit_ends_it(tmp_path: Path) -> None:
    """This vocabulary's file hides how much text a token can stand for: a regular expression changes it first."""
    artifact = built(tmp_path, {"type": "Replace", "pattern": {"Regex": "q+"}, "content": "q"})
    with serving(artifact, "--model-name", "m", "--timeout", "3", "--max-body", "8000000") as served:
        long = asked(served, WORD)
        answers = 0
        while not select.select([long.sock], [], [], 0)[0]:
            answers += healthy(served)
            time.sleep(0.01)
        assert answers >= 5, "all before the long one ended"
        status, said = answer(long)
        assert (status, said["error"]["code"]) == (408, "time_limit")
        assert answer(asked(served, "hi"))[0] == 200, "its process is replaced, and the worker is free"
        assert served.end() == 0


def test_what_cannot_fit_is_refused_at_once(tmp_path: Path) -> None:
    with serving(built(tmp_path, None), "--model-name", "m", "--max-body", "8000000") as served:
        status, said = answer(asked(served, WORD))
        assert status == 400
        assert "at least" in said["error"]["message"]
        assert answer(asked(served, "hi"))[0] == 200

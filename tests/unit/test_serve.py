"""``edge serve`` as OpenAI's own client sees it, and what it does with requests that no client of OpenAI's would send."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgekit
from serving import Served, serving

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
ROOT = Path(__file__).parents[2]
LIGHT = [{"role": "user", "content": "turn on the kitchen light"}]
KEY = "s3cret"
TOOL_TEMPLATE = (
    "{% if tools %}<|system|>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}Answer with <tool_call>.<|end|>\n{% endif %}"
)
SET = {
    "type": "function",
    "function": {
        "name": "set_device",
        "description": "Sets a device.",
        "parameters": {
            "type": "object",
            "properties": {"device": {"$ref": "#/$defs/device"}, "state": {"enum": ["on", "off"]}},
            "required": ["device", "state"],
            "additionalProperties": False,
            "$defs": {"device": {"enum": ["light", "heater"]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-phi, whose chat template takes tools here as Qwen's and Hermes' do."""
    folder = tmp_path_factory.mktemp("serve")
    shutil.copytree(ROOT / "toolkit/edgekit/tiny_phi", folder / "model")
    path = folder / "model" / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = TOOL_TEMPLATE + config["chat_template"]
    path.write_text(json.dumps(config), encoding="utf-8")
    edgekit.build(folder / "model", target="cpu", output=folder / "artifact")
    return folder / "artifact"


@pytest.fixture(scope="module")
def served(artifact: Path) -> Iterator[Served]:
    with serving(artifact, "--model-name", "tiny", "--max-body", "20000", environment={"EDGE_API_KEY": KEY}) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def expected(artifact: Path) -> str:
    with edgekit.load(artifact) as runtime:
        return runtime.complete(LIGHT, max_tokens=60).text


def ask(client: Any, **more: Any) -> Any:
    given: dict[str, Any] = {"model": "tiny", "messages": LIGHT, "temperature": 0, "max_tokens": 60, **more}
    return client.chat.completions.create(**given)


def test_chat_answers_as_the_runtime_does(client: Any, expected: str) -> None:
    answer = ask(client)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 10
    assert answer.system_fingerprint.startswith("edge-")


def test_the_prompt_is_not_computed_twice(client: Any) -> None:
    ask(client)
    usage = ask(client).usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_a_stream_adds_up_to_the_answer(client: Any, expected: str) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 1
    assert len({c.id for c in chunks}) == 1


def test_stop_strings_and_limits(client: Any, expected: str) -> None:
    assert ask(client, stop=["light", '":']).choices[0].message.content == expected[: min(expected.find(s) for s in ("light", '":'))]
    cut = ask(client, max_tokens=None, max_completion_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)
    assert expected.startswith(cut.choices[0].message.content)


def test_several_choices_and_seeds(client: Any) -> None:
    warm = {"temperature": 2.0, "n": 3, "seed": 5, "max_tokens": 12}
    first, again = ask(client, **warm), ask(client, **warm)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    streamed = ["", "", ""]
    for chunk in ask(client, stream=True, **warm):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    assert first.usage.prompt_tokens == ask(client).usage.prompt_tokens


def test_log_probabilities(client: Any, expected: str) -> None:
    found = ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in found).decode().strip() == expected.strip()
    for token in found:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob, "greedy takes the likeliest"
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
    streamed = [log for c in ask(client, logprobs=True, stream=True) if c.choices[0].logprobs for log in c.choices[0].logprobs.content]
    assert [log.token for log in streamed] == [log.token for log in found]
    assert ask(client).choices[0].logprobs is None


def test_completions(client: Any, artifact: Path) -> None:
    with edgekit.load(artifact) as runtime:
        ids = runtime.tokenizer.encode(runtime.render(LIGHT))
        texts = ["".join(step.text for step in runtime.generate(prompt, max_tokens=8)) for prompt in ("12 plus", "the light is")]
    given: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    answer = client.completions.create(prompt=["12 plus", "the light is"], logprobs=2, **given)
    assert [choice.text for choice in answer.choices] == texts
    logs = answer.choices[0].logprobs
    assert len(logs.tokens) == len(logs.token_logprobs) == len(logs.top_logprobs) == len(logs.text_offset)
    assert client.completions.create(prompt="12 plus", echo=True, **given).choices[0].text == "12 plus" + texts[0]
    assert client.completions.create(prompt=ids, **given).usage.prompt_tokens == len(ids)
    chunks = list(client.completions.create(prompt="12 plus", stream=True, **given))
    assert "".join(chunk.choices[0].text for chunk in chunks) == texts[0]


def test_answers_under_a_json_schema(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "n": {"type": "integer"}}, "required": ["a", "n"]}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {**schema, "additionalProperties": False}, "strict": True}}
    found = json.loads(ask(client, response_format=form).choices[0].message.content)
    assert found["a"] in ("x", "y") and type(found["n"]) is int and len(found) == 2
    assert isinstance(json.loads(ask(client, response_format={"type": "json_object"}).choices[0].message.content), dict)
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        ask(client, response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "array", "uniqueItems": True}}})


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "set_device"}}])
def test_a_tool_that_has_to_be_called_is(client: Any, choice: Any) -> None:
    answer = ask(client, tools=[SET, CLOCK], tool_choice=choice, parallel_tool_calls=False)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content is None
    (call,) = message.tool_calls
    if call.function.name == "set_device":
        arguments = json.loads(call.function.arguments)
        assert arguments["device"] in ("light", "heater") and arguments["state"] in ("on", "off")
    else:
        assert choice == "required" and json.loads(call.function.arguments) == {}
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    assert ask(client, messages=[*LIGHT, message, result], tools=[SET, CLOCK], tool_choice="none").choices[0].message.content


def test_a_streamed_tool_call_adds_up(client: Any) -> None:
    chunks = list(ask(client, tools=[SET], tool_choice="required", parallel_tool_calls=False, stream=True))
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert (call.index, call.function.name) == (0, "set_device")
    assert json.loads(call.function.arguments)["state"] in ("on", "off")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_penalties_and_biases_reach_the_sampler(client: Any, artifact: Path) -> None:
    with edgekit.load(artifact) as runtime:
        token = runtime.tokenizer.encode(runtime.render(LIGHT) + "a")[-1]
    found = ask(client, logit_bias={str(token): 100}, max_tokens=4).choices[0].message.content
    assert found.replace(" ", "") == "aaaa"
    penalized = ask(client, logit_bias={str(token): 20}, frequency_penalty=2, presence_penalty=2, max_tokens=40)
    assert penalized.choices[0].message.content.replace(" ", "") != "a" * 40


@pytest.mark.parametrize(
    ("more", "kind", "param", "code"),
    [
        ({"model": "gpt-4"}, "NotFoundError", "model", "model_not_found"),
        ({"messages": []}, "BadRequestError", "messages", None),
        ({"messages": [{"role": "user", "content": "light " * 2100}]}, "BadRequestError", "messages", "context_length_exceeded"),
        ({"temperature": 3}, "BadRequestError", "temperature", None),
        ({"n": 17}, "BadRequestError", "n", None),
        ({"stop": [""]}, "BadRequestError", "stop", None),
        ({"top_logprobs": 2}, "BadRequestError", "top_logprobs", None),
        ({"extra_body": {"colour": 1}}, "BadRequestError", "colour", None),
        ({"messages": [{"role": "user", "content": None}]}, "BadRequestError", "messages[0]", None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "BadRequestError", None, None),
        ({"tools": [SET], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "BadRequestError", "tool_choice", None),
        ({"logit_bias": {"99999": 1}}, "BadRequestError", "logit_bias", None),
        ({"top_p": 0}, "BadRequestError", "top_p", None),
    ],
)
def test_errors_have_openais_shape(client: Any, more: dict[str, Any], kind: str, param: str | None, code: str | None) -> None:
    with pytest.raises(getattr(openai, kind)) as caught:
        ask(client, **more)
    assert caught.value.body["message"]
    assert caught.value.code == code
    if param is not None:
        assert caught.value.param == param


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def send(served: Served, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Authorization": f"Bearer {KEY}", **named})
    response = connection.getresponse()
    found = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return found


CHAT = "/v1/chat/completions"
JSON = "application/json"


def test_the_key_is_asked_for(served: Served) -> None:
    for given in ("", "Bearer", "Bearer s3cre", "Bearer s3crets", f"Basic {KEY}", "Bearer ü"):
        status, headers, body = send(served, "GET", "/v1/models", Authorization=given)
        assert (status, headers["www-authenticate"], json.loads(body)["error"]["code"]) == (401, "Bearer", "invalid_api_key")
    assert send(served, "GET", "/metrics", Authorization="")[0] == 401
    for path in ("/", "/health", "/openapi.json"):
        assert send(served, "GET", path, Authorization="")[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "a@localhost", "localhost/x", "[::1", 'x"y']
)
def test_a_name_it_does_not_know_is_refused(served: Served, host: str) -> None:
    assert send(served, "GET", "/health", Host=host)[0] in (400, 403)


def test_pages_of_other_sites_are_refused(served: Served) -> None:
    own = f"127.0.0.1:{served.port}"
    assert send(served, "GET", "/v1/models", Origin=f"http://{own}")[0] == 200
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{served.port + 1}", f"file://{own}"):
        status, headers, _ = send(served, "GET", "/v1/models", Origin=origin)
        assert status == 403 and not [name for name in headers if name.startswith("access-control")]
    assert send(served, "GET", "/health", Host=f"localhost:{served.port}")[0] == 200
    assert send(served, "OPTIONS", CHAT, Origin=f"http://{own}")[0] == 405


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", JSON, 400),
        (b"{", JSON, 400),
        (b"[]", JSON, 400),
        (b"\xff", JSON, 400),
        (b"null", JSON, 400),
        (b"NaN", JSON, 400),
        (b"1e999", JSON, 400),
        (b"9" * 5000, JSON, 400),
        (b"[" * 9000, JSON, 400),
        (b'{"a":' * 3000, JSON, 400),
        (b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}', JSON, 400),
        (b"x" * 20001, JSON, 413),
        (b"{}", "text/plain", 415),
        (b"{}", "application/x-www-form-urlencoded", 415),
    ],
)
def test_bodies_that_are_no_request(served: Served, body: bytes, kind: str, status: int) -> None:
    found, headers, answer = send(served, "POST", CHAT, body, Content_Type=kind)
    assert (found, headers["content-type"]) == (status, JSON)
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


def test_a_body_without_a_length_is_limited_too(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as link:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"Content-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
        link.sendall(head.encode() + (b"2711\r\n" + b" " * 10001 + b"\r\n") * 2)
        assert link.recv(1000).startswith(b"HTTP/1.1 413")


def test_unknown_paths_and_methods(served: Served) -> None:
    for method, path, status in (("GET", "/nope", 404), ("GET", CHAT, 405), ("PUT", "/health", 405), ("POST", "/", 405)):
        found, _, body = send(served, method, path)
        assert found == status and json.loads(body)["error"]["message"]


def test_the_page_has_nothing_from_elsewhere(served: Served) -> None:
    _, headers, body = send(served, "GET", "/")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    text = body.decode()
    assert not re.findall(r"https?://|<(?:script|link|img|iframe)[^>]+src=", text)
    assert not re.search(r"innerHTML|\bon\w+=|style=", text), "what a model says is text, and the policy allows no inline handlers"


def test_the_interface_is_described(served: Served) -> None:
    described = json.loads(send(served, "GET", "/openapi.json")[2])
    chat = described["paths"][CHAT]["post"]["requestBody"]["content"][JSON]["schema"]["properties"]
    assert chat["model"] == {"const": "tiny"}
    assert {"messages", "tools", "response_format", "logprobs", "top_logprobs", "seed"} <= set(chat)


def running(served: Served) -> dict[str, float]:
    text = send(served, "GET", "/metrics")[2].decode()
    return {name: float(value) for name, value in re.findall(r"(?m)^(edge_\w+) (\S+)$", text)}


def wait_for(done: Any) -> None:
    until = time.monotonic() + 300
    while not done():
        assert time.monotonic() < until
        time.sleep(0.02)


def long_request(served: Served, artifact: Path, *, stream: bool) -> http.client.HTTPConnection:
    """Asks for an answer that fills the context."""
    bias = {str(token): -100 for token in edgekit.load_artifact(artifact).manifest.tokens.stop}
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=300)
    body = {"model": "tiny", "messages": LIGHT, "stream": stream, "temperature": 0, "logit_bias": bias}
    connection.request("POST", CHAT, json.dumps(body), {"Authorization": f"Bearer {KEY}", "Content-Type": JSON})
    return connection


def test_a_full_queue_says_when_to_come_back_and_who_leaves_makes_room(artifact: Path) -> None:
    with serving(artifact, "--model-name", "tiny", "--queue", "2", environment={"EDGE_API_KEY": KEY}) as served:
        held = [long_request(served, artifact, stream=i % 2 == 0) for i in range(1)]
        wait_for(lambda: running(served)["edge_requests_running"])
        held += [long_request(served, artifact, stream=i % 2 == 0) for i in range(2)]
        wait_for(lambda: running(served)["edge_requests_waiting"] == 2)
        body = json.dumps({"model": "tiny", "messages": LIGHT}).encode()
        status, headers, answer = send(served, "POST", CHAT, body, Content_Type=JSON)
        assert (status, json.loads(answer)["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
        held[1].close()
        wait_for(lambda: running(served)["edge_requests_waiting"] == 1)
        for connection in (held[0], held[2]):
            connection.close()
        wait_for(lambda: not running(served)["edge_requests_running"])
        tokens = running(served)["edge_completion_tokens_total"]
        assert tokens < 1900, "the first was left in the middle, the others were never begun"
        assert send(served, "POST", CHAT, body, Content_Type=JSON)[0] == 200


def test_a_signal_lets_answers_end(artifact: Path) -> None:
    with serving(artifact, "--model-name", "tiny", "--drain", "500", environment={"EDGE_API_KEY": KEY}) as served:
        connection = long_request(served, artifact, stream=True)
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        served.process.terminate()
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert served.process.wait(300) == 0


def test_a_signal_does_not_wait_for_ever(artifact: Path) -> None:
    with serving(artifact, "--model-name", "tiny", "--drain", "1", "--timeout", "600", environment={"EDGE_API_KEY": KEY}) as served:
        held = [long_request(served, artifact, stream=False) for _ in range(12)]
        wait_for(lambda: running(served)["edge_requests_waiting"] == 11)
        assert served.end() == 0
        for connection in held:
            connection.close()


def test_what_takes_too_long_is_told(artifact: Path) -> None:
    with serving(artifact, "--model-name", "tiny", "--timeout", "1", environment={"EDGE_API_KEY": KEY}) as served:
        held = [long_request(served, artifact, stream=False) for _ in range(4)]
        found = [connection.getresponse() for connection in held]
        late = [json.loads(response.read())["error"]["code"] for response in found if response.status == 408]
        assert late and set(late) == {"time_limit"}
        assert {response.status for response in found} <= {200, 408}
        wait_for(lambda: not running(served)["edge_requests_running"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "reachable from other machines"),
        (["--host", "example.invalid", "--no-api-key"], "cannot listen"),
        (["--api-key-file", "/nonexistent"], "cannot be read"),
    ],
)
def test_it_does_not_start(artifact: Path, options: list[str], message: str) -> None:
    command = [sys.executable, "-m", "edgekit.cli", "serve", str(artifact), "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "toolkit")}, timeout=60, check=False)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_an_address_in_use_is_said(artifact: Path, served: Served) -> None:
    command = [sys.executable, "-m", "edgekit.cli", "serve", str(artifact), "--port", str(served.port)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "toolkit")}, timeout=60, check=False)
    assert (done.returncode, "choose another" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("option", ["--forget", None])
def test_what_one_client_asked_is_told_to_the_next_unless_it_is_forgotten(artifact: Path, option: str | None) -> None:
    with serving(artifact, "--model-name", "tiny", *([option] if option else []), environment={"EDGE_API_KEY": KEY}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0)
        answers = [ask(client, max_tokens=4) for _ in range(2)]
        cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in answers]
        assert cached[0] == 0 and (cached[1] == 0) == (option is not None)
        assert answers[0].choices[0].message.content == answers[1].choices[0].message.content

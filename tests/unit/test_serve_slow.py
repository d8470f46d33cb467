"""Clients that read nothing or say nothing, and bodies made to be slow to read: they hold up neither others nor the server's end."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edgekit
from serving import serving

uvicorn = pytest.importorskip("uvicorn")
from edgekit.server.app import MOST, _values, make_app  # noqa: E402
from edgekit.server.connection import connections  # noqa: E402
from edgekit.server.settings import Limits, Settings  # noqa: E402

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
IDLE = 1.0
PIECE = b"x" * 65536


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slow") / "artifact"
    edgekit.build("tiny-phi", target="cpu", output=folder, verify=False)
    return folder


@contextlib.contextmanager
def running(app: Callable[..., object], idle: float) -> Iterator[uvicorn.Server]:
    """uvicorn on a thread, at a free port, without edgekit's application."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", http=connections(idle), timeout_keep_alive=500))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def connected(server: uvicorn.Server) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.connect(server.servers[0].sockets[0].getsockname())
    return found


def until(done: Callable[[], bool]) -> None:
    """Waits as long as it takes; a test that never comes to its end has failed."""
    while not done():
        time.sleep(0.02)


def large(pieces: int):
    async def app(scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(pieces):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


@pytest.mark.parametrize("pieces", [1000, 40])
def test_a_client_that_never_reads_is_cut(pieces: int) -> None:
    """In the middle of an answer that waits to be taken, and after one that is written as far as the server goes."""
    with running(large(pieces), IDLE) as server, connected(server) as client:
        client.sendall(GET)
        until(lambda: bool(server.server_state.connections))
        until(lambda: not server.server_state.connections and not server.server_state.tasks)


def test_a_client_that_reads_slowly_gets_everything() -> None:
    with running(large(100), 5.0) as server, connected(server) as client:
        client.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        got = 0
        while piece := client.recv(65536):
            got += len(piece)
            time.sleep(0.001)
        assert got > 100 * len(PIECE)


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: l"])
def test_a_client_that_says_nothing_is_closed(said: bytes) -> None:
    with running(large(1), IDLE) as server, connected(server) as client:
        client.sendall(said)
        assert client.recv(10) == b""
        until(lambda: not server.server_state.connections)


def test_an_answer_that_takes_long_is_waited_for() -> None:
    """A client that waits for the model says nothing either."""

    async def app(scope, receive, send) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(2 * IDLE)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    with running(app, IDLE) as server, connected(server) as client:
        client.sendall(GET)
        assert client.recv(100).startswith(b"HTTP/1.1 204")


def test_the_servers_end_does_not_wait_for_a_client_that_never_reads(artifact: Path) -> None:
    with serving(artifact, "--drain", "500") as served, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", served.port))
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100_000):  # requests in a row: what answers them fills every buffer on the way
                client.send(GET)
        assert served.end() == 0
        assert "Traceback" not in served.log.read_text(encoding="utf-8")


def test_a_stream_that_nobody_reads_frees_its_place(artifact: Path) -> None:
    with edgekit.load(artifact) as runtime:
        app = make_app(runtime, Settings("tiny", limits=Limits(idle=IDLE)), None, "print")
        with running(app, IDLE) as server, connected(server) as client:
            asked = {"messages": [{"role": "user", "content": "x"}], "model": "tiny", "n": 16, "stream": True}
            body = json.dumps({**asked, "max_tokens": 1900, "logprobs": True, "top_logprobs": 20}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            client.sendall(head.encode() + b"\r\n\r\n" + body)
            until(lambda: bool(server.server_state.connections))
            until(lambda: not server.server_state.connections and not server.server_state.tasks)
            with connected(server) as other:  # its turn has come
                body = json.dumps({**asked, "n": 1, "stream": False, "max_tokens": 2}).encode()
                head = head.rpartition(" ")[0] + f" {len(body)}\r\n\r\n"
                other.sendall(head.encode() + body)
                assert other.recv(100).startswith(b"HTTP/1.1 200")


# Bodies


@pytest.mark.parametrize(
    "text",
    [
        "[" + "[]," * 1_300_000 + "[]]",
        "[" * 4_000_000,
        '{"a":' * 500_000,
        "[" + "0," * 2_000_000 + "0]",
        "[" + '"",' * 1_300_000 + '""]',
        "{" + '"a":1,' * 600_000 + '"b":2}',
        '["\\\\",' + "[]," * 1_300_000 + "[]]",
        '"' * 4_000_000,
    ],
    ids=lambda text: text[:6],
)
def test_bodies_of_very_many_values_are_counted_before_they_are_read(text: str) -> None:
    assert _values(text.encode()) > MOST


@pytest.mark.parametrize(
    "data",
    [
        {"messages": [{"role": "user", "content": "1,2,[3]{4}," * 300_000}]},
        {"messages": [{"role": "user", "content": 'a "quoted", \\ [text] ' * 100_000}]},
        {"prompt": list(range(131_072))},
        {"messages": [{"role": "user", "content": "x"}] * 1024},
    ],
)
def test_what_a_client_means_is_not_refused(data: object) -> None:
    assert _values(json.dumps(data).encode()) <= MOST
    assert _values(json.dumps(data, indent=1, ensure_ascii=False).encode()) <= MOST


def test_what_is_counted_is_what_is_there() -> None:
    assert _values(b"[]") == 1
    assert _values(rb'["a\"[,", "\\", {"b,": [1, 2]}]') == 6


def test_such_a_body_is_answered(artifact: Path) -> None:
    body = b'{"messages":[' + b"[]," * 1_000_000 + b"[]]}"
    with serving(artifact) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 413 and b"the body holds more than 300,000 values" in response.read()
        connection.close()

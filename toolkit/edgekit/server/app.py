"""The routes: what is asked over HTTP, and how its answer gets back."""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.runtime import Runtime
from edgekit.server import openapi, page
from edgekit.server.answering import Part, Parts, Shared, Usage, Vocabulary, chat_asked, chat_parts, text_work
from edgekit.server.bodies import DONE, ChatShape, Document, Origin, Shape, TextShape, encode, event
from edgekit.server.calling import tool_parts
from edgekit.server.guard import Guard, answer_problem
from edgekit.server.messages import template_messages
from edgekit.server.metrics import Metrics
from edgekit.server.problems import Problem, Refused, refuse, too_late
from edgekit.server.requests import read_chat, read_json, read_text
from edgekit.server.settings import Settings
from edgekit.server.tools import ToolSyntax
from edgekit.server.worker import Ticket, Worker

Event = Part | Usage
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
"""The second asks proxies not to gather events."""
MOST = 300_000
"""Values of a body: twice what a prompt of 131,072 token ids has."""


@dataclass(frozen=True)
class Job:
    """What a body asked for: the work, the shape of its answer, and whether it is streamed and then tells its usage."""

    work: Callable[[Runtime], Parts]
    shape: Shape
    stream: bool
    usage: bool


class Gone(Exception):
    """The client left, or takes nothing any more."""


@dataclass(frozen=True)
class Server:
    """What the routes share. print: of the artifact (see bodies.Origin). syntax: of the model's tool calls, None for none known."""

    settings: Settings
    worker: Worker[Event]
    metrics: Metrics
    shared: Shared
    syntax: ToolSyntax | None
    context: int
    print: str
    started: int

    def chat(self, data: object) -> Job:
        """Raises Refused."""
        request = read_chat(data, self.settings.model, self.settings.limits)
        asked = chat_asked(request, self.shared)
        messages = template_messages(request.messages)
        work: Callable[[Runtime], Parts] = functools.partial(chat_parts, asked, messages)
        if request.tools and request.tool_choice != "none":
            if self.syntax is None:
                problem = "this model's chat template takes no tools, or writes calls in a way that edgekit does not know"
                raise refuse(problem, param="tools", code="no_tools")
            work = functools.partial(tool_parts, asked, messages, request, self.syntax)
        origin = Origin(self.settings.model, self.print, "chatcmpl")
        shape = ChatShape(origin, usage=request.wants_usage, logs=bool(request.logprobs))
        return Job(work, shape, bool(request.stream), request.wants_usage)

    def text(self, data: object) -> Job:
        """Raises Refused."""
        request = read_text(data, self.settings.model, self.settings.limits)
        shape = TextShape(Origin(self.settings.model, self.print, "cmpl"), usage=request.wants_usage, logs=request.logprobs is not None)
        return Job(text_work(request, self.shared), shape, bool(request.stream), request.wants_usage)


def make_app(runtime: Runtime, settings: Settings, syntax: ToolSyntax | None, print_: str) -> ASGIApp:
    """The whole server as an ASGI application. Its worker lives until the application's shutdown; the runtime stays open."""
    worker: Worker[Event] = Worker(runtime, queue=settings.limits.queue, forget=settings.forget)
    metrics = Metrics(lambda: worker.waiting, lambda: float(worker.running))
    shared = Shared(Vocabulary(), metrics.used, settings.limits.tokens)
    server = Server(settings, worker, metrics, shared, syntax, runtime.context, print_, int(time.time()))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close)

    routes = [
        Route("/v1/chat/completions", Answering(server, "chat", server.chat), methods=["POST"]),
        Route("/v1/completions", Answering(server, "completions", server.text), methods=["POST"]),
        *_plain_routes(server),
    ]
    handlers = {Refused: _refused, HTTPException: _http_problem}
    return Guard(Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers), settings)  # type: ignore[arg-type]


def _plain_routes(server: Server) -> list[Route]:
    """Those that compute nothing."""
    name = server.settings.model
    card: Document = {
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "edgekit",
        "context_length": server.context,
    }
    described = openapi.document(name, server.settings.limits, server.context, key=server.settings.key is not None)

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != name:
            raise refuse("there is no such model here", param="model", code="model_not_found", status=404)
        return JSONResponse(card)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(_: Request) -> Response:
        return Response(server.metrics.text(), media_type=server.metrics.content_type)

    async def interface(_: Request) -> Response:
        return JSONResponse(described)

    async def chat_page(_: Request) -> Response:
        return Response(page.HTML, media_type="text/html; charset=utf-8", headers={"content-security-policy": page.POLICY})

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", interface, methods=["GET"]),
        Route("/", chat_page, methods=["GET"]),
    ]


class Answering:
    """One of the routes that compute, as an ASGI application: reads the body, queues the work, and sends what comes of it."""

    def __init__(self, server: Server, name: str, read: Callable[[object], Job]) -> None:
        self._server, self._name, self._read = server, name, read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), "500"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await asyncio.wait_for(send(message), self._server.settings.limits.idle)

        try:
            await self._answer(Headers(scope=scope), receive, counted, began)
        except Refused as refused:
            with suppress(TimeoutError, asyncio.TimeoutError):
                await answer_problem(refused.problem, counted)
        except (Gone, TimeoutError, asyncio.TimeoutError, asyncio.CancelledError) as error:
            self._server.metrics.gone.inc()
            status = "gone"
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._server.metrics.requests.labels(self._name, status).inc()
            self._server.metrics.whole.observe(time.monotonic() - began)

    async def _answer(self, headers: Headers, receive: Receive, send: Send, began: float) -> None:
        limits = self._server.settings.limits
        body = await _read_body(headers, receive, limits.body, limits.idle)
        # On a thread, as the loop has others to serve.
        job = await asyncio.to_thread(lambda: self._read(read_json(body)))
        ticket = self._server.worker.submit(job.work)
        gone = asyncio.create_task(_disconnected(receive))
        try:
            async with aclosing(_events(ticket, gone, limits.seconds, began)) as events:
                await (self._stream if job.stream else self._whole)(job, events, send, began)
        finally:
            self._server.worker.cancel(ticket)
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    async def _whole(self, job: Job, events: AsyncGenerator[Event, None], send: Send, began: float) -> None:
        parts: list[Part] = []
        async for found in events:
            if isinstance(found, Usage):
                await _send(send, encode(job.shape.whole(parts, found)), "application/json")
                return
            if not parts:
                self._server.metrics.first.observe(time.monotonic() - began)
            parts.append(found)

    async def _stream(self, job: Job, events: AsyncGenerator[Event, None], send: Send, began: float) -> None:
        """The response begins with the first part: what is refused before it has a status of its own; after it, an event tells."""
        started = False
        try:
            async for found in events:
                if not started:
                    await send({"type": "http.response.start", "status": 200, "headers": STREAM})
                    self._server.metrics.first.observe(time.monotonic() - began)
                    started = True
                if isinstance(found, Usage):
                    rest = event(job.shape.last(found)) + DONE if job.usage else DONE
                    await send({"type": "http.response.body", "body": rest, "more_body": False})
                    return
                if (chunk := job.shape.chunk(found)) is not None:
                    await send({"type": "http.response.body", "body": event(chunk), "more_body": True})
        except Refused as refused:
            if not started:
                raise
            await send({"type": "http.response.body", "body": event(refused.problem.document()), "more_body": False})


async def _events(ticket: Ticket[Event], gone: "asyncio.Task[None]", seconds: float, began: float) -> AsyncGenerator[Event, None]:
    """What comes of the ticket, until its end. Raises Refused (also for the time being over), Gone."""
    while True:
        getting = asyncio.create_task(ticket.events.get())
        try:
            left = began + seconds - time.monotonic()
            await asyncio.wait({getting, gone}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise Gone
            if not getting.done():
                raise too_late(seconds)
            found = getting.result()
        finally:
            getting.cancel()
        if found is None:
            return
        if isinstance(found, Problem):
            raise Refused(found)
        yield found


async def _disconnected(receive: Receive) -> None:
    """Returns when the client has left. To be awaited after the whole body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(headers: Headers, receive: Receive, most: int, idle: float) -> bytes:
    """Raises Refused for what is no JSON by its header, too large or too slow; Gone."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise refuse("the body has to be JSON: Content-Type: application/json", code="content_type", status=415)
    large = refuse(f"the body is larger than {most:,} bytes", code="too_large", status=413)
    if headers.get("content-length", "0").isdecimal() and int(headers.get("content-length", "0")[:20]) > most:
        raise large
    until = time.monotonic() + idle
    body = bytearray()
    more = True
    while more:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
        except (TimeoutError, asyncio.TimeoutError):
            raise refuse(f"the body did not come within {idle:g} s", code="slow_body", status=408) from None
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        if len(body) > most:
            raise large
        more = message.get("more_body", False)
    if _values(body) > MOST:
        raise refuse(f"the body holds more than {MOST:,} values", code="too_large", status=413)
    return bytes(body)


def _values(body: bytes | bytearray) -> int:
    """About how many values a JSON text holds, or more than MOST, in a time that does not depend on how many: a parser would take a second
    for the million empty lists of a few megabytes, and hold everyone up."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = plain.count(b'"')
    if quotes > 2 * MOST:
        return quotes
    outside = b"".join(plain.split(b'"')[::2])
    return sum(outside.count(mark) for mark in (b",", b"[", b"{"))


async def _send(send: Send, body: bytes, kind: str) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refused(_: Request, error: Refused) -> Response:
    return JSONResponse(error.problem.document(), error.problem.status, error.problem.headers)


async def _http_problem(_: Request, error: HTTPException) -> Response:
    """What Starlette refuses by itself: no such path, no such method."""
    return JSONResponse(Problem(error.status_code, error.detail).document(), error.status_code, error.headers)

"""Before anything is read of a request: who it is addressed to, which page sent it, and whether it has the key."""

import asyncio
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.server.bodies import encode
from edgekit.server.problems import Problem, ending
from edgekit.server.settings import Settings

OPEN = frozenset({"/", "/health", "/openapi.json"})
"""Served without a key: they tell nothing that is not public, and compute nothing."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


class Guard:
    """ASGI middleware.

    A page of another site can send requests here, and by DNS rebinding even read the answers: its own name then leads to this machine. So a
    request has to be addressed to an IP address, localhost or a name that the operator gave, and one that says which page sent it (Origin)
    has to come from this server's own. No CORS header is ever sent.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._names = {"localhost", settings.host.lower(), *(name.lower() for name in settings.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        problem = self._problem(Headers(scope=scope), scope["path"])
        try:
            if problem is None:
                await self._app(scope, receive, with_headers)
            else:
                await answer_problem(problem, with_headers)
        except asyncio.CancelledError:
            # The server ends and has waited long enough; nobody else cancels a request's task, and nobody waits for it.
            if not started:
                await answer_problem(ending().problem, with_headers)

    def _problem(self, headers: Headers, path: str) -> Problem | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._known(hosts[0]):
            return Problem(
                403, "the request is addressed to a name that this server does not know; start it with --allow-host NAME", code="host"
            )
        origins = headers.getlist("origin")
        if origins and (len(origins) > 1 or not _same(origins[0], hosts[0])):
            return Problem(403, "a page of another site sent this request", code="origin")
        if self._settings.key is not None and path not in OPEN and not _has_key(headers, self._settings.key):
            return Problem(
                401,
                "the API key is missing or wrong; send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None

    def _known(self, host: str) -> bool:
        name = _name(host)
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


async def answer_problem(problem: Problem, send: Send) -> None:
    """The whole response."""
    body = encode(problem.document())
    headers = {"content-type": "application/json", "content-length": str(len(body)), **(problem.headers or {})}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str | None:
    """``host`` without its port; None for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and parts.username is None else None


def _same(origin: str, host: str) -> bool:
    """A proxy in front may have taken the encryption off, so both schemes are the same here."""
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and rest.lower() == host.lower()


def _has_key(headers: Headers, key: str) -> bool:
    """Compared in a time that does not tell how much of it is right."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return hmac.compare_digest(given.strip().encode("utf-8", errors="replace"), key.encode()) and scheme.lower() == "bearer"

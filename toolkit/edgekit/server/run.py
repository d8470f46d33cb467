"""The process: an artifact opened and served until a signal ends it."""

import hashlib
import os
import signal
import socket
import time
from types import FrameType

from edgekit import console
from edgekit.artifact import MANIFEST, Artifact
from edgekit.errors import EngineMissing, TemplateError, UsageError
from edgekit.runtime import open_runtime
from edgekit.server import service
from edgekit.server.settings import Settings, is_loopback
from edgekit.server.tools import ToolSyntax, tool_syntax

try:
    import llguidance  # noqa: F401  (answers in a given form, and tool calls: asked for by requests, so missed only then)
    import uvicorn

    from edgekit.server.app import make_app
    from edgekit.server.connection import connections
except ImportError as error:
    raise EngineMissing(f'edge serve needs {error.name}; install it: pip install "edgekit[serve]"') from None


class _Server(uvicorn.Server):
    """Says when it is there. Ends by a signal as one that did its work: uvicorn would raise the signal again once it has drained."""

    def __init__(self, config: uvicorn.Config, greeting: str) -> None:
        super().__init__(config)
        self._greeting = greeting
        self._patience = service.watchdog()
        self._told = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        console.notice(self._greeting)
        service.tell("READY=1")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, as long as the loop that takes requests turns: what the service manager's watchdog wants to hear."""
        now = time.monotonic()
        if self._patience is not None and now - self._told >= self._patience / 3:
            self._told = now
            service.tell("WATCHDOG=1")
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        service.tell("STOPPING=1")


def serve(artifact: Artifact, settings: Settings, *, threads: int | None) -> None:
    """Serves until SIGTERM or Ctrl-C, then lets answers end for ``settings.drain`` seconds; a second Ctrl-C ends at once.

    Raises UsageError when the address cannot be bound, and what ``runtime.open_runtime`` raises.
    """
    syntax, print_ = describe(artifact)
    with bind(settings.host, settings.port) as listening, open_runtime(artifact, threads=threads) as runtime:
        config = uvicorn.Config(
            make_app(runtime, settings, syntax, print_),
            log_level="warning",
            server_header=False,
            http=connections(settings.limits.idle),
            ws="none",
            loop="asyncio",
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(settings.drain)),
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        locked = "" if settings.key is not None else " (no API key)"
        greeting = f"edge: {settings.model} at http://{shown}:{port}/ and http://{shown}:{port}/v1{locked}; Ctrl-C ends it"
        _Server(config, greeting).run(sockets=[listening])


def describe(artifact: Artifact) -> tuple[ToolSyntax | None, str]:
    """How an artifact's model writes tool calls, and its print: the beginning of its manifest's digest. Raises ArtifactError."""
    name = artifact.manifest.tool_template or artifact.manifest.chat_template
    digest = hashlib.sha256((artifact.directory / MANIFEST).read_bytes()).hexdigest()
    try:
        source = "" if name is None else (artifact.directory / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{artifact.directory}/{name} cannot be read: {error}; copy the artifact again") from None
    return tool_syntax(source), f"edge-{digest[:12]}"


def bind(host: str, port: int) -> socket.socket:
    """A listening address, before the model is loaded. Raises UsageError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if host == "localhost" and not is_loopback(str(address[0])):
            raise OSError("localhost leads to another machine here")
        made = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # on Windows it would let a second server take the address over
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen at {host} port {port}: {error}; choose another with --host or --port") from None
    return made

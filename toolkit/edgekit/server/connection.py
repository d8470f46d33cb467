"""Connections that end: of a client that takes nothing, or says nothing, for too long, whatever it was sent or asked.

uvicorn closes a connection once all that was written to it is taken, so one whose client never reads stays, also past the server's end.
"""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

ENDING = 2.0
"""Seconds without a byte taken after which a connection is cut while the server ends."""


def connections(idle: float) -> type[asyncio.Protocol]:
    """What uvicorn makes of each connection. idle: seconds without a byte taken of what waits for the client, or without a request."""

    class Watched(H11Protocol):
        """One connection, looked at some times in ``idle``."""

        _ending = False
        _waiting = 0
        _watch: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._taken = self._asked = time.monotonic()
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._watch is not None:
                self._watch.cancel()
            super().connection_lost(exc)

        def shutdown(self) -> None:
            self._ending = True
            super().shutdown()

        def _look(self) -> None:
            now, waiting = time.monotonic(), self.transport.get_write_buffer_size()
            if not waiting or waiting < self._waiting:
                self._taken = now
            self._waiting = waiting
            if self.cycle is not None and not self.cycle.response_complete:
                self._asked = now
            if now - self._taken > (min(idle, ENDING) if self._ending else idle):
                self.transport.abort()
                return
            if not waiting and now - self._asked > idle and not self.transport.is_closing():
                self.transport.close()
            self._watch = self.loop.call_later(min(1.0, max(0.05, idle / 10)), self._look)

    return Watched

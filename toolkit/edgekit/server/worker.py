"""The one thread that computes, and the bounded queue before it."""

import asyncio
import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

from edgekit.errors import EdgekitError
from edgekit.runtime import Runtime
from edgekit.server.problems import Problem, Refused, busy, ending, from_error

T = TypeVar("T")
Work = Callable[[Runtime], Generator[T, None, None]]
LONGEST_WAIT = 60
_log = logging.getLogger("edgekit.server")


class Ticket(Generic[T]):
    """A request's place in the queue, and what comes of it: taken from ``events`` on the event loop that it was made on.

    An event is a part of the answer, a Problem that ended it, or None at its end.
    """

    def __init__(self, work: Work[T]) -> None:
        self.work = work
        self.events: asyncio.Queue[T | Problem | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Nobody waits for it any more: the worker leaves it at the next token, or never begins it."""
        self._cancelled.set()

    def send(self, event: T | Problem | None) -> None:
        """From the worker's thread. A loop that has ended takes nothing, and nobody misses it."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Worker(Generic[T]):
    """Does one ticket's work after the other on one thread, since a Runtime is for one at a time. forget: each from its first token."""

    def __init__(self, runtime: Runtime, *, queue: int, forget: bool = False) -> None:
        self._runtime, self._most, self._forget = runtime, queue, forget
        self._waiting: collections.deque[Ticket[T]] = collections.deque()
        self._current: Ticket[T] | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._mean = 1.0
        self._thread = threading.Thread(target=self._run, name="edgekit-worker", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> bool:
        """Whether the model is at work."""
        return self._current is not None

    def submit(self, work: Work[T]) -> Ticket[T]:
        """Puts ``work`` at the end of the queue. Raises Refused: the queue is full (429), or the server ends (503)."""
        ticket = Ticket(work)
        with self._changed:
            if self._ended:
                raise ending()
            if len(self._waiting) >= self._most:
                raise busy(min(LONGEST_WAIT, max(1, round(self._mean * len(self._waiting)))))
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket[T]) -> None:
        """Gives its place in the queue to another at once; if it is being computed, ends it at the next token, or its text's work now."""
        ticket.cancel()
        with self._changed:
            if ticket is self._current:  # it cannot become another's while the lock is held
                self._runtime.interrupt()
            with contextlib.suppress(ValueError):
                self._waiting.remove(ticket)

    def close(self) -> None:
        """Ends the work at the next token, refuses what waits, and waits for the thread. The Runtime stays open."""
        with self._changed:
            self._ended = True
            left = [*self._waiting, *([self._current] if self._current is not None else [])]
            self._waiting.clear()
            self._changed.notify()
        for ticket in left:
            ticket.cancel()
            ticket.send(ending().problem)
        self._runtime.interrupt()
        self._thread.join()

    def _run(self) -> None:
        while (ticket := self._next()) is not None:
            began = time.monotonic()
            if not ticket.cancelled:
                ticket.send(self._work(ticket))
            # Over the last ten or so: what Retry-After says.
            self._mean += 0.1 * (time.monotonic() - began - self._mean)

    def _next(self) -> Ticket[T] | None:
        with self._changed:
            self._current = None
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if self._ended:
                return None
            self._current = self._waiting.popleft()
            return self._current

    def _work(self, ticket: Ticket[T]) -> Problem | None:
        """Sends the parts of an answer; returns how it ended. Nothing that a request does ends the thread."""
        self._runtime.given_up = lambda: ticket.cancelled
        try:
            if self._forget:
                self._runtime.forget()
            with contextlib.closing(ticket.work(self._runtime)) as parts:
                for part in parts:
                    if ticket.cancelled:
                        return None
                    ticket.send(part)
        except Refused as refused:
            return refused.problem
        except EdgekitError as error:
            return from_error(error)
        except Exception:
            _log.exception("a request failed")
            return Problem(500, "the server failed on this request; its log says how", "server_error", code="internal_error")
        return None

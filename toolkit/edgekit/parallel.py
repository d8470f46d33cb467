"""Work in a bounded number of threads, told of in the calling one. NumPy, hashing and files let other threads run meanwhile."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
WAKE = 0.2  # seconds between two looks for Ctrl-C, which does not end a wait on Windows


@dataclass(frozen=True)
class _Ended:
    """The last that a thread says; ``error`` is what ended it early."""

    error: BaseException | None


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[T], Iterable[R]], items: Sequence[T], threads: int | None, tell: Callable[[R], None]) -> None:
    """Calls ``work`` for every item, begun in their order, in ``threads`` threads (None: one a core), and ``tell``, in this thread, with
    each thing that it yields.

    The first exception of any thread, or of ``tell``, Ctrl-C included, is raised here. By then every other thread has come to its next
    yield and ended: none is left.
    """
    todo: SimpleQueue[T] = SimpleQueue()
    for item in items:
        todo.put(item)
    told: SimpleQueue[R | _Ended] = SimpleQueue()
    stop = threading.Event()
    pool = [threading.Thread(target=_drain, args=(work, todo, told, stop)) for _ in range(min(threads or cores(), len(items)))]
    try:
        for thread in pool:
            thread.start()
        running = len(pool)
        while running:
            try:
                result = told.get(timeout=WAKE)
            except Empty:
                continue
            if not isinstance(result, _Ended):
                tell(result)
            elif result.error is not None:
                raise result.error
            else:
                running -= 1
    finally:
        stop.set()
        for thread in pool:
            if thread.ident is not None:
                thread.join()


def _drain(work: Callable[[T], Iterable[R]], todo: "SimpleQueue[T]", told: "SimpleQueue[R | _Ended]", stop: threading.Event) -> None:
    error: BaseException | None = None
    try:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except Empty:
                break
            for result in work(item):
                told.put(result)
                if stop.is_set():
                    break
    except BaseException as caught:
        error = caught
    told.put(_Ended(error))

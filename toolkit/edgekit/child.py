"""Work in a process of its own: an engine may take memory or crash in native code, and neither happens to the process that asks.

A request and its answer are one JSON object each. The module asked for has a ``main`` that calls ``serve``.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from subprocess import PIPE
from typing import cast

from edgekit import errors
from edgekit.errors import EdgekitError, EngineError

Json = dict[str, object]


def command(module: str) -> list[str]:
    """Starts ``module.main`` in a process that finds modules where this one does, before it imports any."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = sys.argv[1:]; from {module} import main; main()", *sys.path]


def ask(module: str, request: Json, *, patience: float | None = None) -> Json:
    """The answer of ``module.main``. Raises the EdgekitError it ended with, or EngineError where it crashed or took longer than
    ``patience`` seconds."""
    with asking(module, request, patience) as answer:
        return answer()


@contextlib.contextmanager
def asking(
    module: str, request: Json, patience: float | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Callable[[], Json]]:
    """As ``ask``, while the caller does something else: gives what waits for the answer. When the block is left the process has ended,
    whatever happened. environment: instead of this process's own."""
    try:
        process = subprocess.Popen(command(module), stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)
    except OSError as error:
        raise EngineError(f"cannot start {sys.executable!r} to run the model: {error.strerror or error}") from error
    with process, ThreadPoolExecutor(1) as pool:
        said = pool.submit(process.communicate, json.dumps(request).encode(), patience)
        try:
            yield lambda: understand(*said.result(), process.returncode)
        except subprocess.TimeoutExpired:
            raise EngineError(f"it did not answer within {patience:.0f} s") from None
        finally:
            process.kill()


def understand(said: bytes, noise: bytes, code: int) -> Json:
    """What such a process said, or the error that its words or its exit code are."""
    if code < 0:
        raise EngineError(
            f"the engine was ended by {signal_name(-code)} while it ran the model. Where that is SIGKILL, the memory ran out: "
            "close other programs or take a smaller model"
        )
    if code:
        last = noise.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise EngineError(f"the engine failed with exit code {code} while it ran the model. {last[0]}")
    answer = cast(Json, json.loads(said))
    if "error" in answer:
        raise cast(type[EdgekitError], getattr(errors, str(answer["error"])))(str(answer["message"]))
    return answer


def signal_name(number: int) -> str:
    """``"SIGKILL"`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def serve(work: Callable[[Json], Json]) -> None:
    """In the other process: reads the request from stdin, and writes what ``work`` returns or raises to stdout."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)  # what an engine prints is no part of the answer
        request = json.loads(sys.stdin.buffer.read())
        try:
            said = work(request)
        except EdgekitError as error:
            said = {"error": type(error).__name__, "message": str(error)}
        json.dump(said, answer)

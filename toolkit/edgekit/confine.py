"""A process that may take so much time and memory and no more, for work on what a stranger wrote.

The work is a class whose methods are the requests; it holds what was opened. It is given plain data and gives plain data back. What takes
longer or more than a request may is ended with its process, and the next request finds a new one in which everything is open as before.
So nothing that a library does there, in Python or in native code, reaches the program that asked: no endless loop, no exhausted memory, no
abort.
"""

import contextlib
import importlib
import json
import marshal
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, Any, cast

from edgekit import errors
from edgekit.errors import EdgekitError, EngineError

MEMORY = 1 << 30
"""Bytes that the process may hold in all."""
ANSWER = 32 << 20
"""Bytes of an answer."""
START = 60
"""Seconds in which it has to begin."""
_KEPT = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Of the environment: what an interpreter needs to find its libraries."""
_QUIET = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""One thread: each reserves address space, which is what is limited."""
_TICK = 50
"""Milliseconds between two looks at the memory of a process, where the system does not limit it (macOS)."""


class Overrun(Exception):
    """A request took more than it may; the message says of what."""


@dataclass(frozen=True)
class Cost:
    """What a request may take: seconds of processor time, and bytes beyond what the process holds before it (None: up to MEMORY)."""

    seconds: float
    memory: int | None = None

    @property
    def patience(self) -> float:
        """Seconds on the clock: for a machine that is busy, or a process that sleeps."""
        return 5 * self.seconds + 10


class Here:
    """The work in this very process, without limits: where no other can be started, for files that one trusts."""

    def __init__(self, work: str) -> None:
        self._work = _made(work)
        self._count = 0

    def open(self, cost: Cost, request: str, *arguments: object) -> tuple[int, Any]:
        self._count += 1
        return self._count - 1, getattr(self._work, request)(*arguments)

    def ask(self, cost: Cost, request: str, *arguments: object) -> Any:
        return getattr(self._work, request)(*arguments)

    def interrupt(self) -> None:
        """Nothing can be done about it here."""

    def close(self) -> None:
        """There is nothing to end."""


class Confined:
    """The work ``"module:Class"`` in a process of its own, which is started when it is first needed. For any number of threads."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._lock = threading.RLock()
        self._opened: list[tuple[Cost, str, tuple[object, ...], object]] = []
        self._process: _Process | None = None

    def open(self, cost: Cost, request: str, *arguments: object) -> tuple[int, Any]:
        """As ``ask``, for what the work holds from now on: asked again of every process that takes this one's place, which has to answer
        the same. Returns its number, by which other requests name it, and the answer."""
        with self._lock:
            answer = self._asked(cost, request, arguments)
            self._opened.append((cost, request, arguments, answer))
            return len(self._opened) - 1, answer

    def ask(self, cost: Cost, request: str, *arguments: object) -> Any:
        """What the method ``request`` of the work returns. Raises the EdgekitError that it raised; Overrun; EngineError: the process cannot
        be started, was ended from outside, or ``interrupt`` was called."""
        with self._lock:
            return self._asked(cost, request, arguments)

    def interrupt(self) -> None:
        """From another thread: ends the request that is being worked on, if there is one."""
        process = self._process
        if process is not None:
            process.interrupt()

    def close(self) -> None:
        """Ends the process. Whoever asks again gets a new one."""
        with self._lock:
            self._end()

    def _asked(self, cost: Cost, request: str, arguments: tuple[object, ...]) -> Any:
        if self._process is None or self._process.owner != os.getpid():  # after a fork it is the other program's
            self._begin()
        return self._exchange(cost, request, arguments)

    def _begin(self) -> None:
        self._process = _Process(self._work)
        self._last = weakref.finalize(self, self._process.end)
        for cost, request, arguments, answer in self._opened:
            if self._exchange(cost, request, arguments) != answer:
                self._end()
                raise EngineError("a file of the model has changed since it was opened; open it again")

    def _exchange(self, cost: Cost, request: str, arguments: tuple[object, ...]) -> Any:
        process = cast(_Process, self._process)
        try:
            said = process.exchange(marshal.dumps(cast(Any, (request, cost.seconds, cost.memory, arguments))), cost.patience)
        except _Ended as ended:
            self._end()
            if process.interrupted:
                raise EngineError("the work on a text was interrupted: nobody waits for it any more") from None
            raise ended.meaning(cost) from None
        except BaseException:  # Ctrl-C between question and answer: the answer would be taken for the next one's
            self._end()
            raise
        if process.interrupted:  # as it answered
            self._end()
        return self._understood(said)

    def _understood(self, said: bytes) -> Any:
        try:
            answer = cast(dict[str, Any], json.loads(said))
        except (ValueError, RecursionError):
            answer = {"error": "Overrun", "message": "it gives what is no answer"}
        if "error" not in answer:
            return answer["value"]
        kind, message = getattr(errors, str(answer["error"]), None), str(answer["message"])
        if isinstance(kind, type) and issubclass(kind, EdgekitError):
            raise kind(message)
        self._end()  # it may be short of memory from now on
        raise Overrun(message)

    def _end(self) -> None:
        if self._process is not None and self._process.owner == os.getpid():
            self._last.detach()
            self._process.end()
        self._process = None


def signal_name(number: int) -> str:
    """``"SIGKILL"`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Ended(Exception):
    """The process is no more. code: as Popen has it. late: this program ended it for its time."""

    def __init__(self, code: int, late: bool = False) -> None:
        super().__init__(code)
        self.code, self.late = code, late

    def meaning(self, cost: Cost) -> Exception:
        """POSIX tells the signal; Windows a code of its own."""
        name = signal_name(-self.code) if self.code < 0 else f"exit code {self.code:#x}"
        if self.late or name == "SIGPROF":
            return Overrun(f"it takes more than {cost.seconds:g} s")
        if name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"):
            return EngineError(f"the process for texts was ended by {name}; where that is SIGKILL, memory ran out: close other programs")
        return Overrun(f"it takes too much memory, or makes a library fail ({name})")


class _Process:
    """A running child and its two pipes."""

    def __init__(self, work: str) -> None:
        """Raises EngineError."""
        self.owner = os.getpid()
        self.interrupted = self._busy = self._late = False
        self._state = threading.Lock()
        spawn = sys.modules.get("multiprocessing.spawn")  # unless it is imported nobody has called set_executable
        executable = sys.executable if spawn is None else spawn.get_executable()
        program = os.fsdecode(executable) if executable else ""  # multiprocessing keeps bytes
        own = program == sys.executable
        if os.name == "nt" and own:
            program = str(getattr(sys, "_base_executable", program))  # a venv's starts that one as a process of its own
        if not program or (getattr(sys, "frozen", False) and own):
            raise EngineError(
                "tokenizer and chat template run in a process of their own, and this program brings no Python to start one with; name one "
                "by multiprocessing.set_executable(...), or load a model that you trust with confined=False"
            )
        path = [str(Path(place).absolute()) for place in sys.path]
        code = "import sys; sys.path[:] = sys.argv[2:]; from edgekit.confine import serve; serve(sys.argv[1])"
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _QUIET
        # No Ctrl-C of a terminal reaches it, and on Windows it opens no console.
        apart: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x08000200}
        command = [program, "-I", "-S", "-c", code, work, *path]
        try:
            self._popen = subprocess.Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, **apart)
        except OSError as error:
            raise EngineError(f"cannot start {program!r} for work on texts: {error}") from None
        if os.name == "nt":
            from edgekit.windows_job import confine

            weakref.finalize(self, confine(self._popen, MEMORY))
        for pipe in (self._popen.stdin, self._popen.stdout):
            if os.name == "posix":
                os.set_blocking(cast(IO[bytes], pipe).fileno(), False)
        try:
            self.exchange(marshal.dumps(None), START)
        except _Ended as ended:
            self.end()
            raise EngineError(
                f"{program!r} does not run as a Python that finds edgekit (exit code {ended.code}); is another meant, "
                "multiprocessing.set_executable(...) names it"
            ) from None

    def exchange(self, request: bytes, patience: float) -> bytes:
        """The answer to ``request``. Raises _Ended."""
        until = time.monotonic() + patience
        # Pipes of Windows cannot be waited for with a limit, so there a timer ends what they wait for.
        timer = None if os.name == "posix" else threading.Timer(patience, self._too_late)
        self._busy = True
        try:
            if timer is not None:
                timer.start()
            self._write(len(request).to_bytes(4, "big") + request, until)
            return self._read(until)
        finally:
            with self._state:
                self._busy = False
            if timer is not None:
                timer.cancel()

    def interrupt(self) -> None:
        """From another thread: ends it if it has something to answer."""
        with self._state:
            if self._busy:
                self.interrupted = True
                self._popen.kill()

    def end(self) -> None:
        if self.owner == os.getpid():
            self._popen.kill()
            self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            with contextlib.suppress(OSError):
                cast(IO[bytes], pipe).close()

    def _too_late(self) -> None:
        self._late = True
        self._popen.kill()

    def _write(self, data: bytes, until: float) -> None:
        pipe, left = cast(IO[bytes], self._popen.stdin).fileno(), memoryview(data)
        while left:
            try:
                left = left[os.write(pipe, left[: 1 << 20]) :]
            except BlockingIOError:
                self._wait(pipe, until, writing=True)
            except OSError:
                raise self._ended() from None

    def _read(self, until: float) -> bytes:
        pipe, data = cast(IO[bytes], self._popen.stdout).fileno(), bytearray()
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            if len(data) > 4 + ANSWER:
                self._popen.kill()
                raise _Ended(-6)
            self._wait(pipe, until, writing=False)
            with contextlib.suppress(BlockingIOError):
                piece = os.read(pipe, 1 << 20)
                if not piece:
                    raise self._ended()
                data += piece
        return bytes(data[4:])

    def _wait(self, pipe: int, until: float, *, writing: bool) -> None:
        if os.name != "posix":
            return
        poll = select.poll()
        poll.register(pipe, select.POLLOUT if writing else select.POLLIN)
        most = _TICK if sys.platform == "darwin" else 1 << 30
        while not poll.poll(max(0, min(most, round(1000 * (until - time.monotonic()))))):
            if time.monotonic() >= until:
                self._too_late()
                raise self._ended()
            if sys.platform == "darwin" and _footprint(self._popen.pid) > MEMORY:
                self._popen.kill()
                raise _Ended(-6)

    def _ended(self) -> _Ended:
        try:
            code = self._popen.wait(10)
        except subprocess.TimeoutExpired:  # it closed its pipe and goes on
            self._popen.kill()
            code = self._popen.wait()
        return _Ended(code, self._late)


def _footprint(process: int) -> int:
    """Bytes that a process of macOS takes, 0 where that is not known (libproc's rusage_info_v0)."""
    import ctypes

    figures = (ctypes.c_uint64 * 12)()
    answer = ctypes.CDLL(None).proc_pid_rusage(process, 0, ctypes.byref(figures))
    return int(figures[9]) if answer == 0 else 0


def _made(work: str) -> Any:
    module, _, name = work.partition(":")
    return getattr(importlib.import_module(module), name)()


def serve(work: str) -> None:
    """In the process: answers one request after the other, until nobody asks any more."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # what a library prints is no answer
    within, made = _limits(), _made(work)
    while len(frame := questions.read(4)) == 4:
        given = marshal.loads(questions.read(int.from_bytes(frame, "big")))
        said = b"{}" if given is None else _answered(made, within, *given)
        answers.write(len(said).to_bytes(4, "big") + said)
        answers.flush()


_Within = Callable[[float, int | None], "contextlib.AbstractContextManager[None]"]


def _answered(work: Any, within: _Within, request: str, seconds: float, memory: int | None, arguments: tuple[object, ...]) -> bytes:
    try:
        with within(seconds, memory):
            said = json.dumps({"value": getattr(work, request)(*arguments)}).encode()
            if len(said) <= ANSWER:
                return said
            problem = {"error": "Overrun", "message": f"it gives more than {ANSWER >> 20} MB"}
    except EdgekitError as error:
        problem = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        problem = {"error": "Overrun", "message": "it takes too much memory"}
    return json.dumps(problem).encode()


def _limits() -> _Within:
    """What holds one request within its seconds and bytes: by the kernel, which ends the process. Windows does it from outside."""
    if os.name != "posix":
        return lambda seconds, memory: contextlib.nullcontext()
    import resource

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit; there the other process looks
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    @contextlib.contextmanager
    def within(seconds: float, memory: int | None) -> Iterator[None]:
        held = None if memory is None else _held()
        if held is not None and memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (min(held + memory, MEMORY), MEMORY))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            if held is not None:
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    return within


def _held() -> int | None:
    """Bytes of address space, None where Linux's /proc is not there."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None

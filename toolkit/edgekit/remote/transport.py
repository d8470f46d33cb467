"""What a way to a device has to offer: run a command there, send a file, fetch a file. And running the local program that does it."""

import contextlib
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Protocol

from edgekit import strict_json
from edgekit.errors import DeviceUnfit, LinkBroken, RemoteError, Unreachable

Json = dict[str, object]
SILENCE = 45.0
"""Seconds without a sign of life, nine missed ones, after which a link counts as broken."""
PIECE = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A file that is to be on the device, by its content. size: bytes."""

    path: Path
    digest: str
    size: int


Tell = Callable[[int], None]
"""Gets the number of bytes that were handed over."""


class Ask(Protocol):
    """Gives a request to the agent on the device. Its words, ``done`` last."""

    def __call__(self, request: Json, data: Iterable[bytes] = ()) -> Iterator[Json]: ...


class Transport(Protocol):
    """where: how messages name the device. root: edgekit's folder there, ``~`` being the home."""

    @property
    def where(self) -> str: ...

    @property
    def root(self) -> str: ...

    def run(self, command: Sequence[str], data: Iterable[bytes]) -> Iterator[str]:
        """The lines that ``command`` prints there while it reads ``data``. Raises a RemoteError where it cannot be run, LinkBroken where
        the link broke meanwhile, and CommandFailed with what it exited with."""

    def send(self, ask: Ask, blobs: Sequence[tuple[Blob, int]], tell: Tell) -> None:
        """The rest of each file, of which so many bytes are there."""

    def fetch(self, ask: Ask, source: str, target: Path) -> None:
        """A file from there."""


class CommandFailed(RemoteError):
    """The command there ended with another code than 0; stderr: what it said."""

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(f"the command there failed with exit code {code}: {last_line(stderr)}")
        self.code = code
        self.stderr = stderr


class Damaged(LinkBroken):
    """A file is not, there, what it is here."""


def last_line(text: str) -> str:
    """Of what a program said, without control characters, which a terminal would obey."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "".join(c if c.isprintable() else "?" for c in lines[-1].strip()) if lines else "it said nothing"


def program_lines(command: Sequence[str], data: Iterable[bytes], where: str, failure: Callable[[int, str], RemoteError]) -> Iterator[str]:
    """Runs a local program that talks to the device; its stdout by lines. ``failure`` makes an error of its exit code and stderr.

    The program has ended when this is left, however that is. Raises LinkBroken after SILENCE too.
    """
    environment = {**os.environ, "LC_ALL": "C"}  # messages are told apart below
    try:
        process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)
    except OSError as error:
        raise Unreachable(f"{where}: cannot start {command[0]!r}: {error.strerror or error}; install it") from None
    said: queue.Queue[bytes | None] = queue.Queue(maxsize=64)
    noise: list[bytes] = []
    threads = [
        threading.Thread(target=_feed, args=(process, data), daemon=True),
        threading.Thread(target=_listen, args=(process, said), daemon=True),
        threading.Thread(target=_drain, args=(process, noise), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        while (line := _next(said, where)) is not None:
            yield line.decode(errors="replace").rstrip("\r\n")
        threads[2].join()
        if code := process.wait():
            raise failure(code, b"".join(noise).decode(errors="replace"))
    finally:
        process.kill()
        process.wait()


def _next(said: "queue.Queue[bytes | None]", where: str) -> bytes | None:
    try:
        return said.get(timeout=SILENCE)
    except queue.Empty:
        raise LinkBroken(f"{where}: no sign of life for {SILENCE:.0f} s") from None


def _feed(process: "subprocess.Popen[bytes]", data: Iterable[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin:  # a program that ended says why itself
        for piece in data:
            process.stdin.write(piece)


def _listen(process: "subprocess.Popen[bytes]", said: "queue.Queue[bytes | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        said.put(line)
    said.put(None)


def _drain(process: "subprocess.Popen[bytes]", noise: list[bytes]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        noise.append(line)
        del noise[:-40]


def part_of(path: Path, offset: int, size: int, tell: Tell) -> Iterator[bytes]:
    """``size`` bytes of a file from ``offset`` on; ``tell`` gets the length of each piece handed out."""
    with path.open("rb") as file:
        file.seek(offset)
        while size and (piece := file.read(min(size, PIECE))):
            yield piece
            size -= len(piece)
            tell(len(piece))


def answers(lines: Iterable[str], mark: str, where: str) -> Iterator[Json]:
    """The agent's words among ``lines``; the last is its ``done``. Raises what its ``error`` means, LinkBroken where there is neither."""
    for line in lines:
        if not line.startswith(mark):
            continue
        try:
            word: Json = dict(strict_json.load(line[len(mark) :]))
        except (ValueError, TypeError):
            raise LinkBroken(f"{where}: the answer was cut") from None
        if "error" in word:
            raise refusal(str(word["error"]), last_line(str(word["message"])), where)
        yield word
        if "done" in word:
            return
    raise LinkBroken(f"{where}: it ended before it had answered")


def refusal(kind: str, message: str, where: str) -> RemoteError:
    """The error that the agent's words mean."""
    if kind == "full":
        return DeviceUnfit(f"{where}: the disk is full there ({message}); free some space, or name a folder on a larger one")
    if kind == "damaged":
        return Damaged(f"{where}: {message}")
    return DeviceUnfit(f"{where}: {message}")

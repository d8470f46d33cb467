"""A device with a Python: requests to the agent there, and files by their content, so that only what changed travels."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from edgekit.errors import DeviceUnfit, LinkBroken, Unreachable
from edgekit.progress import Progress
from edgekit.remote.agent import MARK
from edgekit.remote.transport import Blob, CommandFailed, Damaged, Json, Transport, answers, last_line

OLDEST = (3, 10)
PYTHONS = (
    "python3", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10",
    "/data/data/com.termux/files/usr/bin/python3", "/data/local/tmp/python/bin/python3",
)  # fmt: skip
VERSION = f'import sys; print("{MARK.strip()}", sys.executable, *sys.version_info[:2])'
LOOK = f'for p; do q=$(command -v "$p" 2>/dev/null) && "$q" -I -c \'{VERSION}\'; done; echo {MARK.strip()} all'
BOOT = "import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv[1])), 'agent', 'exec')); main()"
PATIENCE = 300.0
"""Seconds a broken link may stay so, a device that starts anew among it, before what was measured is all."""
PAUSES = (1.0, 2.0, 5.0, 10.0)
SPARE = 64 << 20
"""Bytes to stay free there: of the report, and of what pip and an engine write beside."""

T = TypeVar("T")


@dataclass(frozen=True)
class Device:
    """python, root: absolute paths there."""

    transport: Transport
    python: str
    root: str
    version: str
    system: str
    machine: str

    @property
    def where(self) -> str:
        return self.transport.where

    def ask(self, request: Json, data: Iterable[bytes] = ()) -> Iterator[Json]:
        """The agent's words. Raises RemoteError."""
        return ask(self.transport, self.python, self.root, request, data)

    def answer(self, request: Json) -> Json:
        """The last of them."""
        return answer(self.ask(request))


def ask(transport: Transport, python: str, root: str, request: Json, data: Iterable[bytes]) -> Iterator[Json]:
    source = (Path(__file__).parent / "agent.py").read_bytes()
    head = json.dumps({"root": root, **request}).encode() + b"\n"

    def sent() -> Iterator[bytes]:
        yield source + head
        yield from data

    return answers(transport.run([python, "-I", "-c", BOOT, str(len(source))], sent()), MARK, transport.where)


def answer(words: Iterator[Json]) -> Json:
    done: Json = {}
    for word in words:
        done = cast(Json, word.get("done", {}))
    return done


def connect(transport: Transport) -> Device:
    """Raises Unreachable, Untrusted, and DeviceUnfit where there is no Python that is new enough."""
    found = [line.split() for line in _look(transport) if line.startswith(MARK)]
    if not found or found[-1][1:] != ["all"]:
        raise LinkBroken(f"{transport.where}: it ended before it had answered")
    fit = [(words[1], (int(words[2]), int(words[3]))) for words in found if len(words) == 4]
    python = next((path for path, version in fit if version >= OLDEST), None)
    if python is None:
        seen = ", ".join(f"{path} is {a}.{b}" for path, (a, b) in fit) or "it has none of " + ", ".join(PYTHONS[:6])
        raise DeviceUnfit(
            f"{transport.where}: edgekit needs a Python 3.10 or newer there, and nothing else: {seen}. Debian: apt install python3-minimal "
            "python3; Android: see docs/remote.md"
        )
    said = answer(ask(transport, python, transport.root, {"verb": "probe"}, ()))
    return Device(transport, python, str(said["root"]), str(said["python"]), str(said["system"]), str(said["machine"]))


def _look(transport: Transport) -> list[str]:
    try:
        return list(transport.run(["sh", "-c", LOOK, "sh", *PYTHONS], ()))
    except CommandFailed as error:
        raise DeviceUnfit(f"{transport.where}: no shell that runs `sh` there: {last_line(error.stderr)}") from None


def patiently(step: Callable[[], T], moved: Callable[[], object], heard: Callable[[str], None], patience: float) -> T:
    """``step``, which may be done again, until the link holds. ``moved``: a value that changes as it gets on, which starts the clock anew.

    Raises LinkBroken or Unreachable after ``patience`` seconds without getting on, and any other error at once.
    """
    since, state, tries = time.monotonic(), moved(), 0
    while True:
        try:
            return step()
        except (LinkBroken, Unreachable) as error:
            if moved() != state:
                since, state, tries = time.monotonic(), moved(), 0
            pause = PAUSES[min(tries, len(PAUSES) - 1)]
            if time.monotonic() + pause - since > patience:
                raise
            heard(f"{error}; trying again")
            time.sleep(pause)
            tries += 1


def upload(device: Device, blobs: Sequence[Blob], stage: str, progress: Progress, heard: Callable[[str], None], patience: float) -> None:
    """Every blob is whole on the device, and only what was missing travelled.

    Raises DeviceUnfit (the disk is full, seen before anything is sent where possible) and LinkBroken.
    """
    wanted = {blob.digest: blob for blob in blobs}
    sent = damaged = 0

    def step() -> None:
        here = device.answer({"verb": "have", "digests": list(wanted)})
        held = cast("dict[str, dict[str, int]]", here["held"])
        missing = [(blob, min(blob.size, held[digest]["bytes"])) for digest, blob in wanted.items() if not held[digest]["whole"]]
        need, free, start = sum(blob.size - begun for blob, begun in missing), cast(int, here["free"]), sent
        if need and need + SPARE > free:
            raise DeviceUnfit(
                f"{device.where}: {need + SPARE:,} bytes are needed in {device.root} and {free:,} are free; free some space, or name "
                "a folder on a larger disk: --on ssh://host/folder"
            )

        def tell(count: int) -> None:
            nonlocal sent
            sent += count
            progress(stage, sent - start, need)

        try:
            if missing:
                device.transport.send(device.ask, missing, tell)
        except Damaged as error:
            nonlocal damaged
            damaged += 1
            if damaged > 1:
                raise DeviceUnfit(f"{error}, twice; is it right here? edge inspect DIR --check") from None
            raise

    patiently(step, lambda: sent, heard, patience)

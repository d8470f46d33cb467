"""What happens on the device. Its source is sent with every request and run by the device's Python, which has nothing but its own library.

stdin: this source, the request (a line of JSON), then data if the request has any. stdout: lines of JSON behind MARK (a login script may
print others): ``alive`` now and then, ``error`` or ``done`` as the last. Below the root folder:

    blobs/SHA256  blobs/SHA256.partial     contents by digest, and what arrived of one; a name without ``.partial`` is whole and checked
    artifacts/NAME/  runtimes/NAME/        made of blobs: by links, and by pip
    runs/NAME/                             out, err, journal, code (of the exit), began, lock (held while it runs)
"""

import base64
import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

MARK = "@edgekit "
BEAT = 5.0
"""Seconds between two signs of life."""
PIECE = 1 << 20
Json = dict[str, Any]


class Refused(Exception):
    """kind: ``full``, ``busy``, ``damaged`` or ``failed``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


SAYING = threading.Lock()


def say(**what: object) -> None:
    line = (MARK + json.dumps(what) + "\n").encode()
    with SAYING:
        while line:
            line = line[os.write(1, line) :]


def probe(root: Path, request: Json, data: BinaryIO) -> Json:
    """Makes the folder, too. boot: changes when the device starts anew, None where the system does not tell."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {"root": str(root.resolve()), "python": platform.python_version(), "system": sys.platform, "machine": platform.machine()}


def tags(root: Path, request: Json, data: BinaryIO) -> Json:
    """What wheels fit: by the library that pip brings, which is the one to know. And what is installed here already."""
    sys.path.insert(0, str(root / "blobs" / request["pip"]))
    from importlib import metadata

    from pip._vendor.packaging.markers import default_environment  # type: ignore[import-not-found,unused-ignore]
    from pip._vendor.packaging.tags import sys_tags  # type: ignore[import-not-found,unused-ignore]

    found = list(sys_tags())
    return {
        "platforms": list(dict.fromkeys(tag.platform for tag in found)),
        "abis": list(dict.fromkeys(tag.abi for tag in found if tag.interpreter == found[0].interpreter)),
        "tags": list(map(str, found)),
        "implementation": found[0].interpreter[:2],
        "markers": default_environment(),
        "installed": {held.metadata["Name"]: held.version for held in metadata.distributions() if held.metadata["Name"]},
    }


def have(root: Path, request: Json, data: BinaryIO) -> Json:
    """How many bytes of each blob there are, and how many more fit."""
    held = {}
    for digest in request["digests"]:
        whole, partial = root / "blobs" / digest, root / "blobs" / f"{digest}.partial"
        place = whole if whole.exists() else partial
        held[digest] = {"bytes": place.stat().st_size if place.exists() else 0, "whole": whole.exists()}
    return {"held": held, "free": shutil.disk_usage(root).free}


def receive(root: Path, request: Json, data: BinaryIO) -> Json:
    """Blobs, one behind the other, each from its ``offset`` on; or as much of them as comes before the link breaks."""
    for blob in request["blobs"]:
        _write(root, blob, data)
    return {}


def join(root: Path, request: Json, data: BinaryIO) -> Json:
    """A piece of a blob, which lies in a file."""
    piece = Path(request["piece"])
    try:
        with piece.open("rb") as file:
            _write(root, request, file)
    finally:
        piece.unlink()
    return {}


def _write(root: Path, blob: Json, source: BinaryIO) -> None:
    digest, size, offset = blob["digest"], blob["size"], blob["offset"]
    (root / "blobs").mkdir(exist_ok=True)
    partial = root / "blobs" / f"{digest}.partial"
    # At its place, not at the end: what an earlier, broken link still delivers is written twice, not into the middle of something else.
    partial.touch(0o600)
    with partial.open("r+b") as file:
        file.seek(offset)
        while offset < size and (piece := source.read(min(PIECE, size - offset))):
            file.write(piece)
            offset += len(piece)
    if offset < size:
        return
    found = hashlib.sha256()
    with partial.open("rb") as held:
        while piece := held.read(PIECE):
            found.update(piece)
    if found.hexdigest() != digest:
        partial.unlink()
        raise Refused("damaged", f"what arrived has the sha256 {found.hexdigest()} instead of {digest}")
    partial.rename(root / "blobs" / digest)


def place(root: Path, request: Json, data: BinaryIO) -> Json:
    """A folder of the blobs under their names."""
    folder = root / "artifacts" / request["name"]
    if not folder.is_dir():
        with _new(folder) as new:
            for name, digest in request["files"].items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                _link(root / "blobs" / digest, new / name)
    return {"path": str(folder)}


def install(root: Path, request: Json, data: BinaryIO) -> Json:
    """Wheels into a folder of their own, by the pip that was sent. Reaches for no network."""
    folder = root / "runtimes" / request["name"]
    if folder.is_dir():
        return {"path": str(folder)}
    with _new(folder) as new:
        wheels = new / "wheels"
        wheels.mkdir()
        for name, digest in request["wheels"].items():
            _link(root / "blobs" / digest, wheels / name)
        pip = next(path for path in wheels.iterdir() if path.name.startswith("pip-"))
        given = [str(path) for path in wheels.iterdir() if path != pip]
        options = ["--no-index", "--no-deps", "--no-input", "--no-cache-dir", "--disable-pip-version-check", "--no-warn-script-location"]
        command = [sys.executable, "-I", f"{pip}/pip", "install", "--quiet", *options, "--target", str(new / "packages"), *given]
        # Unpacked here and not where /tmp is: that may be small, or not there.
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(new), "PIP_CONFIG_FILE": os.devnull}
        )
        if done.returncode:
            kind = "full" if os.strerror(errno.ENOSPC) in done.stderr or "No space left" in done.stderr else "failed"
            raise Refused(kind, "pip could not install the runtime: " + (done.stderr.strip().splitlines() or ["it said nothing"])[-1])
        shutil.rmtree(wheels)
    return {"path": str(folder)}


@contextlib.contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """A folder that is there when it is whole."""
    new = folder.with_name(folder.name + ".partial")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
            raise
        target.symlink_to(source)  # file systems of phones and cards


def start(root: Path, request: Json, data: BinaryIO) -> Json:
    """The command in a process that outlives the link. One that runs already, or ended well unseen, is that one.

    journal: what the other side has of it. A longer one here that begins with it stays.
    """
    folder = root / "runs" / request["name"]
    folder.mkdir(parents=True, exist_ok=True)
    known = base64.b64decode(request["journal"])
    lock = _lock(folder / "lock")
    device = _lock(root / "runs" / "lock") if lock is not None else None
    journal = folder / "journal"
    here = journal.read_bytes() if journal.exists() else b""
    code = folder / "code"
    ended = code.exists() and code.read_text() == "0"
    if lock is not None and not ended and device is None:
        raise Refused("busy", "another edge profile is running there, and two at once measure each other; wait for it, or end it")
    if not here.startswith(known):
        if lock is None or ended:
            raise Refused("busy", "a run of this is there with another journal; give that --journal, or wait for its end")
        here = known
    if lock is None or device is None or ended:
        return {"path": str(folder), "fresh": False}
    code.unlink(missing_ok=True)
    journal.write_bytes(here)
    for name in ("out", "err"):
        (folder / name).write_bytes(b"")
    if os.fork() == 0:
        _supervise(folder, [str(part) for part in request["command"]])
    return {"path": str(folder), "fresh": True}


def _lock(path: Path) -> int | None:
    """Held by this process and those it forks until the last ends; None where another has it."""
    import fcntl  # Windows, where this module is read for MARK, has none

    held = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def _supervise(folder: Path, command: list[str]) -> None:
    """In the new process, which has the locks: runs the command and writes down how it ended."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    (folder / "process").write_text(str(os.getpid()))
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        try:
            code = subprocess.run(command, stdin=nothing, stdout=out, stderr=err, cwd=folder).returncode
        except OSError as error:
            err.write(f"{command[0]}: {error}\n".encode())
            code = 127
    (folder / "code.new").write_text(str(code))
    (folder / "code.new").rename(folder / "code")
    os._exit(0)


def follow(root: Path, request: Json, data: BinaryIO) -> Json:
    """What the run says and measures, from the given places on, until it ends. code: of its exit, None where it vanished without one."""
    folder = root / "runs" / request["name"]
    at = {name: int(request[name]) for name in ("err", "journal")}
    while True:
        lock = _lock(folder / "lock")
        for name in at:
            with (folder / name).open("rb") as file:
                file.seek(at[name])
                new = file.read()
            if name == "journal":
                new = new[: new.rfind(b"\n") + 1]
            if new:
                at[name] += len(new)
                say(**{name: base64.b64encode(new).decode(), "at": at[name]})
        if lock is not None:
            os.close(lock)
            code = folder / "code"
            return {"code": int(code.read_text()) if code.exists() else None}
        time.sleep(0.2)


def call(root: Path, request: Json, data: BinaryIO) -> Json:
    """A short command; what it prints."""
    done = subprocess.run(request["command"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Refused("failed", (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return {"out": done.stdout}


def read(root: Path, request: Json, data: BinaryIO) -> Json:
    """A file, in pieces."""
    with Path(request["path"]).open("rb") as file:
        while piece := file.read(PIECE):
            say(data=base64.b64encode(piece).decode())
    return {}


def stop(root: Path, request: Json, data: BinaryIO) -> Json:
    """Ends the run, and what it started."""
    folder = root / "runs" / request["name"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 5
        while (lock := _lock(folder / "lock")) is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                os.killpg(int((folder / "process").read_text()), number)
            time.sleep(0.1)
        if lock is not None:
            os.close(lock)
    return {}


def forget(root: Path, request: Json, data: BinaryIO) -> Json:
    """The run, whose result was brought back; with ``everything`` the whole folder. Says what stays."""
    if request["everything"]:
        shutil.rmtree(root)
        return {"bytes": 0}
    shutil.rmtree(root / "runs" / request["name"], ignore_errors=True)
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            held = (Path(folder) / name).lstat()
            if (held.st_dev, held.st_ino) not in seen:
                seen.add((held.st_dev, held.st_ino))
                total += held.st_size
    return {"bytes": total}


VERBS: dict[str, Callable[[Path, Json, BinaryIO], Json]] = {
    call.__name__: call for call in (probe, tags, have, receive, join, place, install, start, follow, call, read, stop, forget)
}


def _beat() -> None:
    while True:
        time.sleep(BEAT)
        say(alive=True)


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    if request["verb"] != "start":  # which forks
        threading.Thread(target=_beat, daemon=True).start()
    try:
        say(done=VERBS[request["verb"]](Path(request["root"]).expanduser(), request, sys.stdin.buffer))
    except Refused as error:
        say(error=error.kind, message=str(error))
    except OSError as error:
        kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed"
        say(error=kind, message=f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))

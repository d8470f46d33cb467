"""A headless Chromium, spoken to over its debugging pipe."""

import contextlib
import fcntl
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 240.0
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Page:
    """One page. ``evaluate`` gives what an expression is worth, ``wait`` until one is true."""

    def __init__(self, into: int, out: int) -> None:
        self._into, self._out, self._buffer, self._last = into, out, b"", 0
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")

    def _call(self, method: str, **parameters: object) -> Any:
        self._last += 1
        message: dict[str, object] = {"id": self._last, "method": method, "params": parameters}
        if session := getattr(self, "_session", None):
            message["sessionId"] = session
        os.write(self._into, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                piece = os.read(self._out, 1 << 16)
                assert piece, "Chromium ended"
                self._buffer += piece
            raw, _, self._buffer = self._buffer.partition(b"\0")
            said = json.loads(raw)
            if said.get("id") == self._last:
                assert "error" not in said, said
                return said["result"]

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)

    def reload(self) -> None:
        self._call("Page.reload")

    def evaluate(self, expression: str) -> Any:
        got = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def wait(self, expression: str) -> Any:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):  # the page is between two documents
                if found := self.evaluate(expression):
                    return found
            time.sleep(0.1)
        raise AssertionError(f"{expression} never came true; the page says {self.evaluate('document.body.innerText')!r}")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """The files of ``directory``, on a port of this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def chromium(profile: Path, *, webgpu: bool = False) -> Iterator[Page]:
    """webgpu: computed by SwiftShader on the CPU, where there is no GPU."""
    name = program()
    assert name is not None
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    command = [name, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server"]
    command += [f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    command += ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"] if webgpu else ["--disable-gpu"]
    # It reads from 3 and writes to 4. Neither may be overwritten by the other's move.
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, from_write)]
    script = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
    start = [sys.executable, "-c", script, *map(str, high), *command]
    process = subprocess.Popen(start, pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for end in (to_read, from_write, *high):
        os.close(end)
    try:
        yield Page(to_write, from_read)
    finally:
        process.terminate()
        process.wait()
        os.close(to_write)
        os.close(from_read)

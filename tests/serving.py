"""``edge serve`` as a process of its own, for tests and benches."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Served:
    """url: without a path. process: the server's."""

    url: str
    process: "subprocess.Popen[str]"
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def end(self) -> int:
        """Asks it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(artifact: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Serves at a free port of this machine until the block ends."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "toolkit"), **(environment or {})}
    env.pop("EDGE_API_KEY", None) if environment is None or "EDGE_API_KEY" not in environment else None
    command = [sys.executable, "-m", "edgekit.cli", "serve", str(artifact), "--port", "0", *options]
    with tempfile.TemporaryDirectory(prefix="edgekit-serve-") as folder:
        log = Path(folder) / "log"
        with log.open("w", encoding="utf-8") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True, env=env)
        try:
            yield Served(_address(process, log), process, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _address(process: "subprocess.Popen[str]", log: Path) -> str:
    while process.poll() is None:
        if found := re.search(r"edge: .* at (http://\S+:\d+)/ ", log.read_text(encoding="utf-8")):
            return found[1]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise AssertionError(f"edge serve ended with {process.returncode}: {log.read_text(encoding='utf-8')}")

"""To an Android device by the real ``adb`` client and its server (Android's SDK platform-tools; Debian: ``apt install adb``)."""

import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import DeviceUnfit, LinkBroken, RemoteError, Unreachable, Untrusted
from edgekit.remote.transport import Ask, Blob, CommandFailed, Json, Tell, last_line, part_of, program_lines

PIECE = 32 << 20
"""Bytes pushed at once: the protocol cannot go on with half a file, so that a broken link costs at most so many."""
OWN = ("adb: ", "error: ", "* ")
"""What adb's own messages begin with."""
GONE = ("device offline", "couldn't read from device", "couldn't send", "failed to read", "protocol fault", "closed", "Connection reset")


@dataclass(frozen=True)
class Adb:
    """serial: as ``adb devices`` lists it; checked by ``address``."""

    serial: str
    root: str

    @property
    def where(self) -> str:
        return f"adb:{self.serial}"

    def command(self) -> list[str]:
        found = shutil.which("adb")
        if found is None:
            raise Unreachable(f"{self.where}: no adb here; install Android's platform-tools (Debian: apt install adb)")
        return [found, "-s", self.serial]

    def run(self, command: Sequence[str], data: Iterable[bytes]) -> Iterator[str]:
        # -T: no terminal, or what flows in and out would be changed. Without -x: the protocol that tells exit codes.
        return program_lines([*self.command(), "shell", "-T", shlex.join(command)], data, self.where, self.failure)

    def send(self, ask: Ask, blobs: Sequence[tuple[Blob, int]], tell: Tell) -> None:
        with tempfile.TemporaryDirectory(prefix="edgekit-adb-") as folder:
            for blob, held in blobs:
                for offset in range(held, max(blob.size, held + 1), PIECE):
                    self._send(ask, blob, offset, Path(folder) / "piece", tell)

    def _send(self, ask: Ask, blob: Blob, offset: int, piece: Path, tell: Tell) -> None:
        count = min(PIECE, blob.size - offset)
        with piece.open("wb") as file:
            file.writelines(part_of(blob.path, offset, count, lambda _: None))
        target = f"{self.root}/{blob.digest}.piece"
        self._sync("push", str(piece), target)
        request: Json = {"verb": "join", "digest": blob.digest, "size": blob.size, "offset": offset, "piece": target}
        for _ in ask(request):
            pass
        tell(count)

    def fetch(self, ask: Ask, source: str, target: Path) -> None:
        self._sync("pull", source, str(target))

    def _sync(self, verb: str, source: str, target: str) -> None:
        said: list[str] = []  # adb tells what failed on stdout
        try:
            said.extend(program_lines([*self.command(), verb, source, target], (), self.where, lambda _, err: RemoteError(err)))
        except LinkBroken:
            raise
        except RemoteError as error:
            raise self._sync_failure("\n".join([*said, str(error)])) from None

    def _sync_failure(self, said: str) -> RemoteError:
        told = next((line for line in said.splitlines() if line.startswith(OWN)), said)
        if "No space left" in said:
            return DeviceUnfit(f"{self.where}: the disk is full there ({last_line(told)}); free some space")
        if ": remote " in told:
            return DeviceUnfit(f"{self.where}: {last_line(told)}")
        return self._own(told)

    def failure(self, code: int, said: str) -> RemoteError:
        return self._own(said) if code == 1 and said.startswith(OWN) else CommandFailed(code, said)

    def _own(self, said: str) -> RemoteError:
        """By adb's messages (packages/modules/adb: client/, transport.cpp)."""
        first = last_line((said.splitlines() or [""])[0])
        if "unauthorized" in said:
            return Untrusted(f"{self.where}: it does not trust this computer yet; unlock it and allow USB debugging in the dialog it shows")
        if "not found" in said or "no devices" in said:
            return Unreachable(f"{self.where}: adb knows no such device; is it plugged in, with USB debugging on? `adb devices` lists them")
        if any(mark in said for mark in GONE):
            return LinkBroken(f"{self.where}: the connection broke: {first}")
        return Unreachable(f"{self.where}: {first}")

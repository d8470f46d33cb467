"""To a device by the system's own OpenSSH client, with the user's own settings, keys and known hosts.

Host keys are checked as the user's settings say; nothing here weakens that. Nothing is asked on a terminal: a key has a passphrase in an
agent, or none. (ssh(1), ssh_config(5).)
"""

import base64
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import LinkBroken, RemoteError, Unreachable, Untrusted
from edgekit.remote.transport import Ask, Blob, CommandFailed, Tell, last_line, part_of, program_lines

OPTIONS = (
    "-T",
    "-x",
    "-a",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=15",
    "-o",
    "ServerAliveInterval=10",
    "-o",
    "ServerAliveCountMax=3",
)
OWN = 255
"""The exit code of ssh itself; any other is the command's."""
BROKEN = ("closed by remote host", "Connection reset", "Broken pipe", "not responding", "Connection closed", "kex_exchange", "disconnect")


@dataclass(frozen=True)
class Ssh:
    """host, user and port were checked by ``address``: none can be taken for an option."""

    host: str
    user: str | None
    port: int | None
    root: str

    @property
    def where(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"

    def command(self) -> list[str]:
        """Up to the host; a shell there takes what follows as one line."""
        found = shutil.which("ssh")
        if found is None:
            raise Unreachable(f"{self.where}: no ssh here; install OpenSSH's client (Debian: apt install openssh-client)")
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return [found, *OPTIONS, *user, *port, "--", self.host]

    def run(self, command: Sequence[str], data: Iterable[bytes]) -> Iterator[str]:
        return program_lines([*self.command(), shlex.join(command)], data, self.where, self.failure)

    def send(self, ask: Ask, blobs: Sequence[tuple[Blob, int]], tell: Tell) -> None:
        listed = [{"digest": blob.digest, "size": blob.size, "offset": held} for blob, held in blobs]
        parts = (part for blob, held in blobs for part in part_of(blob.path, held, blob.size - held, tell))
        for _ in ask({"verb": "receive", "blobs": listed}, parts):
            pass

    def fetch(self, ask: Ask, source: str, target: Path) -> None:
        with target.open("wb") as file:
            for word in ask({"verb": "read", "path": source}):
                file.write(base64.b64decode(str(word.get("data", ""))))

    def failure(self, code: int, said: str) -> RemoteError:
        """By OpenSSH's messages (sshconnect.c, clientloop.c, packet.c), which are not translated."""
        if code != OWN:
            return CommandFailed(code, said)
        last = last_line(said)
        by_hand = "ssh " + (f"-p {self.port} " if self.port else "") + (f"{self.user}@" if self.user else "") + self.host
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
            return Untrusted(
                f"{self.where}: its host key is not the one known here: the device was set up anew, or something else answers in its "
                f"place. If you know that it is right: ssh-keygen -R {shlex.quote(self.known_as())}, then connect once with: {by_hand}"
            )
        if "ost key verification failed" in said or "host key is known for" in said:
            return Untrusted(f"{self.where}: its host key is not known here; connect once and compare its fingerprint: {by_hand}")
        if "Permission denied" in said or "Too many authentication failures" in said:
            return Untrusted(
                f"{self.where}: it does not take your key ({last}); make one with ssh-keygen and put it there with ssh-copy-id, load a key "
                f"that has a passphrase with ssh-add, and try: {by_hand}"
            )
        if any(mark in said for mark in BROKEN):
            return LinkBroken(f"{self.where}: the connection broke: {last}")
        return Unreachable(f"{self.where}: {last}; is it on, in this network, and does sshd run there? Try: {by_hand}")

    def known_as(self) -> str:
        """Its name in known_hosts."""
        return f"[{self.host}]:{self.port}" if self.port not in (None, 22) else self.host

"""An OpenSSH server of the test's own on loopback, with a key made for it, and a link to it that can be cut.

with sshd.serve(folder) as server: ...      # server.address(folder) for --on; server.bin goes in front of PATH: an ``ssh`` with its key
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
MISSING = next((f"no {name} here (Debian: make system-tools)" for name in ("ssh", "ssh-keygen") if shutil.which(name) is None), None)
MISSING = MISSING or ("no sshd here (Debian: make system-tools)" if SSHD is None else None)
if sys.platform != "linux":
    MISSING = "a server is only started on Linux"


@dataclass
class Server:
    """port: of sshd itself. cutter: what ``address`` leads through."""

    folder: Path
    port: int
    cutter: "Cutter"

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def address(self, root: Path | str = "") -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.cutter.port}{root}"

    def known(self, key: Path) -> None:
        """The client knows the server by this key, and by no other."""
        public = key.with_suffix(".pub").read_text().split()
        lines = [f"[127.0.0.1]:{port} {public[0]} {public[1]}\n" for port in (self.port, self.cutter.port)]
        (self.folder / "known_hosts").write_text("".join(lines))


@dataclass
class Cutter:
    """A port that leads to another, and cuts what flows through it: every connection that ``cuts`` has a number of bytes for, one after the
    other, after so many bytes from client to server (the last number stays). closed: takes no connection."""

    target: int
    cuts: list[int] = field(default_factory=list)
    closed: bool = False
    connections: int = 0
    carried: int = 0
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    open: list[socket.socket] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.closed:
                client.close()
                continue
            self.connections += 1
            limit = self.cuts.pop(0) if self.cuts else None
            server = socket.create_connection(("127.0.0.1", self.target))
            self.open += [client, server]
            for source, sink, most in ((client, server, limit), (server, client, None)):
                threading.Thread(target=self.carry, args=(source, sink, most), daemon=True).start()

    def carry(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if limit is not None and (limit := limit - len(data)) <= 0:
                    break
                self.carried += len(data) if limit is not None or source.getpeername()[1] != self.target else 0
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Everything that is open now."""
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path


@contextlib.contextmanager
def serve(folder: Path, *settings: str) -> Iterator[Server]:
    """``settings``: further lines of sshd_config."""
    assert SSHD is not None
    folder.mkdir(parents=True, exist_ok=True)
    host, user = make_key(folder / "host"), make_key(folder / "user")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    config = folder / "sshd_config"
    lines = [
        f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {host}", f"AuthorizedKeysFile {user}.pub", "StrictModes no", "UsePAM no",
        "PidFile none", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password",
        "MaxStartups 100", *settings,
    ]  # fmt: skip
    config.write_text("\n".join(lines) + "\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # privilege separation's, which a service would make
    server = Server(folder, port, Cutter(port))
    client = [
        "IdentitiesOnly yes",
        f"IdentityFile {user}",
        f"UserKnownHostsFile {folder / 'known_hosts'}",
        "GlobalKnownHostsFile /dev/null",
    ]
    (folder / "ssh_config").write_text("\n".join(client) + "\n")
    server.bin.mkdir()
    (server.bin / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder / "ssh_config"} "$@"\n')
    (server.bin / "ssh").chmod(0o755)
    server.known(host)
    with (folder / "log").open("wb") as log, server.cutter.listener:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=log, stdout=log)
        threading.Thread(target=server.cutter.serve, daemon=True).start()
        try:
            _wait(port, process, folder / "log")
            yield server
        finally:
            server.cutter.cut()
            process.terminate()
            process.wait()


def _wait(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())

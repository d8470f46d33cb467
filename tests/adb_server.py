"""What the real ``adb`` client takes for an adb server with one device: this machine, its shell and its files.

    with serve(Phone("emulator-5554")) as server: ...     # ANDROID_ADB_SERVER_PORT=server.port

Smart sockets, shell protocol v2 and sync v1, as in Android's packages/modules/adb (OVERVIEW.TXT, SERVICES.TXT, SYNC.TXT, shell_protocol.h).
"""

import contextlib
import os
import selectors
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MISSING = None if shutil.which("adb") else "no adb here (Debian: make system-tools)"
if sys.platform != "linux":
    MISSING = "the device that it plays is Linux"
VERSION = 41
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


@dataclass
class Phone:
    """state: ``device``, or what it fails with: ``unauthorized``, ``offline``. path: PATH of its shell. cut: the link ends in the middle of
    the next file, or command whose words contain ``cut_at``. full: the next file finds no space. log: services asked for."""

    serial: str
    state: str = "device"
    path: str = field(default_factory=lambda: os.environ["PATH"])
    cut: bool = False
    cut_at: str = ""
    full: bool = False
    log: list[str] = field(default_factory=list)
    open: list[socket.socket] = field(default_factory=list)

    def unplug(self) -> None:
        for link in self.open:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)


@dataclass
class Server:
    port: int


@contextlib.contextmanager
def serve(phone: Phone) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(link, phone), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield Server(int(listener.getsockname()[1]))
        phone.unplug()


def exactly(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = link.recv(count - len(data))
        if not piece:
            raise ConnectionError
        data += piece
    return data


def okay(link: socket.socket, text: str | None = None) -> None:
    link.sendall(b"OKAY" + (f"{len(text):04x}{text}".encode() if text is not None else b""))


def fail(link: socket.socket, text: str) -> None:
    link.sendall(b"FAIL" + f"{len(text):04x}{text}".encode())


def talk(link: socket.socket, phone: Phone) -> None:
    with link, contextlib.suppress(OSError, ValueError):
        while True:
            service = exactly(link, int(exactly(link, 4), 16)).decode()
            phone.log.append(service)
            if service == "host:version":
                okay(link, f"{VERSION:04x}")
                return
            if service.startswith(("host:transport:", "host:tport:serial:", "host-serial:")):
                if not reached(link, phone, service):
                    return
            elif service.startswith("shell,v2"):
                okay(link)
                shell(link, service.partition(":")[2], phone)
                return
            elif service == "sync:":
                okay(link)
                sync(link, phone)
                return
            else:
                fail(link, f"unknown service {service}")
                return


def reached(link: socket.socket, phone: Phone, service: str) -> bool:
    """Answers a choice of the device, or a question about it; whether more is to come."""
    if f":{phone.serial}" not in service:
        fail(link, f"device '{service.rpartition(':')[2]}' not found")
        return False
    if phone.state != "device":
        why = {"unauthorized": "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\nTry 'adb kill-server'."}
        fail(link, why.get(phone.state, f"device {phone.state}"))
        return False
    if service.endswith(":features"):
        okay(link, "shell_v2,cmd")
        return False
    okay(link)
    if service.startswith("host:tport:"):
        link.sendall(struct.pack("<Q", 1))
    phone.open.append(link)
    return True


def shell(link: socket.socket, command: str, phone: Phone) -> None:
    environment = {"PATH": phone.path, "HOME": "/", "PIP_NO_COMPILE": "1"}  # for speed
    pipe = subprocess.PIPE
    process = subprocess.Popen(["/bin/sh", "-c", command], stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    taker = threading.Thread(target=take, args=(link, process), daemon=True)
    taker.start()
    assert process.stdout is not None and process.stderr is not None
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ, STDOUT)
        waiting.register(process.stderr, selectors.EVENT_READ, STDERR)
        try:
            while waiting.get_map():
                for key, _ in waiting.select():
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        waiting.unregister(key.fileobj)
                        continue
                    if phone.cut_at and phone.cut_at.encode() in data:
                        phone.cut_at = ""
                        raise ConnectionError
                    packet(link, key.data, data)
            packet(link, EXIT, bytes([process.wait() & 255]))
            link.shutdown(socket.SHUT_WR)
            taker.join(30)  # closed with something unread, the link would be reset before the client has read its end
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)  # closing alone ends nothing while another thread reads


def packet(link: socket.socket, kind: int, data: bytes) -> None:
    link.sendall(struct.pack("<BI", kind, len(data)) + data)


def take(link: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        while True:
            kind, count = struct.unpack("<BI", exactly(link, 5))
            data = exactly(link, count)
            with contextlib.suppress(OSError, ValueError):  # it has ended, or closed its stdin
                if kind == CLOSE_STDIN:
                    process.stdin.close()
                if kind == STDIN:
                    process.stdin.write(data)
                    process.stdin.flush()


def sync(link: socket.socket, phone: Phone) -> None:
    while True:
        verb, count = struct.unpack("<4sI", exactly(link, 8))
        path = exactly(link, count).decode()
        phone.log.append(f"{verb.decode()} {path}")
        if verb == b"QUIT":
            return
        if verb == b"STAT":
            with contextlib.suppress(OSError):
                found = Path(path).stat()
                link.sendall(struct.pack("<4sIII", b"STAT", found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime)))
                continue
            link.sendall(struct.pack("<4sIII", b"STAT", 0, 0, 0))
        elif verb == b"SEND":
            store(link, path.rpartition(",")[0], phone)
        elif verb == b"RECV":
            data = Path(path).read_bytes()
            for start in range(0, len(data), 1 << 16):
                piece = data[start : start + (1 << 16)]
                link.sendall(struct.pack("<4sI", b"DATA", len(piece)) + piece)
            link.sendall(struct.pack("<4sI", b"DONE", 0))


def store(link: socket.socket, path: str, phone: Phone) -> None:
    with Path(path).open("wb") as file:
        while True:
            verb, count = struct.unpack("<4sI", exactly(link, 8))
            if verb == b"DONE":
                break
            data = exactly(link, count)
            if phone.cut:
                phone.cut = False
                raise ConnectionError
            if phone.full:
                message = b"write failed: No space left on device"
                link.sendall(struct.pack("<4sI", b"FAIL", len(message)) + message)
                time.sleep(0.5)  # as the device does, it takes what is on the way, and the client reads the answer
                raise ConnectionError
            file.write(data)
    Path(path).chmod(stat.S_IRUSR | stat.S_IWUSR)
    link.sendall(struct.pack("<4sI", b"OKAY", 0))

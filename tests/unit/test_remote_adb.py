"""``edge profile --on adb:``: the real adb client against a server of the test's own, whose device is this machine, not a phone."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import adb_server
import wheelhouse
from adb_server import Phone
from command import Edge
from edgekit.errors import DeviceUnfit, LinkBroken, Unreachable, Untrusted, UsageError
from edgekit.profile import report
from edgekit.progress import silent
from edgekit.remote import adb, bundle, device
from edgekit.remote import address as addresses
from edgekit.remote.adb import Adb
from edgekit.remote.device import connect, upload
from tiny_artifact import build_tiny

pytestmark = pytest.mark.skipif(adb_server.MISSING is not None, reason=adb_server.MISSING or "")
SERIAL = "emulator-5554"


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    plugged = Phone(SERIAL, path=f"{wheelhouse.python(tmp_path / 'python')}:{os.environ['PATH']}")
    with adb_server.serve(plugged) as server:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.port))
        monkeypatch.setattr(device, "PAUSES", (0.1,))
        yield plugged


@pytest.fixture
def way(tmp_path: Path) -> Adb:
    return Adb(SERIAL, str(tmp_path / "phone"))


def test_profile_over_adb(phone: Phone, tmp_path: Path, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the link cut while it measures."""
    wheels = wheelhouse.fill(tmp_path / "wheels", *wheelhouse.RUNTIME)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(addresses, "ANDROID", str(tmp_path / "phone"))
    phone.cut_at = '"journal":'
    artifact = build_tiny(tmp_path / "made", "null")
    quick = ("--prompt", "8", "--tokens", "2", "--rounds", "1", "--loads", "1")
    done = edge("profile", str(artifact), "--on", f"adb:{SERIAL}", "--json", "--no-keep", *quick)
    assert done.code == 0, done.err
    assert report.from_json(json.loads(done.out), "test").complete
    assert phone.cut_at == "" and not (tmp_path / "phone").exists()
    assert any(line.startswith("SEND ") for line in phone.log) and any(line.startswith("RECV ") for line in phone.log)


def test_a_piece_that_was_cut_is_sent_again_and_no_other(phone: Phone, way: Adb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "PIECE", 1 << 20)
    data = tmp_path / "data"
    data.write_bytes(os.urandom(3_500_000))
    found = connect(way)

    calls = list[int]()

    def progress(stage: str, done: int, total: int, /) -> None:
        calls.append(done)
        phone.cut = len(calls) == 1

    upload(found, [bundle.blob(data)], "test", progress, lambda _: None, 60)
    assert (tmp_path / "phone" / "blobs" / bundle.blob(data).digest).read_bytes() == data.read_bytes()
    assert sum(line.startswith("SEND ") for line in phone.log) == 5


def test_an_empty_file(phone: Phone, way: Adb, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    upload(connect(way), [bundle.blob(tmp_path / "empty")], "test", silent, lambda _: None, 5)
    assert [path.stat().st_size for path in (tmp_path / "phone" / "blobs").iterdir()] == [0]


def test_full_disk(phone: Phone, way: Adb, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 100_000)
    found = connect(way)
    phone.full = True
    with pytest.raises(DeviceUnfit, match=r"the disk is full there.*No space left on device"):
        upload(found, [bundle.blob(tmp_path / "data")], "test", silent, lambda _: None, 5)


def test_no_python_there(phone: Phone, way: Adb, tmp_path: Path) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    phone.path = str(tmp_path)
    with pytest.raises(DeviceUnfit, match=r"needs a Python 3.10 or newer there.*Android: see docs/remote.md"):
        connect(way)


def test_link_that_is_cut_at_once(phone: Phone, way: Adb) -> None:
    phone.cut_at = "@edgekit"
    with pytest.raises(LinkBroken, match="it ended before it had answered"):
        connect(way)


@pytest.mark.parametrize(
    ("state", "kind", "message"), [("unauthorized", Untrusted, "allow USB debugging"), ("offline", LinkBroken, "device offline")]
)
def test_phone_that_does_not_answer(phone: Phone, way: Adb, state: str, kind: type[Exception], message: str) -> None:
    phone.state = state
    with pytest.raises(kind, match=message):
        connect(way)


def test_another_serial(phone: Phone, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="adb knows no such device"):
        connect(Adb("another", str(tmp_path)))


def test_without_adb(monkeypatch: pytest.MonkeyPatch, way: Adb) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unreachable, match="no adb here; install Android's platform-tools"):
        connect(way)


@pytest.mark.parametrize("text", ["adb:-s", "adb:", "adb:a b", "adb:x;reboot"])
def test_hostile_serials(text: str) -> None:
    with pytest.raises(UsageError):
        addresses.address(text)

"""``edge profile --on ssh://``, really: the system's ssh against an sshd of the test's own. The device: a folder with a hostile name."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sshd
import wheelhouse
from command import Edge
from edgekit.artifact import Artifact, load_artifact
from edgekit.errors import DeviceUnfit, LinkBroken, RemoteError, Unreachable, Untrusted
from edgekit.profile import report
from edgekit.profile.report import Report, Settings
from edgekit.progress import silent
from edgekit.remote import bundle, command, device, run
from edgekit.remote.address import address
from edgekit.remote.command import profile_elsewhere
from edgekit.remote.device import connect, upload
from edgekit.remote.run import Wishes, profile_on
from edgekit.remote.ssh import Ssh
from sshd import Server
from tiny_artifact import build_tiny

pytestmark = pytest.mark.skipif(sshd.MISSING is not None, reason=sshd.MISSING or "")

FOLDER = '/de\'v $(touch pwned) `touch pwned` "ice"'
QUICK = ("--prompt", "8", "--tokens", "2", "--rounds", "1", "--loads", "1")


def with_path(script: Path, path: str) -> str:
    """A setting of sshd: commands find programs there, also after the user's own .bashrc, which may put a Python into PATH."""
    script.write_text(f'#!/bin/sh\nPATH={path}\neval "$SSH_ORIGINAL_COMMAND"\n')
    script.chmod(0o755)
    return f"ForceCommand {script}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """In front of PATH lies its ssh; pip finds its packages in a folder, and no network."""
    base = tmp_path_factory.mktemp("ssh")
    wheels = wheelhouse.fill(base / "wheels", *wheelhouse.RUNTIME)
    settings = ("SetEnv PIP_NO_COMPILE=1", with_path(base / "login", f"{wheelhouse.python(base / 'python')}:$PATH"))
    with pytest.MonkeyPatch.context() as patch, sshd.serve(base / "sshd", *settings) as served:
        patch.setenv("PATH", f"{served.bin}:{os.environ['PATH']}")
        for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}.items():
            patch.setenv(name, value)
        yield served


@pytest.fixture(scope="module")
def place(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An address whose folder all tests share: the runtime is installed there once."""
    return server.address(f"{tmp_path_factory.mktemp('device')}{FOLDER}")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return load_artifact(build_tiny(tmp_path_factory.mktemp("artifact"), "null"))


@pytest.fixture(autouse=True)
def open_link(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(device, "PAUSES", (0.1,))
    yield
    server.cutter.closed, server.cutter.cuts = False, []


def over_ssh(text: str) -> Ssh:
    found = address(text)
    assert isinstance(found, Ssh)
    return found


def root(place: str) -> Path:
    return Path(over_ssh(place).root)


def test_profile_is_brought_back_and_only_what_changed_travels(server: Server, place: str, artifact: Artifact, edge: Edge) -> None:
    carried = []
    for _ in range(2):
        before = server.cutter.carried
        done = edge("profile", str(artifact.directory), "--on", place, "--json", *QUICK)
        assert done.code == 0, done.err
        found = report.from_json(json.loads(done.out), "test")
        assert found.complete and found.prefill[0].tokens == 8 and found.subject.directory == str(artifact.directory)
        carried.append(server.cutter.carried - before)
    assert carried[0] > 20e6 and carried[1] < 1e6
    left = sorted(path.name for path in root(place).iterdir())
    assert left == ["artifacts", "blobs", "runs", "runtimes"] and [path.name for path in (root(place) / "runs").iterdir()] == ["lock"]
    assert not list(root(place).parent.parent.rglob("pwned")) and not Path("pwned").exists()


def test_link_cut_while_measuring_and_a_device_that_starts_anew(server: Server, place: str, artifact: Artifact, tmp_path: Path) -> None:
    journal, said = tmp_path / "journal", list[str]()

    def send(number: int) -> None:
        os.killpg(int(next((root(place) / "runs").glob("*/process")).read_text()), number)

    def tell(line: str) -> None:
        said.append(line)
        if "cold load" in line and sum("cold load" in old for old in said) == 1:
            send(signal.SIGSTOP)  # or it would be over before the link is back
            server.cutter.cut()
        if "going on with it" in line:
            send(signal.SIGKILL)

    outcome = profile_on(over_ssh(place), artifact, Wishes(QUICK, journal), tell, silent)
    assert report.from_json(outcome.document, "test").complete and outcome.broken is None
    assert any("going on with it" in line for line in said) and any("has vanished" in line for line in said)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    parts = [line.get("part") for line in lines]
    assert parts[0] is None and len(set(parts)) == len(parts), "a measurement was made twice"


def test_a_link_that_stays_broken_ends_with_what_was_measured(
    server: Server, place: str, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, wanted = tmp_path / "journal", Settings((8,), 2, 1, 1, None, 0.0)

    def tell(line: str) -> None:
        if "warm load" in line:
            server.cutter.closed = True
            server.cutter.cut()

    def measure(tell: Callable[[str], None]) -> tuple[Report, RemoteError | None]:
        said: dict[str, Path | None] = {"journal_path": journal, "trace": None}
        return profile_elsewhere(over_ssh(place), artifact.directory, wanted, **said, keep=True, command="c", tell=tell, progress=silent)

    monkeypatch.setattr(command, "Wishes", lambda *given: Wishes(*given, patience=0.5))
    found, broken = measure(tell)
    assert isinstance(broken, LinkBroken | Unreachable)
    assert re.search(r"[12] measurements are kept in .*journal; the same command goes on after them", str(broken))
    assert not found.complete and found.bandwidth is not None and found.prefill == () and found.machine.cores >= 1
    assert any(part.part == "length/8" and "the connection broke" in part.reason for part in found.missing)
    server.cutter.closed = False
    found, broken = measure(lambda _: None)
    assert found.complete and broken is None


def test_an_upload_that_is_cut_goes_on_where_it_was(server: Server, place: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(os.urandom(12 << 20))
    found = connect(over_ssh(place))
    before = server.cutter.carried
    server.cutter.cuts = [1 << 20, 8 << 20]  # the first is a question
    heard = list[str]()
    upload(found, [bundle.blob(data)], "test", silent, heard.append, 60)
    assert len(heard) == 1 and "the connection broke" in heard[0]
    assert server.cutter.carried - before < 16 << 20, "what had arrived was sent again"
    assert (root(place) / "blobs" / bundle.blob(data).digest).read_bytes() == data.read_bytes()


def test_bytes_that_are_not_those_of_the_manifest(place: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"abc")
    with pytest.raises(DeviceUnfit, match=r"what arrived has the sha256 .*, twice; is it right here\? edge inspect DIR --check"):
        upload(connect(over_ssh(place)), [bundle.Blob(data, "0" * 64, 3)], "test", silent, lambda _: None, 60)


def test_what_fails_there_is_that_error_here(place: str, artifact: Artifact) -> None:
    with pytest.raises(Exception, match="a prompt of 4000 tokens") as caught:
        profile_on(over_ssh(place), artifact, Wishes(("--prompt", "4000"), None), lambda _: None, silent)
    assert type(caught.value).__name__ == "UsageError" and str(caught.value).startswith("ssh://")


def test_two_at_once(place: str, artifact: Artifact) -> None:
    runs = root(place) / "runs"
    runs.mkdir(exist_ok=True)
    with subprocess.Popen(["flock", str(runs / "lock"), "sleep", "60"]) as holder:
        time.sleep(0.5)
        with pytest.raises(DeviceUnfit, match="another edge profile is running there"):
            profile_on(over_ssh(place), artifact, Wishes(QUICK, None), lambda _: None, silent)
        holder.kill()


def test_no_keep_leaves_nothing(server: Server, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = connect(over_ssh(server.address(tmp_path / "other")))
    assert Path(found.root).is_dir()
    request = run.Run(found, "x", (), tmp_path / "journal", {})
    said = list[str]()
    run._leave(request, Wishes((), None, keep=False), said.append)
    assert not Path(found.root).exists() and said == []


def test_nobody_listens(server: Server) -> None:
    server.cutter.closed = False
    with pytest.raises(Unreachable, match="Connection refused"):
        connect(over_ssh("ssh://127.0.0.1:1"))


def test_refused_in_the_middle_of_a_handshake(server: Server, place: str) -> None:
    server.cutter.closed = True
    with pytest.raises(LinkBroken, match="the connection broke"):
        connect(over_ssh(place))


def test_host_key_changed_or_unknown(server: Server, place: str, tmp_path: Path) -> None:
    try:
        server.known(sshd.make_key(tmp_path / "another"))
        with pytest.raises(Untrusted, match=r"its host key is not the one known here.*ssh-keygen -R '\[127.0.0.1\]:\d+'"):
            connect(over_ssh(place))
        (server.folder / "known_hosts").write_text("")
        with pytest.raises(Untrusted, match="its host key is not known here"):
            connect(over_ssh(place))
    finally:
        server.known(server.folder / "host")


def test_wrong_key(server: Server, place: str, tmp_path: Path) -> None:
    config = server.folder / "ssh_config"
    kept = config.read_text()
    try:
        config.write_text(kept.replace(str(server.folder / "user"), str(sshd.make_key(tmp_path / "another"))))
        with pytest.raises(Untrusted, match="it does not take your key"):
            connect(over_ssh(place))
    finally:
        config.write_text(kept)


@pytest.mark.parametrize(
    ("script", "message"),
    [(None, "needs a Python 3.10 or newer there.*it has none of python3"), ("echo @edgekit /bin/python3 3 8", "/bin/python3 is 3.8")],
)
def test_missing_or_old_python(server: Server, tmp_path: Path, script: str | None, message: str) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to("/bin/sh")
    if script is not None:
        (tools / "python3").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "python3").chmod(0o755)
    with sshd.serve(tmp_path / "bare", with_path(tmp_path / "alone", str(tools))) as bare, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{bare.bin}:{os.environ['PATH']}")
        with pytest.raises(DeviceUnfit, match=message):
            connect(over_ssh(bare.address(tmp_path)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk(server: Server, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.write_bytes(os.urandom(5 << 20))
    found = connect(over_ssh(server.address(small_disk)))
    send: Callable[[], None] = lambda: upload(found, [bundle.blob(data)], "test", silent, lambda _: None, 5)  # noqa: E731
    with pytest.raises(DeviceUnfit, match=r"[\d,]+ bytes are needed in .* and [\d,]+ are free"):
        send()
    monkeypatch.setattr(device, "SPARE", -(100 << 20))  # another program fills it meanwhile
    with pytest.raises(DeviceUnfit, match=r"the disk is full there.*No space left on device"):
        send()

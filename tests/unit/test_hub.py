"""Downloads from a hub that misbehaves, in a subprocess: cuts, wrong lengths, wrong bytes, busy answers, redirects to other hosts."""

import contextlib
import hashlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from edgekit.hub import without_secrets
from hub_client import World
from hub_server import Fault, Repo, serve

pytest.importorskip("huggingface_hub", minversion="1.0")

TOKEN = "hf_thisIsNoRealToken"
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_checkpoint(tmp_path_factory.mktemp("hub") / "m", "llama", shards=2)
    (directory / "LICENSE").touch()  # empty
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def gets(log: list[str], name: str = SHARD) -> list[str]:
    """The ranges of the GETs of a file."""
    return [line.partition(name)[2].strip() for line in log if line.startswith("GET /org") and name in line]


def right(found: dict[str, object], model: Path) -> bool:
    """The downloaded directory holds the model's bytes, and the cache nothing but whole files."""
    assert "error" not in found, found
    directory = Path(str(found["directory"]))
    blobs = directory.parents[1] / "blobs"
    assert not [path.name for path in blobs.iterdir() if not path.name.isalnum()]
    return all((directory / path.name).read_bytes() == path.read_bytes() for path in model.iterdir())


SIZE_HALF = 40_000


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ([Fault(cut=SIZE_HALF)], ["", f"bytes={SIZE_HALF}-"]),
        ([Fault(cut=SIZE_HALF), Fault(cut=SIZE_HALF), Fault(cut=0)], ["", f"bytes={SIZE_HALF}-", f"bytes={2 * SIZE_HALF}-"]),
        ([Fault(cut=SIZE_HALF), Fault(no_range=True)], ["", f"bytes={SIZE_HALF}-"]),
        ([Fault(status=503), Fault(status=500), Fault(status=429)], ["", "", "", ""]),
        ([Fault(cut=SIZE_HALF), Fault(status=502)], ["", f"bytes={SIZE_HALF}-", f"bytes={SIZE_HALF}-"]),
    ],
    ids=["cut", "cut again and again", "cut, then no ranges", "busy", "cut, then busy"],
)
def test_what_passes_is_waited_for(model: Path, cache: Path, faults: list[Fault], ranges: list[str]) -> None:
    with serve({"org/m": Repo(model, faults={SHARD: list(faults)})}) as hub:
        assert right(World(hub, Repo(model), cache).resolve("org/m"), model)
        assert gets(hub.log)[: len(ranges)] == ranges


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_api_is_waited_for(model: Path, cache: Path, status: int) -> None:
    with serve({"org/m": Repo(model, faults={"api": [Fault(status=status), Fault(status=status)]})}) as hub:
        assert right(World(hub, Repo(model), cache).resolve("org/m"), model)


def test_patience_ends(model: Path, cache: Path) -> None:
    with serve({"org/m": Repo(model, faults={SHARD: [Fault(status=503)] * 99})}) as hub:
        found = World(hub, Repo(model), cache).resolve("org/m")
        assert found["error"] == "DownloadError" and "503" in found["message"] and "Run it again" in found["message"]
        assert len(gets(hub.log)) == 4
    with serve({"org/m": Repo(model, faults={SHARD: [Fault(status=429, after="100000")]})}) as hub:
        found = World(hub, Repo(model), cache).resolve("org/m")
        assert found["error"] == "DownloadError" and "429" in found["message"]
        assert right(World(hub, Repo(model), cache).resolve("org/m"), model)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(flip=5000), f"{SHARD}: what arrived is not what the hub has (sha256 "),
        (Fault(more=10), "more bytes arrive than the"),
        (Fault(less=10), "bytes arrived, the hub says"),
    ],
    ids=["wrong bytes", "too long", "too short"],
)
def test_what_is_wrong_is_refused_and_never_kept(model: Path, cache: Path, fault: Fault, message: str) -> None:
    with serve({"org/m": Repo(model, faults={SHARD: [fault]})}) as hub:
        world = World(hub, Repo(model), cache)
        found = world.resolve("org/m")
        assert found["error"] == "DownloadError" and message in found["message"]
        digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in model.glob("*.safetensors")}
        held = {path.name: path for path in cache.rglob("blobs/*") if path.name in digests}
        assert all(hashlib.sha256(path.read_bytes()).hexdigest() == name for name, path in held.items())
        assert world.resolve("org/m", offline=True)["error"] == "DownloadError", "nor is the rest taken for the whole"
        assert right(world.resolve("org/m"), model)


def test_a_small_file_is_compared_by_gits_digest(model: Path, cache: Path) -> None:
    with serve({"org/m": Repo(model, faults={"tokenizer.json": [Fault(flip=100)]})}) as hub:
        found = World(hub, Repo(model), cache).resolve("org/m")
        assert found["error"] == "DownloadError" and "tokenizer.json: what arrived is not what the hub has (sha1 " in found["message"]
        assert right(World(hub, Repo(model), cache).resolve("org/m"), model)


def test_a_mirror_without_digests_is_refused(model: Path, cache: Path) -> None:
    with serve({"org/m": Repo(model, etag="abc-1")}) as hub:
        found = World(hub, Repo(model), cache).resolve("org/m")
        assert found["error"] == "DownloadError" and "does not say its digest and size (ETag 'abc-1')" in found["message"]


@pytest.mark.parametrize("fault", [None, Fault(flip=5000)], ids=["right", "wrong"])
def test_without_symbolic_links(model: Path, cache: Path, fault: Fault | None) -> None:
    """As on Windows: huggingface_hub itself writes the files, and what it wrote is compared."""
    with serve({"org/m": Repo(model, faults={SHARD: [fault] if fault else []})}) as hub:
        world = World(hub, Repo(model), cache)
        found = world.resolve("org/m", env={"HF_HUB_DISABLE_SYMLINKS": "1"})
        if fault is not None:
            assert found["error"] == "DownloadError" and "what arrived is not what the hub has" in found["message"]
            found = world.resolve("org/m", env={"HF_HUB_DISABLE_SYMLINKS": "1"})
        assert right(found, model)


def half_is_here(cache: Path) -> bool:
    for path in cache.rglob("blobs/*.edgekit-partial"):
        with contextlib.suppress(FileNotFoundError):  # a small file is complete, and renamed, by the time one looks
            if path.stat().st_size == SIZE_HALF:
                return True
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_another_process_goes_on_where_a_killed_one_stopped(model: Path, cache: Path, number: signal.Signals) -> None:
    with serve({"org/m": Repo(model, faults={SHARD: [Fault(cut=SIZE_HALF, hold=True)]})}) as hub:
        world = World(hub, Repo(model), cache)
        with world.start("org/m") as process:
            while not half_is_here(cache):
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            process.communicate(timeout=60)
        found = world.resolve("org/m")
        assert right(found, model)
        assert gets(hub.log) == ["", f"bytes={SIZE_HALF}-"]
        done = [now for _, now, _ in found["calls"]]
        assert done == sorted(done) and done[-1] == found["calls"][-1][2]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_file_another_process_downloads_is_left_to_it(model: Path, cache: Path) -> None:
    with serve({"org/m": Repo(model, faults={SHARD: [Fault(cut=SIZE_HALF, hold=True)]})}) as hub:
        world = World(hub, Repo(model), cache)
        with world.start("org/m") as process:
            while not half_is_here(cache):
                assert process.poll() is None
                time.sleep(0.02)
            found = world.resolve("org/m")
            assert found["error"] == "DownloadError" and f"is being downloaded by process {process.pid} on" in found["message"]
            process.kill()
            process.communicate()
        assert right(world.resolve("org/m"), model)


@pytest.fixture(params=["HEAD", "GET"])
def elsewhere(request: pytest.FixtureRequest, model: Path) -> Iterator[tuple[Repo, list[str | None], list[str]]]:
    """A hub whose large files lie on another host, told at the HEAD request as the real one does, or at the GET only."""
    with serve({"org/m": Repo(model)}) as storage:
        other = storage.url.replace("127.0.0.1", "localhost")
        yield Repo(model, storage=other, late=request.param == "GET"), storage.tokens, storage.log


def test_a_token_goes_to_the_hub_and_nowhere_else(model: Path, cache: Path, elsewhere: tuple[Repo, list[str | None], list[str]]) -> None:
    repo, tokens, log = elsewhere
    with serve({"org/m": repo}) as hub:
        found = World(hub, repo, cache).resolve("org/m", env={"HF_TOKEN": TOKEN})
        assert right(found, model)
        assert set(hub.tokens) == {f"Bearer {TOKEN}"}
    assert len([line for line in log if "safetensors" in line and line.startswith("GET")]) == 2
    assert set(tokens) == {None}
    assert TOKEN not in str(found)


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(status=404), Fault(flip=9), Fault(cut=0), Fault(more=9)])
def test_tokens_and_signatures_are_never_told(model: Path, cache: Path, fault: Fault) -> None:
    with serve({"org/m": Repo(model, faults={SHARD: [fault] * 20})}) as storage:
        repo = Repo(model, storage=storage.url.replace("127.0.0.1", "localhost"))
        with serve({"org/m": repo}) as hub:
            found = World(hub, repo, cache).resolve("org/m", env={"HF_TOKEN": TOKEN})
            api = World(hub, replace(repo, faults={"api": [fault] * 20}), cache / "2").resolve("org/n", env={"HF_TOKEN": TOKEN})
    assert found["error"] and api["error"]
    for text in (str(found), str(api)):
        assert TOKEN not in text and "topsecret" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://me:pass@mirror/x?sig=1 failed", "GET https://***@mirror/x?*** failed"),
        ("for url 'https://h/x?X-Amz-Signature=a&b=c'.", "for url 'https://h/x?***'."),
        (f"bad token {TOKEN}!", "bad token hf_***!"),
        ("no such file: /a?b", "no such file: /a?b"),
    ],
)
def test_secrets_in_messages(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_file_name_cannot_leave_the_cache(tmp_path: Path, model: Path, cache: Path) -> None:
    """What a digest is called comes from the hub: it becomes a file name only if it is one."""
    with serve({"org/m": Repo(model, etag="../../../../escaped")}) as hub:
        found = World(hub, Repo(model), cache).resolve("org/m")
    assert found["error"] == "DownloadError" and not list(tmp_path.rglob("*escaped*"))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]

"""The cache on its own: where it lies, what a damaged or foreign file does, what goes first when it is full."""

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from command import Edge
from edgekit import cache
from edgekit.cache import ABANDONED, PARTIAL, Cache, groups, load, make_room, open_cache, parse_size, prune, source_files, store
from edgekit.errors import UsageError
from edgekit.progress import silent

ABOUT = {"model": "m", "file": "model.safetensors", "format": "INT4 g32"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return open_cache()


def fill(own: Cache, *names: str, size: int = 968) -> None:
    """Blocks of 1000 bytes, 32 of them their digest, each used an hour after the one before it, the last an hour ago."""
    for age, name in enumerate(reversed(names), 1):
        store(own, name[0], name, [b"x" * size], ABOUT)
        used = time.time() - 3600 * age
        os.utime(own.directory / "blocks" / name[0] / name, (used, used))


def there(own: Cache) -> set[str]:
    return {path.name for path in own.directory.glob("blocks/*/*")} - {"about.json"}


@pytest.mark.parametrize(
    ("platform", "environment", "place"),
    [
        ("linux", {}, "~/.cache/edgekit"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/edgekit"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "~/.cache/edgekit"),
        ("darwin", {}, "~/Library/Caches/edgekit"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/edgekit/Cache"),
        ("win32", {}, "~/AppData/Local/edgekit/Cache"),
        ("darwin", {"EDGEKIT_CACHE": "/own"}, "/own"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the paths are POSIX paths")
def test_place_on_each_platform(monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], place: str) -> None:
    for name in ("EDGEKIT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert open_cache().directory == Path(place).expanduser()


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("12", 12), ("3 kB", 3000), ("1.5MB", 1_500_000), ("20gb", 20 * 10**9), ("1TB", 10**12)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "here") == size


@pytest.mark.parametrize("text", ["", "x", "-1", "5GiB", "1e9", "GB"])
def test_what_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--limit: .* is no size; write it like 20GB"):
        parse_size(text, "--limit")
    monkeypatch.setenv("EDGEKIT_CACHE_LIMIT", text or "?")
    with pytest.raises(UsageError, match="EDGEKIT_CACHE_LIMIT"):
        open_cache()


def test_a_block_comes_back(own: Cache) -> None:
    assert load(own, "g", "0-8", 6) is None
    store(own, "g", "0-8", [b"abc", memoryview(b"def")], ABOUT)
    assert load(own, "g", "0-8", 6) == b"abcdef"
    (group,) = groups(own)
    assert (group.model, group.file, group.format, group.blocks, group.bytes) == ("m", "model.safetensors", "INT4 g32", 1, 38)


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty", "moved", "other size"])
def test_a_damaged_block_is_not_given_out_and_reported(own: Cache, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    store(own, "g", "0-8", [b"abcdef"], ABOUT)
    path = own.directory / "blocks" / "g" / "0-8"
    raw = path.read_bytes()
    name = "0-8"
    if damage == "moved":
        name = "8-16"
        path.rename(path.with_name(name))
    elif damage != "other size":
        path.write_bytes({"flipped": raw[:-1] + b"g", "short": raw[:-1], "long": raw + b"g", "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert load(own, "g", name, 5 if damage == "other size" else 6) is None
    assert f"{path.with_name(name)} in the cache is damaged; it is made anew" in caplog.text


def test_a_place_that_cannot_be_written_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    blocked = Cache(tmp_path / "file" / "cache", 10**9)
    for name in ("a", "b"):
        store(blocked, "g", name, [b"x"], ABOUT)
    assert caplog.text.count("nothing more is kept in the cache") == 1


def test_least_recently_used_goes_first(own: Cache) -> None:
    fill(own, "a1", "b1", "a2", "b2")
    assert load(own, "a", "a1", 968) is not None  # the oldest, used just now
    pruned = prune(own, 2500)
    assert (pruned.files, pruned.bytes, pruned.left, pruned.stuck) == (2, 2000, 2000, 0)
    assert there(own) == {"a1", "b2"}
    assert [group.name for group in groups(own)] == ["a", "b"]
    assert prune(own, 2500).files == 0
    assert prune(own, 0).left == 0
    assert not list(own.directory.glob("blocks/*")), "empty groups go too"


def test_pruning_an_absent_cache_is_fine(own: Cache) -> None:
    assert prune(own, 0).files == 0
    assert groups(own) == []
    assert not own.directory.exists()


def test_what_killed_builders_left_goes_when_it_is_old(own: Cache) -> None:
    fill(own, "a1")
    old, new = (own.directory / "blocks" / "a" / f"{PARTIAL}{name}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    then = time.time() - ABANDONED - 60
    os.utime(old, (then, then))
    prune(own, 10**9)
    assert not old.exists() and new.exists()
    assert there(own) == {"a1", new.name}
    assert sum(group.blocks for group in groups(own)) == 1


def test_weights_beyond_the_limit_or_the_disk_are_not_kept(
    own: Cache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_room(own, 1000)
    assert not own.full.is_set()
    make_room(own, own.limit + 1)
    store(own, "g", "0-8", [b"x"], ABOUT)
    assert not own.directory.exists()
    assert "they take about 20 GB, the limit is 20 GB" in caplog.text
    small = Cache(own.directory, 10**9)
    usage = type(shutil.disk_usage(Path.cwd()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**8))
    make_room(small, 10**8)
    assert small.full.is_set()
    assert "has 0.1 GB free" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="there files are digested each time")
def test_a_file_is_digested_once_until_it_changes(own: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    read: list[str] = []

    def digest() -> str:
        read.clear()
        return source_files([path], own, lambda stage, done, total: read.append(stage), None)[path].sha256

    first = digest()
    assert read
    assert digest() == first and read, "written a moment ago: a change within the same tick could not be told"
    monkeypatch.setattr(cache, "SETTLED", -(10**12))
    assert digest() == first and read
    assert digest() == first and not read
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest() != first and read, "same size and time, but changed"
    (kept,) = (own.directory / "sources").iterdir()
    kept.write_text("{", encoding="utf-8")
    assert digest() != first and read
    assert source_files([path], None, silent, 1)[path].sha256 == digest()


def test_list_and_prune_commands(edge: Edge, own: Cache) -> None:
    empty = edge("cache", "list")
    assert empty.code == 0 and "0 B of at most 20 GB" in empty.out
    fill(own, "a1", "b1")
    listed = json.loads(edge("cache", "list", "--json").out)
    assert (listed["directory"], listed["limit"], listed["bytes"]) == (str(own.directory), 20 * 10**9, 2000)
    assert [(e["name"], e["model"], e["blocks"]) for e in listed["entries"]] == [("b", "m", 1), ("a", "m", 1)]
    assert "INT4 g32" in edge("cache", "list").out
    assert edge("cache", "prune", "--limit", "1kB").out == "removed 1 files, 1 kB; 1 kB left\n"
    assert there(own) == {"b1"}
    assert edge("cache", "prune").out == "removed 0 files, 0 B; 1 kB left\n"
    assert json.loads(edge("cache", "prune", "--all", "--json").out) == {
        "directory": str(own.directory),
        "files": 1,
        "bytes": 1000,
        "left": 0,
        "stuck": 0,
    }
    refused = edge("cache", "prune", "--all", "--limit", "1GB")
    assert refused.code == 2 and "contradict" in refused.err
    assert edge("cache", "prune", "--limit", "much").code == 2


RACE = """
    import sys
    from pathlib import Path
    from edgekit.cache import Cache, groups, load, prune, store

    bad = 0
    for n in range(150):
        own = Cache(Path(sys.argv[1]), 1 << 40)
        for k in range(3):
            store(own, f"g{(n + k) % 5}", f"0-{n}", [b"x" * 100], {"model": "m", "file": "f", "format": "g"})
            load(own, f"g{k}", f"0-{n}", 100)
        groups(own)
        prune(own, 0)
        bad += own.full.is_set()
    print(bad)
"""


def test_builders_that_prune_at_the_same_time(tmp_path: Path) -> None:
    """Neither ends in a traceback, nor stops keeping because the other removed a directory between two calls."""
    environment = {**os.environ, "PYTHONPATH": str(Path(cache.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(RACE), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ended = [process.communicate() for process in running]
    assert [(process.returncode, *said) for process, said in zip(running, ended, strict=True)] == [(0, "0\n", "")] * 4


@pytest.mark.parametrize("kind", ["a file", "blocks are a file", "not to be read"])
def test_what_is_no_cache_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    place = tmp_path / "cache"
    if kind == "a file":
        place.write_text("x", encoding="utf-8")
    else:
        place.mkdir()
        (place / "blocks").write_text("x", encoding="utf-8")
        (place / "sources").write_text("x", encoding="utf-8")
    if kind == "not to be read":
        if sys.platform == "win32" or os.getuid() == 0:
            pytest.skip("everything may be read")
        place.chmod(0)
    for _ in range(3):  # as build, calibration and the gate open it
        own = Cache(place, 1 << 40)
        for name in "abc":
            assert load(own, "g", name, 3) is None
            store(own, "g", name, [b"abc"], {})
        assert groups(own) == [] and prune(own, 0).files == 0
    assert len(caplog.records) == 1


def test_a_name_that_is_no_utf8(own: Cache, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"model\xff.safetensors")
    try:
        path.write_bytes(b"weights")
    except OSError:
        pytest.skip("this file system takes no such name")
    os.utime(path, (1, 1))
    digest = source_files([path], own, silent, 1)[path].sha256
    assert source_files([path], own, silent, 1)[path].sha256 == digest
    store(own, "g", "b", [b"abc"], {"model": str(path), "file": path.name, "format": "f"})
    assert groups(own)[0].bytes


def test_an_empty_file_is_kept(own: Cache, tmp_path: Path) -> None:
    from edgekit import cache_files

    (tmp_path / "empty").touch()
    (tmp_path / "to").mkdir()
    cache_files.keep(own, "g", {"empty": tmp_path / "empty"}, {})
    assert cache_files.restore(own, "g", tmp_path / "to") and (tmp_path / "to" / "empty").read_bytes() == b""

"""Updates: what travels, that the new artifact comes out byte for byte, and that nothing but the old or the new one is ever there."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgekit
from command import Edge
from edgekit.artifact import MANIFEST, SIGNATURE, check_digests, load_artifact
from edgekit.errors import ArtifactError, EdgekitError, OutputError, SignatureError, UsageError
from edgekit.output import replacing
from edgekit.signing import Trust, make_keys, sign
from edgekit.updates.apply import apply, roll_back
from edgekit.updates.chunks import FINE, LARGE, SMALL, chunks
from edgekit.updates.diff import _Index, _pieces, diff
from edgekit.updates.patch import MAGIC
from tiny_artifact import build_tiny


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same model, rounded to a grid or not."""
    folder = tmp_path_factory.mktemp("two")
    return build_tiny(folder / "old", "onnx"), build_tiny(folder / "new", "onnx", grid=7)


@pytest.fixture(scope="module")
def update(two: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("update") / "new.update"
    diff(*two, path)
    return path


@pytest.fixture
def device(two: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(two[0], tmp_path / "device" / "model"))


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("size", "grain"), [(0, SMALL), (50_000, SMALL), (FINE + 12_345, LARGE)])
def test_chunks_cover_a_file_and_follow_its_content(size: int, grain: object) -> None:
    data = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    found = list(chunks(data))
    assert sum(length for _, length, _ in found) == size
    assert all(b == a + n for (a, n, _), (b, _, _) in itertools.pairwise(found))
    assert not found or max(n for _, n, _ in found) <= (SMALL if grain is SMALL else LARGE).most
    moved = list(chunks(np.concatenate([np.zeros(4096, np.uint8), data])))
    assert len({d for *_, d in found} - {d for *_, d in moved}) <= 2


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.lists(st.tuples(st.sampled_from(["change", "insert", "delete", "move"]), st.integers(0, 9_999), st.integers(1, 900)), max_size=8),
)
def test_pieces_give_the_new_file(seed: int, edits: list[tuple[str, int, int]]) -> None:
    random = np.random.default_rng(seed)
    old = random.integers(0, 256, 10_000, dtype=np.uint8)
    new = old
    for kind, at, count in edits:
        cut = new[at : at + count]
        if kind == "change":
            new = np.concatenate([new[:at], cut ^ 255, new[at + count :]])
        elif kind == "insert":
            new = np.concatenate([new[:at], random.integers(0, 256, count, dtype=np.uint8), new[at:]])
        else:
            new = np.concatenate([new[:at], new[at + count :], cut if kind == "move" else cut[:0]])
    pieces, made, at = list(_pieces(new, _Index({"old": old}))), b"", 0
    for piece in pieces:
        made += (new[at : at + piece.length] if piece.old is None else old[piece.offset : piece.offset + piece.length]).tobytes()
        at += piece.length
    assert made == new.tobytes()
    fresh = sum(piece.length for piece in pieces if piece.old is None)
    assert fresh <= sum(count + 2 * SMALL.most for _, _, count in edits)


def test_what_did_not_change_does_not_travel(two: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = two[0], Path(shutil.copytree(two[0], tmp_path / "new"))
    keys = make_keys(tmp_path / "k")
    sign(new, keys[0], release=1)
    made = diff(old, new, tmp_path / "update")
    assert made.bytes < 2000 < made.total


def test_apply_and_roll_back(two: tuple[Path, Path], device: Path, update: Path) -> None:
    old, new = map(contents, two)
    apply(update, device)
    assert contents(device) == new
    assert contents(device.parent / "model.previous") == old
    assert sorted(p.name for p in device.parent.iterdir()) == ["model", "model.previous"]
    left = device.parent / ".model.partial-0123abcd"  # of an apply that was killed after the switch
    left.mkdir()
    with pytest.raises(ArtifactError, match="already"):
        apply(update, device)
    assert not left.exists()
    roll_back(device)
    assert contents(device) == old
    apply(update, device)
    assert contents(device) == new and contents(device.parent / "model.previous") == old
    roll_back(device)
    roll_back(device)
    assert contents(device) == new


def test_apply_into_another_directory(two: tuple[Path, Path], device: Path, update: Path, tmp_path: Path) -> None:
    apply(update, device, out=tmp_path / "other")
    assert contents(device) == contents(two[0]) and contents(tmp_path / "other") == contents(two[1])
    with pytest.raises(OutputError, match="exists"):
        apply(update, device, out=tmp_path / "other")


def test_for_another_artifact(two: tuple[Path, Path], update: Path, tmp_path: Path) -> None:
    other = build_tiny(tmp_path / "third", "null")
    with pytest.raises(ArtifactError, match="is not for"):
        apply(update, other)
    with pytest.raises(UsageError, match="nothing to update"):
        diff(two[0], two[0], tmp_path / "none")
    with pytest.raises(OutputError, match="--force"):
        diff(*two, update)


def test_a_damaged_old_artifact_is_not_carried_on(two: tuple[Path, Path], device: Path, update: Path) -> None:
    path = device / "tokenizer.json"
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: its content"):
        apply(update, device)
    assert contents(device)["tokenizer.json"] == data and [p.name for p in device.parent.iterdir()] == ["model"]


def test_any_changed_byte_of_an_update_is_noticed(two: tuple[Path, Path], device: Path, update: Path, tmp_path: Path) -> None:
    old, good, random = contents(device), update.read_bytes(), Random(3)
    places = [*range(16), *random.sample(range(16, len(good)), 40)]
    for at in places:
        bad = bytearray(good)
        bad[at] ^= random.randrange(1, 256)
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(EdgekitError):
            apply(tmp_path / "bad", device)
        assert contents(device) == old and [p.name for p in device.parent.iterdir()] == ["model"]
    for length in (0, 7, 15, 100, len(good) - 1):
        (tmp_path / "bad").write_bytes(good[:length])
        with pytest.raises(ArtifactError, match="no update, or a damaged one"):
            apply(tmp_path / "bad", device)
    assert contents(device) == old


def header_of(update: Path) -> tuple[dict[str, object], bytes]:
    raw = update.read_bytes()
    end = 16 + int.from_bytes(raw[8:16], "little")
    header: dict[str, object] = json.loads(zlib.decompress(raw[16:end]))
    return header, raw[end:]


HOSTILE = {
    "out of the old file": lambda f: f["tokenizer.json"].__setitem__(0, [10**12, "tokenizer.json", 0]),
    "a file of the host": lambda f: f["tokenizer.json"].__setitem__(0, [100, "/etc/passwd", 0]),
    "before its file": lambda f: f["tokenizer.json"].__setitem__(0, [100, "tokenizer.json", -5]),
    "no length": lambda f: f["tokenizer.json"].__setitem__(0, [0]),
    "a path out": lambda f: f.__setitem__("../evil", [[1, "tokenizer.json", 0]]),
    "a file too many": lambda f: f.__setitem__("evil.json", [[1, "tokenizer.json", 0]]),
    "a file too few": lambda f: f.pop("tokenizer.json"),
    "too much": lambda f: f.__setitem__("tokenizer.json", f["tokenizer.json"] * 3),
    "a manifest of weights": lambda f: f.__setitem__(MANIFEST, [[5, "model.onnx.data", 0]]),
    "a long manifest": lambda f: f.__setitem__(MANIFEST, [[4096, MANIFEST, 0]] * 5000),
    "a long signature": lambda f: f.__setitem__(SIGNATURE, [[4096, "model.onnx.data", 0]] * 5000),
    "no manifest": lambda f: f.pop(MANIFEST),
    "not numbers": lambda f: f["tokenizer.json"].__setitem__(0, ["x", "tokenizer.json", 0]),
    "not pieces": lambda f: f.__setitem__("tokenizer.json", 7),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header(device: Path, update: Path, tmp_path: Path, what: str) -> None:
    header, rest = header_of(update)
    HOSTILE[what](header["files"])  # type: ignore[no-untyped-call]
    packed = zlib.compress(json.dumps(header).encode())
    (tmp_path / "bad").write_bytes(MAGIC + len(packed).to_bytes(8, "little") + packed + rest)
    old = contents(device)
    with pytest.raises(ArtifactError, match=r"no update, or a damaged one|is damaged"):
        apply(tmp_path / "bad", device)
    assert contents(device) == old and [p.name for p in device.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("text", [b"{}", b"[]", b"[" * 100_000, b'{"files": 1}', b" " * (1 << 26)])
def test_a_header_that_is_none(device: Path, tmp_path: Path, text: bytes) -> None:
    packed = zlib.compress(text)
    (tmp_path / "bad").write_bytes(MAGIC + len(packed).to_bytes(8, "little") + packed)
    with pytest.raises(ArtifactError, match="no update, or a damaged one"):
        apply(tmp_path / "bad", device)


def test_signed_updates(two: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = (Path(shutil.copytree(two[i], tmp_path / name)) for i, name in enumerate(("old", "new")))
    keys, other = make_keys(tmp_path / "ours"), make_keys(tmp_path / "theirs")
    trust, update = Trust((keys[1],)), tmp_path / "update"
    sign(old, keys[0], release=5)
    diff(old, new, update)
    with pytest.raises(SignatureError, match="not signed"):
        apply(update, old, trust=trust)
    with pytest.raises(SignatureError, match="brings release without a number"):
        apply(update, old)
    sign(new, other[0], release=6)
    diff(old, new, update, force=True)
    with pytest.raises(SignatureError, match="none of the trusted keys"):
        apply(update, old, trust=trust)
    sign(new, keys[0], release=4)
    diff(old, new, update, force=True)
    with pytest.raises(SignatureError, match=r"brings release 4, and .* is release 5"):
        apply(update, old, trust=trust)
    assert contents(old)["tokenizer.json"] and not (tmp_path / "old.previous").exists()
    apply(update, old, trust=trust, downgrade=True)
    assert contents(old) == contents(new)


def test_where_directories_cannot_change_places(device: Path, update: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.output._exchange", lambda: None)
    old = contents(device)
    with pytest.raises(OutputError, match="--out DIR"):
        apply(update, device)
    assert contents(device) == old


def test_two_at_a_time(device: Path, update: Path) -> None:
    with replacing(device) as staging, pytest.raises(OutputError, match="is being written by process"):
        shutil.copytree(device, staging, dirs_exist_ok=True)
        apply(update, device)


KILLS = """
    import os, shutil, signal, sys
    from pathlib import Path
    from edgekit.artifact import check_digests, load_artifact
    from edgekit.errors import EdgekitError
    from edgekit.updates.apply import apply, roll_back

    what, folder, update = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    model, previous = folder / "model", folder / "model.previous"
    WATCHED = ("open", "os.", "shutil.", "fcntl.", "ctypes.dlsym")
    ends = []
    for at in range(10_000):
        shutil.rmtree(folder)
        folder.mkdir()
        shutil.copytree(folder.parent / "two" / "0", model)
        shutil.copytree(folder.parent / "two" / "1", previous)
        if not (child := os.fork()):
            left = at

            def hook(event, arguments):
                global left
                if event.startswith(WATCHED):
                    left -= 1
                    if left == -1:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            try:
                roll_back(model) if what == "roll_back" else apply(update, model)
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitpid(child, 0)[1]
        for directory in (model, previous):
            check_digests(load_artifact(directory))
        ends.append((model / "edgekit.json").read_bytes() == (folder.parent / "two" / "1" / "edgekit.json").read_bytes())
        assert ended in (0, signal.SIGKILL)
        if not ended:
            break
    assert ends[0] is False and ends[-1] is True and sorted(ends) == ends, ends
    print(len(ends))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and exchanges two directories")
@pytest.mark.parametrize("what", ["roll_back", "apply"])
def test_killed_before_each_call_of_the_system(two: tuple[Path, Path], update: Path, tmp_path: Path, what: str) -> None:
    """At each there is a whole artifact on the device, and one to go back to."""
    for i, artifact in enumerate(two):
        shutil.copytree(artifact, tmp_path / "two" / str(i))
    (tmp_path / "device").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(KILLS), what, str(tmp_path / "device"), str(update)]
    environment = {**os.environ, "PYTHONPATH": str(Path(edgekit.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_roll_back_waits_for_nobody(two: tuple[Path, Path], device: Path, update: Path) -> None:
    apply(update, device)
    with replacing(device) as staging, pytest.raises(OutputError, match="is being written by process"):
        shutil.copytree(device, staging, dirs_exist_ok=True)
        roll_back(device)


def test_roll_back_to_what_is_damaged_or_not_there(two: tuple[Path, Path], device: Path, update: Path) -> None:
    apply(update, device)
    previous, new = device.parent / "model.previous", contents(device)
    kept = (previous / "tokenizer.json").read_bytes()
    (previous / "tokenizer.json").write_bytes(kept[:-1] + b" ")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: its content"):
        roll_back(device)
    (previous / MANIFEST).rename(previous / "aside")
    with pytest.raises(ArtifactError, match="no edgekit"):
        roll_back(device)
    assert contents(device) == new
    (previous / "aside").rename(previous / MANIFEST)
    (previous / "tokenizer.json").write_bytes(kept)
    shutil.rmtree(device)  # by hand, or by a full disk
    roll_back(device)
    assert contents(device) == contents(two[0]) and [p.name for p in device.parent.iterdir()] == ["model"]


def test_roll_back_keeps_to_a_pinned_key(two: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = (Path(shutil.copytree(two[i], tmp_path / name)) for i, name in enumerate(("old", "new")))
    keys = make_keys(tmp_path / "ours")
    trust = Trust((keys[1],))
    sign(new, keys[0], release=2)
    diff(old, new, tmp_path / "update")
    apply(tmp_path / "update", old, trust=trust)  # the first signed one replaces one that was not
    with pytest.raises(SignatureError, match="not signed"):
        roll_back(old, trust=trust)
    assert contents(old) == contents(new)
    roll_back(old)
    assert contents(old) == contents(two[0])
    assert roll_back(old, trust=Trust((keys[1],), release=2)).release == 2


def test_commands(edge: Edge, two: tuple[Path, Path], device: Path, tmp_path: Path) -> None:
    ended = edge("diff", str(two[0]), str(two[1]), "--out", str(tmp_path / "u"), "--json")
    assert ended.code == 0 and json.loads(ended.out)["bytes"] == (tmp_path / "u").stat().st_size
    assert edge("apply", str(tmp_path / "u"), str(device), "--quiet").code == 0
    check_digests(load_artifact(device))
    assert contents(device) == contents(two[1])
    assert edge("rollback", str(device)).code == 0 and contents(device) == contents(two[0])
    again = edge("rollback", str(two[0]))
    assert again.code == ArtifactError.exit_code and ".previous" in again.err

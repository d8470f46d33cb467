"""Where an artifact is written: whole or not at all, alone, and put right after a builder that was killed at any point."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import lock, output
from edgekit.artifact import MANIFEST, check_digests, list_files, load_artifact
from edgekit.errors import ArtifactError, OutputError
from edgekit.lock import Held, locked
from edgekit.output import check_free, check_output, seal, writing
from edgekit.progress import silent
from manifests import manifest, write

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(output.__file__).parent.parent), str(Path(__file__).parent.parent)])}
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and file systems")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    directory = tmp_path / "a"
    write(directory, {"weights.bin": b"12345", "sub/graph.onnx": b"g"})
    return directory


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), writing(tmp_path / "a") as staging:
        (staging / "x").write_bytes(b"x")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied"), (errno.EIO, "cannot write")],
)
def test_a_disk_that_refuses_is_an_output_error(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(OutputError, match=message), writing(tmp_path / "a"):
        raise OSError(number, "refused")
    assert list(tmp_path.iterdir()) == []


def test_a_block_without_manifest_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"without its edgekit\.json"), writing(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_kept_without_force(artifact: Path) -> None:
    before = (artifact / MANIFEST).read_bytes()
    with pytest.raises(OutputError, match="--force"):
        write(artifact, {"new": b"n"})
    assert (artifact / MANIFEST).read_bytes() == before


def test_force_replaces_an_artifact_only_by_a_complete_one(artifact: Path) -> None:
    before = (artifact / MANIFEST).read_bytes()
    with pytest.raises(ValueError, match="broken"), writing(artifact, force=True):
        raise ValueError("broken")
    assert (artifact / MANIFEST).read_bytes() == before
    write(artifact, {"new": b"n"}, force=True)
    assert list(load_artifact(artifact).manifest.files) == ["new"]
    assert [p.name for p in artifact.parent.iterdir()] == [artifact.name]


def test_force_never_replaces_what_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years", encoding="utf-8")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name in ("home", "file"):
        with pytest.raises(OutputError, match="choose another"):
            write(tmp_path / name, {"new": b"n"}, force=True)
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_an_empty_directory_may_be_filled_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", {"x": b"x"})
    write(tmp_path / "deep" / "er" / "a", {"x": b"x"})
    assert load_artifact(tmp_path / "deep" / "er" / "a").manifest.target == "cpu"
    assert load_artifact(tmp_path / "empty").manifest.target == "cpu"


def test_rename_that_fails_puts_the_old_artifact_back(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (artifact / MANIFEST).read_bytes()
    rename = Path.rename

    def refuse(self: Path, goal: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "refused")
        return rename(self, goal)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError):
        write(artifact, {"new": b"n"}, force=True)
    assert (artifact / MANIFEST).read_bytes() == before
    assert [p.name for p in artifact.parent.iterdir()] == [artifact.name]


# Alone


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as staging:
        with pytest.raises(OutputError, match=rf"a is being written by process {os.getpid()} on .*; wait until that is done"):
            write(tmp_path / "a", {"x": b"x"})
        with pytest.raises(OutputError, match="is being written by process"):
            check_free(tmp_path / "a")
        check_free(tmp_path / "b")
        assert staging.is_dir(), "what the first one writes is not taken for a killed builder's"
        write(tmp_path / "b", {"x": b"x"})
        seal(staging, manifest(**list_files(staging, silent)))
    write(tmp_path / "a", {"x": b"x"}, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


HOLD = """
import sys
from pathlib import Path
from edgekit.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@posix
def test_a_lock_ends_with_the_process_that_holds_it_even_killed(tmp_path: Path) -> None:
    path = tmp_path / ".a.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(Held, match=f"process {process.pid} on "), locked(path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.exists(), "nobody was left to remove it"
    with locked(path):
        pass
    assert not path.exists()


def test_a_lock_file_of_no_sense_is_anothers_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "l"
    for text in ("", "{}", '{"pid": "x", "host": 1}', "[1]"):
        with locked(path):
            path.write_text(text, encoding="utf-8")
            with pytest.raises(Held, match="another process"), locked(path):
                pass
    path.write_text('{"pid": 1, "host": "gone"}', encoding="utf-8")
    with locked(path):
        pass


def test_many_who_want_a_lock_get_it_one_at_a_time(tmp_path: Path) -> None:
    """Each removes the file as it goes, under the feet of those who have just opened it."""
    path, inside, most, served = tmp_path / "l", 0, 0, 0

    def want() -> None:
        nonlocal inside, most, served
        for _ in range(200):
            try:
                with locked(path):
                    inside += 1
                    most = max(most, inside)
                    served += 1
                    inside -= 1
            except Held:
                pass

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and served > 0 and not path.exists()


@posix
def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years", encoding="utf-8")
    (tmp_path / ".a.lock").symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(OutputError):
        write(tmp_path / "a", {"x": b"x"})
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(handle: int) -> bool:
        raise OSError(number, "no locks")

    monkeypatch.setattr(lock, "_try", refuse)
    with pytest.raises(OutputError, match=r"no locks, .*build on a local disk and copy the artifact"):
        write(tmp_path / "a", {"x": b"x"})


# After a builder that was killed


def leave(parent: Path, kind: str, contents: dict[str, bytes]) -> Path:
    """A directory as a killed builder of ``a`` leaves it, complete."""
    write(parent / "elsewhere", contents)
    return (parent / "elsewhere").rename(parent / f".a.{kind}-0123abcd")


def test_what_a_killed_builder_left_goes_and_nothing_else(artifact: Path) -> None:
    parent = artifact.parent
    leave(parent, "partial", {"half": b"h"})
    leave(parent, "old", {"older": b"o"})
    others = [".a.partial-mine", ".ab.partial-0123abcd", "a.partial-0123abcd", ".a.old-0123ABCD"]
    for name in others:
        (parent / name).mkdir()
    (parent / ".a.partial-ffffffff").write_text("a file of somebody's", encoding="utf-8")
    with pytest.raises(OutputError, match="--force"):
        write(artifact, {"new": b"n"})
    assert (parent / ".a.partial-0123abcd").exists(), "a build that is refused at once touches nothing"
    write(artifact, {"new": b"n"}, force=True)
    assert sorted(p.name for p in parent.iterdir()) == sorted(["a", ".a.partial-ffffffff", *others])


def test_killed_between_its_two_renames_the_old_artifact_comes_back(tmp_path: Path) -> None:
    leave(tmp_path, "old", {"older": b"o"})
    leave(tmp_path, "partial", {"newer": b"n"})
    with pytest.raises(OutputError, match="--force"):
        write(tmp_path / "a", {"new": b"n"})
    assert list(load_artifact(tmp_path / "a").manifest.files) == ["older"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_old_artifact_that_is_half_removed_does_not_come_back(tmp_path: Path) -> None:
    (leave(tmp_path, "old", {"older": b"o"}) / "older").unlink()
    write(tmp_path / "a", {"new": b"n"})
    assert list(load_artifact(tmp_path / "a").manifest.files) == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


DYING = """
import os, signal, sys
from pathlib import Path
from manifests import write

calls = 0
def dies_at(name, real):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call

for name in ("fsync", "ftruncate", "write", "rmdir", "unlink"):
    setattr(os, name, dies_at(name, getattr(os, name)))
for name in ("rename", "unlink", "mkdir", "write_bytes", "write_text"):
    setattr(Path, name, dies_at(name, getattr(Path, name)))
write(Path(sys.argv[1]), {"new.bin": b"new" * 1000, "two": b"2"}, force=True)
print(calls)
"""


@posix
@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replacing"])
def test_killed_before_each_single_step(tmp_path: Path, replaced: bool) -> None:
    """Every call that changes the disk in turn: what is there afterwards is the old artifact or the new one, whole, or nothing."""
    directory = tmp_path / "a"
    seen = set()
    for step in range(1, 100):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        if replaced:
            write(directory, {"old.bin": b"old"})
        command = [sys.executable, "-c", DYING, str(directory), str(step)]
        done = subprocess.run(command, env=ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1"}, cwd=Path(__file__).parent, capture_output=True)
        complete = {path.name: set(whole(path)) for path in tmp_path.iterdir() if whole(path)}
        seen.update("new" if "new.bin" in files else "old" for files in complete.values())
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not replaced or complete, "the old artifact or the new one is there"
        write(directory, {"third": b"3"}, force=True)
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
        assert whole(directory) == {"third"}
    assert step > 15 and step == int(done.stdout) + 1
    assert seen == ({"old", "new"} if replaced else {"new"})


def whole(path: Path) -> set[str]:
    """Names of the files of an artifact that opens; it must then be complete."""
    try:
        opened = load_artifact(path)
    except ArtifactError:
        return set()
    check_digests(opened)
    return set(opened.manifest.files)


# Disks that are full, read-only or not ours


@contextlib.contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        yield


def test_a_place_that_cannot_be_written_is_seen_before_the_long_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing(monkeypatch), pytest.raises(OutputError, match="permission denied; choose a place you may write to"):
        check_output(tmp_path / "deep" / "a", force=False)
    assert list(tmp_path.iterdir()) == []


def in_a_mount(tmp_path: Path, options: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` with a small file system mounted at ``tmp_path / "disk"``, in a name space of its own; skips where that may not be."""
    disk = tmp_path / "disk"
    disk.mkdir()
    apart = ["unshare", "--mount"] if sys.platform == "linux" and os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o {options} none {disk}"
    try:
        tried = subprocess.run([*apart, "sh", "-c", mount], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if tried.returncode:
        pytest.skip(f"nothing may be mounted here: {tried.stderr.strip()}")
    command = [*apart, "sh", "-c", f'{mount} && cd {disk} && exec "$0" -c "$1"', sys.executable, code]
    return subprocess.run(command, env=ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, timeout=120)


def test_a_read_only_file_system(tmp_path: Path) -> None:
    done = in_a_mount(tmp_path, "size=1m,ro", "from pathlib import Path; from manifests import write; write(Path('a'), {'x': b'x'})")
    assert "OutputError: cannot write a: the file system is read-only; choose another place: --out DIR" in done.stderr


FILL = """
import os
from pathlib import Path
from checkpoints import make_checkpoint
from edgekit.build import build
from edgekit.errors import OutputError

def fill(stage, done, total):
    if stage == {stage!r} and not Path("filler").exists():
        with open("filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass

model = make_checkpoint(Path({model!r}), "llama")
try:
    build(model, target="cpu", output="a", progress=fill, cached={cached}, verify=False)
except OutputError as error:
    print(error)
print(sorted(os.listdir()))
os.unlink("filler")
build(model, target="cpu", output="a", verify=False)
print(sorted(os.listdir()))
"""


@pytest.mark.parametrize(("stage", "cached"), [("digest of the model", False), ("quantize", True)])
def test_a_disk_that_gets_full_in_the_middle_of_a_build(tmp_path: Path, stage: str, cached: bool) -> None:
    """A real one: somebody else fills it while the weights are written; nothing of the build stays, and afterwards it can be built."""
    pytest.importorskip("onnxruntime")
    done = in_a_mount(tmp_path, "size=36m", FILL.format(stage=stage, cached=cached, model=str(tmp_path / "model")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "cannot write a: the disk is full; free some space or choose another place: --out DIR",
        "['filler']",
        "['a']",
    ]


@pytest.mark.parametrize("name", ["a" * 250, "é" * 125, "a" * 255])
def test_names_of_any_length_that_a_file_system_takes(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    write(place, {"x.bin": b"one"})
    left = tmp_path / output._named(place, "partial", "0123abcd").name
    left.mkdir()
    assert len(left.name.encode()) <= 255
    write(place, {"x.bin": b"two"}, force=True)
    assert load_artifact(place).manifest.files["x.bin"].bytes == 3
    assert not left.exists(), "what a killed build left is known by its name"
    if sys.platform == "linux":
        with output.replacing(place) as staging:
            shutil.copytree(place, staging, dirs_exist_ok=True)
        load_artifact(output.previous_of(place))


def test_a_name_that_is_too_long_is_told_before_the_long_job(tmp_path: Path) -> None:
    for place in (tmp_path / ("a" * 256), tmp_path / ("a" * 300) / "b"):
        with pytest.raises(OutputError, match="longer than the file system takes"):
            check_output(place, force=False)


def test_two_long_names_that_begin_alike_do_not_meet(tmp_path: Path) -> None:
    first, second = tmp_path / ("a" * 249 + "1"), tmp_path / ("a" * 249 + "2")
    with output.alone_with(first), output.alone_with(second):
        left = output._named(second, "partial", "0123abcd")
        left.mkdir()
        output._put_right(first)
        assert left.exists()


def test_a_directory_whose_name_is_no_utf8(tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"out\xff")
    try:
        place.mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    write(place, {"x.bin": b"one"})
    with pytest.raises(OutputError, match="exists"):
        write(place, {"x.bin": b"one"})

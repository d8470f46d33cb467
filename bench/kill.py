"""Kills builds with SIGKILL at random moments, for every engine installed, and looks at what they left and how the next one goes on.

    python bench/kill.py --kills 150 --engine null --engine openvino --out bench/results/kill_null_openvino.json
    python bench/kill.py --kills 150 --seed 2 --engine onnx --engine mlx --out bench/results/kill_onnx_mlx.json

After each kill: a directory that opens as an artifact holds what its manifest says, byte for byte, and is the old or the new one; where
an artifact was being replaced, one of both is there. Then the build is run again: every byte, manifest included, is that of a build nobody
disturbed, nothing else lies beside it, and no block that the killed one kept was quantized anew. POSIX.
"""

import argparse
import collections
import json
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "tests")]

from checkpoints import Variant, make_checkpoint  # noqa: E402
from edgekit.artifact import check_digests, load_artifact  # noqa: E402
from edgekit.engines import ENGINES  # noqa: E402
from edgekit.errors import ArtifactError  # noqa: E402
from tiny_artifact import write_target  # noqa: E402

LARGE = Variant("llama", {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8})
BUILD = """
import sys
from edgekit.build import build
told = set()
def progress(stage, done, total):
    if stage not in told:
        told.add(stage)
        print(stage, flush=True)
model, target, output, scheme, force, verify = sys.argv[1:]
print("begun", flush=True)
build(model, target=target, output=output, scheme=scheme, force=force == "True", verify=verify == "True", progress=progress)
"""


@dataclass(frozen=True)
class Case:
    """One kind of build that is killed. older: an artifact of the same model to be replaced, None for a new output."""

    engine: str
    model: Path
    target: Path
    verify: bool
    reference: Path
    older: Path | None
    seconds: float


@dataclass(frozen=True)
class Killed:
    """stage: the last one the build had told of. kept: blocks that were in the cache. blocks: that the whole build has."""

    engine: str
    stage: str
    kept: int
    blocks: int


def start(case: Case, output: Path, cache: Path, *, scheme: str = "int4-g32", force: bool) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILD, str(case.model), str(case.target), str(output), scheme, str(force), str(case.verify)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "toolkit"), "EDGEKIT_CACHE": str(cache)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def whole(case: Case, output: Path, cache: Path, *, scheme: str = "int4-g32", force: bool = False) -> float:
    """Builds undisturbed; seconds from where the build proper begins."""
    with start(case, output, cache, scheme=scheme, force=force) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        _, noise = process.communicate()
    if process.returncode:
        sys.exit(f"{case.engine}: the build failed: {noise}")
    return time.monotonic() - began


def prepare(engine: str, folder: Path, variant: str | Variant = LARGE) -> list[Case]:
    """The kinds of builds of one engine: new and replacing, with the engine's run and without. Empty where it is not installed."""
    folder.mkdir()
    model = make_checkpoint(folder / "model", variant)
    target = write_target(folder / "test.toml", engine)
    cases = []
    for check in (True, False):
        plain = Case(engine, model, target, check, folder / f"new-{check}", None, 0.0)
        with start(plain, plain.reference, folder / "cache", force=False) as process:
            _, noise = process.communicate()
        if process.returncode:
            print(f"{engine}: left out: {noise.strip().splitlines()[-1]}", file=sys.stderr)
            return []
        seconds = whole(plain, folder / f"again-{check}", folder / "cache2", force=False)
        shutil.rmtree(folder / "cache2", ignore_errors=True)  # an engine without weights keeps nothing
        older = folder / f"older-{check}"
        whole(plain, older, folder / "cache", scheme="int4-g64")
        cases += [Case(engine, model, target, check, plain.reference, old, seconds) for old in (None, older)]
    return cases


def kill_once(case: Case, place: Path, chance: random.Random) -> Killed | None:
    """One build in ``place`` (empty), killed and resumed. None where it was over before it was killed."""
    cache = place / "cache"
    work = place / "work"
    work.mkdir()
    output = work / "out"
    if case.older is not None:
        shutil.copytree(case.older, output)
    with start(case, output, cache, force=case.older is not None) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0, 1.05 * case.seconds))
        process.send_signal(signal.SIGKILL)
        stages, _ = process.communicate()
    if process.returncode != -signal.SIGKILL:
        return None
    inspect(case, work)
    kept = blocks(cache)
    whole(case, output, cache, force=True)
    same(case.reference, output)
    left = sorted(path.name for path in work.iterdir())
    assert left == ["out"], f"beside the artifact lies {left}"
    now = blocks(cache)
    assert kept.items() <= now.items(), "a block that was kept was quantized anew"
    return Killed(case.engine, (["begun", *stages.split("\n")[:-1]])[-1], len(kept), len(now))


def inspect(case: Case, work: Path) -> None:
    """What opens is complete, and is the one or the other."""
    complete = 0
    for directory in (path for path in work.iterdir() if path.is_dir()):
        try:
            opened = load_artifact(directory)
        except ArtifactError:
            continue
        check_digests(opened)
        same(case.reference if opened.manifest.scheme.name == "int4-g32" else case.older or Path(), directory)
        complete += 1
    assert complete or case.older is None, "neither the old artifact nor the new one is there"


def same(one: Path, other: Path) -> None:
    files = sorted(path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file())
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), f"{other / name} differs"


def blocks(cache: Path) -> dict[str, int]:
    """Every kept block and the inode of its file: a block made anew is another file."""
    found = (path for path in cache.glob("blocks/*/*") if path.name != "about.json" and not path.name.startswith("."))
    return {path.relative_to(cache).as_posix(): path.stat().st_ino for path in found}


def kill(kills: int, seed: int, scratch: Path, engines: list[str], variant: str | Variant = LARGE) -> list[Killed]:
    """``kills`` kills in turn over all kinds of builds of ``engines``. Raises AssertionError for anything that is not as it must be."""
    chance = random.Random(seed)
    prepared = {engine: prepare(engine, scratch / engine, variant) for engine in engines}
    cases = [case for i in range(4) for cases in prepared.values() for case in cases[i : i + 1]]
    done: list[Killed] = []
    while cases and len(done) < kills:
        place = scratch / "place"
        place.mkdir()
        killed = kill_once(cases[len(done) % len(cases)], place, chance)
        shutil.rmtree(place)
        if killed is not None:
            done.append(killed)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", action="append", choices=list(ENGINES), help="only this; may be repeated")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-kill-") as scratch:
        done = kill(arguments.kills, arguments.seed, Path(scratch), arguments.engine or list(ENGINES))
    stages = collections.Counter((k.engine, k.stage) for k in done)
    for (engine, stage), count in sorted(stages.items()):
        print(f"{engine}, killed in or after {stage!r}: {count}")
    kept, all_blocks = sum(k.kept for k in done), sum(k.blocks for k in done)
    print(f"{len(done)} kills, every one resumed to the same bytes; {kept} of {all_blocks} blocks kept")
    if arguments.out is not None:
        report = {
            "command": shlex.join(["python", "bench/kill.py", *sys.argv[1:]]),
            "versions": {"python": platform.python_version(), "numpy": version("numpy")},
            "kills": len(done),
            "by_engine_and_stage": {f"{engine}: {stage}": count for (engine, stage), count in sorted(stages.items())},
            "blocks_kept": kept,
            "blocks": all_blocks,
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

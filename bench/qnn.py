"""Compiles a full-size random model for a Qualcomm NPU, kills that in the middle, and lets it go on: time, memory and sizes by part.

    python bench/qnn.py --scratch /scratch --out bench/results/qnn.json      # Phi-3.5-mini; 20 GB of disk, 8 GB of memory
    python bench/qnn.py --scratch /scratch --layers 4 --per-part 2 --again   # a quick look, and the same once more without a kill

The first build is killed with SIGKILL in the middle of compiling its second part, the next one goes on from the cache. ``--again``: a third
one from an empty cache, undisturbed; the bytes in which its compiled files differ are counted. Linux.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

import measure
import synthetic

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit")]

from edgekit.resources import data_folder  # noqa: E402

BUILD = """
import json, sys, time
from edgekit.build import build
last = None
def progress(stage, done, total):
    global last
    if stage != last or done == total:
        print(json.dumps([stage, time.monotonic(), done == total]), flush=True)
    last = stage
model, target, output = sys.argv[1:]
build(model, target=target, output=output, progress=progress)
"""


@dataclass(frozen=True)
class Built:
    """One build. wall: seconds. peak: bytes, of the largest of its processes. stages: seconds by stage. load: of the machine before."""

    wall: float
    peak: int
    load: float
    stages: dict[str, float]


def start(model: Path, target: Path, output: Path, cache: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT / "toolkit"), "EDGEKIT_CACHE": str(cache)}
    command = [sys.executable, "-c", BUILD, str(model), str(target), str(output)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def build(model: Path, target: Path, output: Path, cache: Path) -> Built:
    """To its end."""
    load, began = os.getloadavg()[0], time.monotonic()
    process = start(model, target, output, cache)
    assert process.stdout is not None
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for line in process.stdout:
        stage, when, _ = json.loads(line)
        first.setdefault(stage, when)
        last[stage] = when
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"the build ended with {process.returncode}")
    stages = {stage: round(last[stage] - first[stage], 1) for stage in first}
    return Built(round(time.monotonic() - began, 1), usage.ru_maxrss * 1024, load, stages)


def kill(model: Path, target: Path, output: Path, cache: Path, after: float) -> str:
    """Kills a build ``after`` seconds into compiling its second part; says in which stage."""
    process = start(model, target, output, cache)
    assert process.stdout is not None
    compiling: list[str] = []
    for line in process.stdout:
        stage = json.loads(line)[0]
        if stage.startswith("compile") and stage not in compiling:
            compiling.append(stage)
        if len(compiling) == 2:
            break
    else:
        sys.exit("the build was over before it was killed")
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return compiling[1]


def digests(output: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of what was compiled."""
    files = json.loads((output / "edgekit.json").read_text(encoding="utf-8"))["files"]
    return {name: (said["bytes"], said["sha256"]) for name, said in files.items() if name.startswith("part")}


def differ(one: Path, other: Path) -> int:
    """Bytes that are not the same in two files."""
    a, b = (np.memmap(path, np.uint8, "r") for path in (one, other))
    shared = min(len(a), len(b))
    return int(np.count_nonzero(a[:shared] != b[:shared])) + abs(len(a) - len(b))


def write_target(place: Path, name: str, per_part: int | None) -> Path:
    """The target as it is shipped, or with fewer layers to a part."""
    text = (data_folder("targets") / f"{name}.toml").read_text(encoding="utf-8")
    path = place / f"{name}.toml"
    path.write_text(text + (f"layers = {per_part}\n" if per_part is not None else ""), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--model", default="phi-3.5-mini", choices=list(synthetic.MODELS))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--target", default="snapdragon-8-elite")
    parser.add_argument("--per-part", type=int)
    parser.add_argument("--after", type=float, default=5.0, help="seconds into the second part")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    place: Path = arguments.scratch / "qnn-bench"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        model, output = place / "model", place / "artifact"
        synthetic.make(model, arguments.model, layers=arguments.layers)
        target = write_target(place, arguments.target, arguments.per_part)
        killed = kill(model, target, output, place / "cache", arguments.after)
        if output.exists():
            sys.exit(f"{output} is there after the kill")
        print(f"killed in {killed!r}", flush=True)
        resumed = build(model, target, output, place / "cache")
        compiled = digests(output)
        print(json.dumps(asdict(resumed)), flush=True)
        differing: dict[str, int] | None = None
        undisturbed = None
        if arguments.again:
            undisturbed = build(model, target, place / "again", place / "empty")
            differing = {name: differ(output / name, place / "again" / name) for name in compiled}
            print(f"again, bytes that differ: {differing}", flush=True)
        report = {
            "command": "python bench/qnn.py " + " ".join(sys.argv[1:]),
            "machine": measure.machine(),
            "versions": {name: version(name) for name in ("onnxruntime", "onnxruntime-qnn", "numpy")},
            "killed_in": killed,
            "resumed": asdict(resumed),
            "undisturbed": undisturbed and asdict(undisturbed),
            "same_bytes": None if differing is None else not any(differing.values()),
            "bytes_that_differ": differing,
            "compiled": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in compiled.items()},
            "artifact_bytes": measure.disk_bytes(output),
        }
        text = json.dumps(report, indent=2) + "\n"
        if arguments.out is not None:
            arguments.out.write_text(text, encoding="utf-8")
        print(text)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()

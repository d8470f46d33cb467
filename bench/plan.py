"""What `edge plan` says against what is measured here: five sizes, the file's bytes, the peak of memory, decoding speed.

    python bench/plan.py --scratch /scratch/plan          # some 10 minutes and 14 GB of disk, 4 GB of it at the end
    python bench/plan.py --scratch /scratch/plan --only tiny-phi --only llama-50m

Each model is built and run in processes of its own (bench/decode_one.py). Before and after each run NumPy's bandwidth and compute are
measured, over some seconds: their means become this machine's device profile (in the scratch folder) that `edge plan` is given, so that
what others use of the machine at the time is in both. Engines compute with their own kernels, as on most devices. Linux.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import measure

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
MODELS = ("tiny-phi", "llama-50m", "llama-300m", "llama-1b", "phi-3.5-mini")
LENGTHS = {"64": 96, "1024": 1056}
"""Prompt of bench/decode_one.py -> tokens that the sequence comes to."""
VOCABULARY = 1000
FOREMOST = -10
"""Niceness of what is timed."""
LIMITS = """
import json, os, threading, time
import numpy
SECONDS = 3.0
def rate(work, amount, threads):
    began, done = time.perf_counter(), [0] * threads
    def go(i):
        while time.perf_counter() - began < SECONDS:
            work(i)
            done[i] += amount
    workers = [threading.Thread(target=go, args=(i,)) for i in range(threads)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    return sum(done) / (time.perf_counter() - began)
cores = os.cpu_count()
long = [numpy.ones(1 << 26, numpy.float32) for _ in range(cores)]
square = numpy.ones((1024, 1024), numpy.float32)
bandwidth = rate(lambda i: numpy.dot(long[i], long[i]), long[0].nbytes, cores)
print(json.dumps({"bandwidth": bandwidth, "compute": rate(lambda i: square @ square, 2 * 1024**3, 1)}))
"""
"""Bytes and operations a second that NumPy gets over some seconds, all cores: what is there for a process, whatever else runs."""


@dataclass(frozen=True)
class Asked:
    scratch: Path
    targets: list[str]
    models: list[str]
    runs: int
    out: Path
    keep: bool


def foremost(command: list[str]) -> str:
    """The output of ``command``, run ahead of what else the machine does: in a session of its own, which is what Linux schedules by."""

    def ahead() -> None:
        os.setsid()
        group = Path("/proc/self/autogroup")
        if os.geteuid() == 0 and group.exists():
            group.write_text(str(FOREMOST), encoding="ascii")
            os.nice(FOREMOST)

    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=ahead)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def decode_one(*words: str) -> object:
    return json.loads(foremost([sys.executable, str(HERE / "decode_one.py"), *words]))


def profile(path: Path, targets: list[str], bandwidth: float, compute: float) -> None:
    """A device profile of this machine, of figures that were just measured."""
    machine = measure.machine()
    megabytes = float(machine["memory_gb"]) * 1000

    def figure(value: float, command: str) -> str:
        return f'{{ value = {value:.4g}, basis = "measured", source = {json.dumps(command)} }}'

    lines = [
        'description = "the machine of bench/plan.py"',
        f"chip = {json.dumps(machine['processor'])}",
        'kind = "class"',
        f"memory = {figure(megabytes, 'os.sysconf')}",
        f"app_memory = {figure(megabytes, 'os.sysconf')}",
        f"bandwidth = {figure(bandwidth / 1e9, 'bench/decode_one.py bandwidth')}",
        "[[units]]",
        'kind = "cpu"',
        f'name = "{machine["cores"]} cores"',
        f"targets = {json.dumps(targets)}",
        f"compute = {figure(compute / 1e9, 'numpy, a product of two float32 matrices of 2048 x 2048')}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def edge(*words: str) -> str:
    command = [sys.executable, "-m", "edgekit.cli", *words]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "toolkit")}
    ).stdout


def made(name: str, asked: Asked) -> str:
    """The model's name for `edge`, its checkpoint written where it is not there yet."""
    if name == "tiny-phi":
        return name
    directory = asked.scratch / name
    if not (directory / "config.json").exists():
        subprocess.run([sys.executable, str(HERE / "synthetic.py"), name, str(directory)], check=True, stdout=sys.stderr)
    return str(directory)


def built(model: str, target: str, directory: Path) -> int:
    """Bytes of the artifact's files, the manifest apart."""
    if not (directory / "edgekit.json").exists():
        edge("build", model, "--target", target, "--out", str(directory), "--no-cache", "--no-verify", "--quiet")
    return sum(path.stat().st_size for path in directory.iterdir() if path.name != "edgekit.json")


def predicted(model: str, target: str, device: Path) -> dict[str, object]:
    """Of `edge plan`, at each of LENGTHS."""
    found: dict[str, object] = {}
    whole = json.loads(edge("plan", model, "--target", target, "--device", str(device), "--json"))["plans"][0]
    for prompt, tokens in LENGTHS.items():
        plan = json.loads(edge("plan", model, "--target", target, "--device", str(device), "--context", str(tokens), "--json"))["plans"][0]
        at = next(memory for memory in plan["memory"] if memory["context"] == tokens)
        speed = plan["decode"] if prompt == "64" else plan["decode_full"]
        found[prompt] = {"artifact": whole["artifact"], "peak": max(at["load"], at["prefill"], at["decode"]), "decode": speed}
    return found


def limits() -> dict[str, float]:
    found: dict[str, float] = json.loads(foremost([sys.executable, "-c", LIMITS]))
    return found


def compare(name: str, target: str, asked: Asked) -> dict[str, object]:
    model, artifact = made(name, asked), asked.scratch / f"{name}-{target}"
    size = built(model, target, artifact)
    measure.warm(artifact)
    runs, around = [], [limits()]
    for _ in range(asked.runs):
        runs.append(decode_one("loop", str(artifact), "--threads", str(os.cpu_count()), "--vocabulary", str(VOCABULARY)))
        around.append(limits())
    here = {key: statistics.mean(each[key] for each in around) for key in around[0]}
    device = asked.scratch / "here.toml"
    profile(device, asked.targets, here["bandwidth"], here["compute"])
    said = predicted(model, target, device)
    rows = {}
    for prompt in LENGTHS:
        steps = [run[prompt] for run in runs]  # type: ignore[index]
        rows[prompt] = {
            "predicted": said[prompt],
            "peak": max(step["peak"] for step in steps),
            "decode": statistics.median(step["decode_rate"] for step in steps),
            "decode_of_runs": [round(step["decode_rate"], 2) for step in steps],
        }
    if not asked.keep:
        shutil.rmtree(artifact)
    return {
        "model": name,
        "target": target,
        "artifact": size,
        "load_average": os.getloadavg()[0],
        **here,
        "at": rows,
    }


def main() -> None:
    os.environ["EDGEKIT_ONNX_PRODUCTS"], os.environ["EDGEKIT_OPENVINO_PRODUCTS"] = "onnxruntime", "openvino"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--target", action="append")
    parser.add_argument("--only", action="append", choices=MODELS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="leave the artifacts and checkpoints there")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "plan.json")
    given = parser.parse_args()
    asked = Asked(given.scratch, given.target or ["cpu"], given.only or list(MODELS), given.runs, given.out, given.keep)
    asked.scratch.mkdir(parents=True, exist_ok=True)
    old = json.loads(asked.out.read_text(encoding="utf-8"))["rows"] if asked.out.exists() else []
    redone = {(name, target) for name in asked.models for target in asked.targets}
    rows = [row for row in old if (row["model"], row["target"]) not in redone]
    for name in asked.models:
        for target in asked.targets:
            rows.append(compare(name, target, asked))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if not asked.keep and name != "tiny-phi":
            shutil.rmtree(asked.scratch / name)
    rows.sort(key=lambda row: (row["target"], MODELS.index(row["model"])))
    result = {
        "command": "python bench/plan.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": measure.machine(),
        "versions": measure.versions(Path(sys.executable), ("numpy", "onnxruntime", "openvino")),
        "rows": rows,
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

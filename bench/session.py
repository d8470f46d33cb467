"""What each choice in engines/onnx/session.py is worth: one artifact, the session's options changed one at a time, in turns.

    python bench/session.py DIR --runs 5          # some 15 minutes at Phi-3.5-mini's size; --prepacked takes twice the artifact of disk

Every run is a fresh process: load, 64 tokens of prompt and 32 of answer twice (the first pays for page faults), then 1,024 and 32.
CPU seconds a token tell what spinning threads burn. Linux and macOS.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import measure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "toolkit"))
STEPS = 32
KEYS = ("load", "load_user", "load_system", "prefill", "long_prefill", "decode", "long_decode", "cpu", "peak", "long_peak")
Run = dict[str, float]


@dataclass(frozen=True)
class Choice:
    """threads: 0 leaves them to ONNX Runtime, None takes every usable core. entries: session configuration entries. own: edgekit's
    products, where they are what is faster."""

    threads: int | None = None
    entries: dict[str, str] = field(default_factory=dict)
    arena: bool = True
    pattern: bool = False
    chunk: int = 512
    own: bool = True


CHOICES = {
    "as shipped": Choice(),
    "ONNX Runtime's own products": Choice(own=False),
    "1 thread": Choice(threads=1),
    "ONNX Runtime's own thread count": Choice(threads=0),
    "no spinning": Choice(entries={"session.intra_op.allow_spinning": "0"}),
    "spinning stops after each run": Choice(entries={"session.force_spinning_stop": "1"}),
    "denormals as zero": Choice(entries={"session.set_denormal_as_zero": "1"}),
    "dynamic_block_base 4": Choice(entries={"session.dynamic_block_base": "4"}),
    "no arena": Choice(arena=False),
    "memory pattern": Choice(pattern=True),
    "initializers outside the arena": Choice(entries={"session.use_device_allocator_for_initializers": "1"}),
    "prompts in pieces of 256": Choice(chunk=256),
    "prompts in pieces of 1024": Choice(chunk=1024),
}
PREPACKED = "prepacked weights mapped from disk"


def measured(directory: Path, name: str) -> Run:
    """In this process. ``name``: of CHOICES, or PREPACKED."""
    import onnxruntime

    from edgekit.artifact import load_artifact
    from edgekit.engines.onnx import operator
    from edgekit.engines.onnx import session as module
    from edgekit.parallel import cores

    choice = CHOICES.get(name, Choice())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores() if choice.threads is None else choice.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_pattern = choice.pattern
    options.enable_cpu_mem_arena = choice.arena
    for key, value in choice.entries.items():
        options.add_session_config_entry(key, value)
    manifest = load_artifact(directory).manifest
    own = choice.own and name != PREPACKED and operator.chosen(manifest)
    if own:
        operator.register(options, manifest)
    module.CHUNK = choice.chunk
    rng = np.random.default_rng(0)
    before, began = os.times(), time.perf_counter()
    loaded = onnxruntime.InferenceSession(directory / module.MODEL, options, providers=["CPUExecutionProvider"])
    found = {
        "load": time.perf_counter() - began,
        "load_user": os.times().user - before.user,
        "load_system": os.times().system - before.system,
    }
    session = module.OnnxSession(loaded, directory, 4096, alike=own and operator.attends(manifest))
    vocabulary = loaded.get_outputs()[0].shape[2]
    for length, prefix in ((64, ""), (64, ""), (1024, "long_")):
        session.rewind(0)
        began = time.perf_counter()
        token = int(np.argmax(session.forward(rng.integers(0, vocabulary, length).tolist())))
        found[f"{prefix}prefill"] = length / (time.perf_counter() - began)
        steps, spent = [], time.process_time()
        for _ in range(STEPS):
            began = time.perf_counter()
            token = int(np.argmax(session.forward([token])))
            steps.append(time.perf_counter() - began)
        found[f"{prefix}decode"] = 1 / statistics.median(steps)
        found[f"{prefix}cpu"] = (time.process_time() - spent) / STEPS
        found[f"{prefix}peak"] = measure.status_bytes("VmHWM")
    return found


def save_prepacked(directory: Path, out: Path) -> None:
    """The optimized model with its prepacked weights, which ONNX Runtime maps at the next load. For this processor and version only."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(out / "model.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.onnx.data")
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    onnxruntime.InferenceSession(directory / "model.onnx", options, providers=["CPUExecutionProvider"])


def child(*words: str) -> str:
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def row(name: str, runs: list[Run]) -> list[str]:
    middle = {key: statistics.median(run[key] for run in runs) for key in KEYS}
    return [
        name,
        f"{middle['load']:.2f} ({middle['load_user']:.2f} + {middle['load_system']:.2f})",
        f"{middle['prefill']:.0f} / {middle['long_prefill']:.0f}",
        f"{middle['decode']:.2f} / {middle['long_decode']:.2f}",
        f"{middle['cpu'] * 1000:.0f}",
        f"{middle['peak'] / 1e9:.2f} / {middle['long_peak'] / 1e9:.2f}",
    ]


def save(result: dict[str, object], runs: dict[str, list[Run]], loads: list[float], out: Path) -> None:
    head = ["choice", "load s (user + system)", "prefill 64 / 1,024", "decode at 64 / 1,024", "CPU ms a token", "peak RSS GB at 64 / 1,024"]
    rows = [row(name, taken) for name, taken in runs.items() if taken]
    said = {"head": head, "rows": rows, "load_average": round(statistics.median(loads), 1), **result, "runs": runs}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="an artifact for `cpu`")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prepacked", action="store_true", help="also save the prepacked weights and load them from there")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "session.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--pack-to", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print("\n" + json.dumps(measured(asked.directory, asked.one)))
        return
    if asked.pack_to:
        save_prepacked(asked.directory, asked.pack_to)
        return
    packed = Path(tempfile.mkdtemp(prefix="edgekit-prepacked-", dir=asked.directory.parent)) if asked.prepacked else None
    directories = dict.fromkeys(CHOICES, asked.directory) | ({PREPACKED: packed} if packed else {})
    runs: dict[str, list[Run]] = {name: [] for name in directories}
    loads: list[float] = []
    result: dict[str, object] = {
        "command": "python bench/session.py " + " ".join(sys.argv[1:]),
        "machine": measure.machine(),
        "versions": measure.versions(Path(sys.executable), ("numpy", "onnxruntime")),
    }
    try:
        if packed:
            child(str(asked.directory), "--pack-to", str(packed))
        for turn in range(asked.runs):
            names = list(directories)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                measure.warm(directories[name])
                loads.append(os.getloadavg()[0])
                runs[name].append(json.loads(child(str(directories[name]), "--one", name).strip().splitlines()[-1]))
                print(name, json.dumps(runs[name][-1]), file=sys.stderr, flush=True)
                save(result, runs, loads, asked.out)
    finally:
        if packed:
            shutil.rmtree(packed, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Decodes with every engine on the same random model, in turns, each run in a fresh process, as a Markdown table.

    python bench/decode.py --runs 3                                      # builds Phi-3.5-mini for `cpu` first; 10 GB of disk
    python bench/decode.py --artifact DIR --official DIR --gguf FILE ... # with what bench/build.py --keep TOOL left, and GGUF files

--intel: what edgekit built for intel-cpu, --optimum: what optimum-cli made of the same checkpoint (bench/build.py); both run in OpenVINO.
--official: the artifact of onnxruntime-genai's builder. --gguf: made by bench/random_gguf.py; needs --llama, which compiles
llama-cpp-python, or --llama-python, a Python that has it. The first turn finds the model's files on disk ("cold"), the others in the page
cache. Results are saved after every run; a route that fails is reported and the others go on. Linux and macOS.
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
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import cast

import measure

ROOT = Path(__file__).resolve().parent.parent
ONE = str(ROOT / "bench" / "decode_one.py")
EDGEKIT = ("--editable", f"{ROOT}[build,onnx,openvino]", "onnxruntime-genai==0.18.0", "openvino-genai", "onnx", "gguf")
LLAMA = ("llama-cpp-python",)
SHOWN = ("numpy", "onnxruntime", "onnxruntime-genai", "openvino", "openvino-genai", "llama-cpp-python")
Run = dict[str, object]


@dataclass(frozen=True)
class Route:
    """kind: of decode_one.py. threads: None leaves them to the engine."""

    name: str
    kind: str
    path: Path
    threads: int | None


def routes(asked: argparse.Namespace, artifact: Path, cores: int) -> list[Route]:
    found = [
        Route("edgekit", "loop", artifact, None),
        Route("edgekit's session alone", "bare", artifact, None),
        Route("the same with ONNX Runtime's own products", "stock", artifact, None),
        Route(f"genai opening edgekit's, {cores} threads", "genai", artifact, cores),
        Route("genai opening edgekit's, as it comes", "genai", artifact, None),
    ]
    if asked.int8 is not None:
        found.append(Route("edgekit, INT8 KV cache", "loop", asked.int8, None))
    if asked.official is not None:
        found.append(Route(f"genai, its builder's, {cores} threads", "genai", asked.official, cores))
        found.append(Route("genai, its builder's, as it comes", "genai", asked.official, None))
    if asked.intel is not None:
        found.append(Route("edgekit, OpenVINO", "loop", asked.intel, None))
        found.append(Route("edgekit's session alone, OpenVINO", "bare", asked.intel, None))
        found.append(Route("openvino_genai opening edgekit's, as it comes", "openvino_genai", asked.intel, None))
    if asked.optimum is not None:
        found.append(Route("openvino_genai, optimum's, as it comes", "openvino_genai", asked.optimum, None))
    found += [Route(f"llama.cpp {path.stem}", "llama.cpp", path, cores) for path in asked.gguf]
    return [route for route in found if not asked.only or any(fnmatch(route.name, each) for each in asked.only)]


class Failed(Exception):
    """A process of decode_one.py ended with an error, told in its own words."""


def child(python: Path, *words: str) -> object:
    """What a run of decode_one.py printed last. Raises Failed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, ONE, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Failed(f"decode_one.py {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def one(route: Route, python: Path, vocabulary: int, cold: bool) -> Run:
    """One process: loads, decodes, ends."""
    folder = route.path.parent if route.path.is_file() else route.path
    (measure.chill if cold else measure.warm)(folder)
    load = os.getloadavg()[0]
    threads = ["--threads", str(route.threads)] if route.threads else []
    found = child(python, route.kind, str(route.path), "--vocabulary", str(vocabulary), *threads)
    assert isinstance(found, dict)
    return {**found, "cold": cold, "load_average": load}


def first_output(python: Path, artifact: Path, prompt: str) -> float:
    """Seconds from the start of `edge run` to its first byte of answer."""
    measure.warm(artifact)
    began = time.perf_counter()
    command = [str(python), "-m", "edgekit.cli", "run", str(artifact), prompt, "--raw", "--max-tokens", "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
    return seconds


def middle(runs: list[Run], *keys: str) -> float:
    """Median over the runs of a number that lies this deep."""
    found = []
    for run in runs:
        value: object = run
        for key in keys:
            value = value[key]  # type: ignore[index]
        found.append(float(str(value)))
    return statistics.median(found)


def row(route: Route, runs: list[Run], read: dict[str, float], bandwidth: float) -> list[str]:
    warm = [run for run in runs if not run["cold"]] or runs
    cold = [run for run in runs if run["cold"]]
    size = measure.disk_bytes(route.path) if route.path.is_dir() else route.path.stat().st_size
    return [
        route.name,
        f"{middle(warm, 'load'):.1f}" + (f" / {middle(cold, 'load'):.1f}" if cold else ""),
        f"{middle(warm, 'first', 'prefill'):.2f}",
        f"{middle(warm, 'first', 'prefill_rate'):.0f} / {middle(warm, '64', 'prefill_rate'):.0f}",
        f"{middle(warm, '1024', 'prefill_rate'):.0f}",
        f"{middle(warm, '64', 'decode_rate'):.2f}",
        f"{middle(warm, '1024', 'decode_rate'):.2f}",
        " / ".join(f"{middle(warm, at, 'decode_rate') * read[at] / bandwidth:.0%}" for at in ("64", "1024")),
        f"{size / 1e9:.2f}",
        f"{middle(warm, '64', 'peak') / 1e9:.2f} / {middle(warm, '1024', 'peak') / 1e9:.2f}",
        f"{middle(warm, 'load_average'):.1f}",
    ]


def summary(result: Run, chosen: list[Route]) -> dict[str, list[str] | list[list[str]]]:
    """The table of what was measured so far, as it goes into docs/performance.md."""
    head = ["engine and artifact", "load s: warm / cold", "first TTFT s", "prefill 64: first / second", "prefill 1,024", "decode at 64"]
    head += ["decode at 1,024", "of DRAM bandwidth at 64 / 1,024", "size GB", "peak RSS GB at 64 / 1,024", "load average"]
    measured = cast(dict[str, list[Run]], result["runs"])
    read = cast(dict[str, dict[str, float]], result["token_bytes"])
    bandwidths, outputs = cast(list[float], result["bandwidth"]), cast(list[float], result["edge_run_first_output"])
    rate = max(bandwidths)  # whatever else the machine does only lowers it
    rows = [row(route, measured[route.name], read[str(route.path)], rate) for route in chosen if measured[route.name]]
    notes = [
        f"Tokens a second, greedy, one sequence. DRAM bandwidth {rate / 1e9:.1f} GB/s (numpy, all cores; the best of {len(bandwidths)} "
        "times); of it a token reads the weights, and the keys and values so far (OpenVINO: weights alone)."
    ]
    genai = next((runs for route in chosen if route.kind == "genai" and (runs := measured[route.name])), None)
    if genai and outputs:
        own = middle(genai[-1:], "load") + middle(genai[-1:], "first", "prefill")
        notes.append(
            f"`edge run` to its first byte: {statistics.median(outputs):.2f} s; genai's load and first token, same files: {own:.2f} s."
        )
    notes.append(f"`{result['command']}`; {json.dumps(result['machine'])}; {json.dumps(result['versions'])}")
    return {"head": head, "rows": rows, "notes": notes}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("phi-3.5-mini", "mistral-7b"), default="phi-3.5-mini")
    parser.add_argument("--layers", type=int, help="fewer than the model has, for a quick look")
    parser.add_argument("--artifact", type=Path, help="what edgekit built for `cpu` (default: build it)")
    parser.add_argument("--official", type=Path, help="the onnxruntime-genai builder's artifact of the same checkpoint")
    parser.add_argument("--int8", type=Path, help='the same for a target with kv_cache = "int8"')
    parser.add_argument("--intel", type=Path, help="what edgekit built for `intel-cpu`")
    parser.add_argument("--optimum", type=Path, help="optimum-cli's OpenVINO artifact of the same checkpoint")
    parser.add_argument("--gguf", type=Path, action="append", default=[], help="for llama.cpp; may be repeated")
    parser.add_argument("--llama", action="store_true", help="make the environment for --gguf (compiles)")
    parser.add_argument("--llama-python", type=Path, help="a Python that has llama-cpp-python already, instead of --llama")
    parser.add_argument("--only", action="append", default=[], help="of the table's rows, as a pattern; may be repeated")
    parser.add_argument("--runs", type=int, default=3, help="turns; the first is cold")
    parser.add_argument("--scratch", type=Path, help="where environments, and the model if it is built, go (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "decode.json")
    asked = parser.parse_args()
    if asked.gguf and not asked.llama and asked.llama_python is None:
        parser.error("--gguf needs --llama or --llama-python")
    return asked


def build(python: Path, asked: argparse.Namespace, scratch: Path) -> Path:
    """The artifact of a random model; its checkpoint is removed again."""
    model, artifact = scratch / asked.model, scratch / f"{asked.model}-decode"
    layers = ["--layers", str(asked.layers)] if asked.layers else []
    subprocess.run([python, str(ROOT / "bench" / "synthetic.py"), asked.model, str(model), *layers], check=True, stdout=sys.stderr)
    command = [str(python), "-m", "edgekit.cli", "build", str(model), "--target", "cpu", "--out", str(artifact), "--force", "--quiet"]
    subprocess.run(command, check=True)
    shutil.rmtree(model)
    return artifact


def take_turns(chosen: list[Route], pythons: dict[str, Path], vocabulary: int, prompt: str, asked: argparse.Namespace, result: Run) -> None:
    """Fills ``result`` in and saves it after every run."""
    python, artifact = pythons[chosen[0].name], chosen[0].path
    for turn in range(asked.runs):
        cast(list[float], result["bandwidth"]).append(float(str(child(python, "bandwidth"))))
        for route in [*chosen[turn % len(chosen) :], *chosen[: turn % len(chosen)]]:
            try:
                found = one(route, pythons[route.name], vocabulary, cold=turn == 0)
            except Failed as error:
                print(f"{route.name}: {error}", file=sys.stderr, flush=True)
                continue
            cast(dict[str, list[Run]], result["runs"])[route.name].append(found)
            print(route.name, json.dumps(found), file=sys.stderr, flush=True)
            save(result, chosen, asked.out)
        cast(list[float], result["edge_run_first_output"]).append(first_output(python, artifact, prompt))
        save(result, chosen, asked.out)


def save(result: Run, chosen: list[Route], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"table": summary(result, chosen), **result}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    asked = arguments()
    scratch = asked.scratch or Path(tempfile.mkdtemp(prefix="edgekit-bench-"))
    environments = scratch / "environments"
    environments.mkdir(parents=True, exist_ok=True)
    python = measure.environment(environments / "decode", EDGEKIT)
    llama = asked.llama_python or (measure.environment(environments / "llama", LLAMA) if asked.llama else python)
    artifact = asked.artifact or build(python, asked, scratch)
    chosen = routes(asked, artifact, os.cpu_count() or 1)
    vocabulary = json.loads((artifact / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    result: Run = {
        "command": "python bench/decode.py " + " ".join(sys.argv[1:]),
        "machine": measure.machine(),
        "versions": measure.versions(python, SHOWN) | (measure.versions(llama, SHOWN[-1:]) if asked.gguf else {}),
        "token_bytes": {str(route.path): child(python, "token-bytes", str(route.path)) for route in chosen},
        "bandwidth": [],
        "edge_run_first_output": [],
        "runs": {route.name: [] for route in chosen},
    }
    try:
        pythons = {route.name: llama if route.kind == "llama.cpp" else python for route in chosen}
        take_turns(chosen, pythons, vocabulary, str(child(python, "prompt", str(artifact))), asked, result)
        table = summary(result, chosen)
        print(measure.table(cast(list[str], table["head"]), cast(list[list[str]], table["rows"])), *table["notes"], sep="\n\n")
    finally:
        if asked.artifact is None:
            shutil.rmtree(artifact, ignore_errors=True)
        if asked.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()

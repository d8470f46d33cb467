"""`edge profile` beside the engines' own ways to measure, on one random model of 0.5 G parameters, and what measuring itself costs.

    python bench/profiling.py --turns 5 --out bench/results/profile.json          # builds the model first; 2 GB of disk
    python bench/profiling.py --onnx DIR --openvino DIR --genai-script benchmark_e2e.py

Routes, each in a process of its own, in turns, prompts of 64 and 256 tokens with 16 decoded after each:
- edge profile: its JSON.
- session, llama-bench's definitions: pp is a prompt of N random tokens over its time, tg is 16 tokens one by one over theirs, a plain loop
  around edgekit's session (llama.cpp's tools/llama-bench/README.md).
- onnxruntime-genai: its own loop, timed as its benchmark/python/benchmark_e2e.py does (append_tokens is the prompt, then every
  generate_next_token), and that script itself with --genai-script.
- openvino_genai: the perf_metrics of its pipeline, which openvino.genai's tools/llm_bench prints (TTFT, and TPOT for further tokens).
All compute with THREADS threads (2 are at odds on a machine that others use as well), the engines' own with the settings that edgekit's
session takes, and that with the engines' own kernels.

Cost: the same session decodes in a plain loop and in the profiler's, by turns; and both loops run around a function that does nothing,
which gives the profiler's own microseconds a token without the machine's noise.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

ROOT = Path(__file__).resolve().parent.parent
LENGTHS, STEPS, REPEATS = (64, 256), 16, 2
THREADS = int(os.environ.get("BENCH_THREADS", "1"))
PAIRS = 20
FOREMOST = -10
SHOWN = ("numpy", "onnxruntime", "onnxruntime-genai", "openvino", "openvino-genai")
MODEL: dict[str, object] = {
    "vocab_size": 32064,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
}
Rates = dict[str, dict[str, float]]
"""Length -> "prefill" and "decode", tokens a second."""


def build(scratch: Path) -> tuple[Path, Path]:
    """The artifacts of one random checkpoint for both engines; the checkpoint is removed again."""
    import synthetic

    synthetic.MODELS["bench"] = {**synthetic.ARCHITECTURE["llama"], **MODEL}
    synthetic.make(scratch / "model", "bench")
    for target in ("cpu", "intel-cpu"):
        command = [sys.executable, "-m", "edgekit.cli", "build", str(scratch / "model"), "--target", target, "--quiet", "--force"]
        subprocess.run([*command, "--out", str(scratch / target)], check=True)
    shutil.rmtree(scratch / "model")
    return scratch / "cpu", scratch / "intel-cpu"


def profiled(directory: Path) -> Rates:
    command = [
        sys.executable,
        "-m",
        "edgekit.cli",
        "profile",
        str(directory),
        "--json",
        "--quiet",
        "--loads",
        "1",
        "--rounds",
        str(REPEATS),
        "--threads",
        str(THREADS),
    ]
    lengths = [word for length in LENGTHS for word in ("--prompt", str(length))]
    said = subprocess.run([*command, *lengths, "--tokens", str(STEPS)], check=True, capture_output=True, text=True, preexec_fn=ahead)
    report = json.loads(said.stdout)
    found = {str(p["tokens"]): {"prefill": p["rate"]["median"]} for p in report["prefill"]}
    for d in report["decode"]:
        found[str(d["depth"])] |= {"decode": d["rate"]["median"], "p50": 1 / d["p50"]}
    return found


def by_definition(directory: Path) -> Rates:
    """pp and tg around edgekit's session."""
    import edgekit

    with edgekit.load(directory, threads=THREADS) as runtime:
        session, tokens = runtime.session, ids(runtime.manifest.tokens.vocab_size)
        return {str(n): middle([pp_tg(session, tokens[:n], tokens[:STEPS]) for _ in range(1 + REPEATS)]) for n in LENGTHS}


def pp_tg(session: Any, prompt: list[int], after: list[int]) -> dict[str, float]:
    session.rewind(0)
    began = time.perf_counter()
    session.forward(prompt)
    between = time.perf_counter()
    for token in after:
        session.forward([token])
    return {"prefill": len(prompt) / (between - began), "decode": len(after) / (time.perf_counter() - between)}


def genai(directory: Path) -> Rates:
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(str(directory))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": THREADS}}}}))
    model, found = og.Model(config), {}
    for length in LENGTHS:
        runs = []
        for _ in range(1 + REPEATS):
            params = og.GeneratorParams(model)
            params.set_search_options(max_length=length + STEPS + 1, min_length=length + STEPS + 1, do_sample=False)
            generator = og.Generator(model, params)
            began = time.perf_counter()
            generator.append_tokens(np.array(ids(MODEL["vocab_size"])[:length], np.int32))
            prompt = time.perf_counter() - began
            generator.generate_next_token()  # samples from the prompt's logits; computes nothing else
            began = time.perf_counter()
            for _ in range(STEPS):
                generator.generate_next_token()
            runs.append({"prefill": length / prompt, "decode": STEPS / (time.perf_counter() - began)})
            del generator
        found[str(length)] = middle(runs)
    return found


def genai_script(directory: Path, script: Path, scratch: Path) -> Rates:
    """onnxruntime-genai's benchmark_e2e.py on a copy that names the threads."""
    copy = scratch / "genai-copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in directory.iterdir():
        if file.name != "genai_config.json":
            (copy / file.name).symlink_to(file.resolve())
    config = json.loads((directory / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = THREADS
    (copy / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    found: Rates = {}
    for length in LENGTHS:
        command = [sys.executable, str(script), "-i", str(copy), "-l", str(length), "-g", str(STEPS), "-r", str(REPEATS), "-w", "1"]
        words = [*command, "-k", "1", "--use_random_tokens", "--chat_template", "{input}", "-o", str(scratch / "genai.csv")]
        said = subprocess.run(words, check=True, capture_output=True, text=True, preexec_fn=ahead).stdout
        rates = dict(re.findall(r"Average (Prompt Processing|Token Generation) Throughput \(per token\): ([\d.]+) tps", said))
        found[str(length)] = {"prefill": float(rates["Prompt Processing"]), "decode": float(rates["Token Generation"])}
    return found


def openvino_genai(directory: Path) -> Rates:
    import numpy as np
    import openvino
    import openvino_genai as ov

    from edgekit.artifact import load_artifact
    from edgekit.engines.openvino.session import properties

    settings = properties(openvino.Core(), load_artifact(directory).manifest, THREADS)
    pipeline = ov.LLMPipeline(str(directory), "CPU", **settings)
    config = ov.GenerationConfig(max_new_tokens=STEPS + 1, do_sample=False, ignore_eos=True)
    found = {}
    for length in LENGTHS:
        runs = []
        for turn in range(1 + REPEATS):
            # Another beginning each time: the pipeline keeps what an earlier prompt left.
            given = np.array([np.roll(ids(MODEL["vocab_size"]), turn + 1)[:length]], np.int64)
            said = pipeline.generate(ov.TokenizedInputs(openvino.Tensor(given), openvino.Tensor(np.ones_like(given))), config).perf_metrics
            runs.append({"prefill": 1e3 * length / said.get_ttft().mean, "decode": 1e3 / said.get_tpot().mean})
        found[str(length)] = middle(runs)
    return found


def cost(directory: Path) -> dict[str, float]:
    """Of the profiler's decoding loop against a plain one."""
    import edgekit
    from edgekit.profile import worker

    class Nothing:
        session: Any

        def forward(self, tokens: object) -> None:
            pass

    idle, steps = Nothing(), [1] * 10000
    idle.session = idle
    plain, timed = (min(seconds(lambda w=way: w(idle, steps)) for _ in range(20)) for way in (plainly, worker.decode))
    with edgekit.load(directory, threads=THREADS) as runtime:
        tokens = ids(runtime.manifest.tokens.vocab_size)[:STEPS]
        runtime.session.forward(tokens)
        ratios, each = [], []
        for pair in range(PAIRS):
            spent = {}
            for way in (plainly, worker.decode) if pair % 2 else (worker.decode, plainly):
                runtime.session.rewind(STEPS)
                spent[way] = seconds(lambda w=way: w(runtime, tokens))
            ratios.append(spent[worker.decode] / spent[plainly])
            each.append(spent[plainly] / STEPS)
    own = (timed - plain) / len(steps)
    low, _, high = statistics.quantiles(ratios, n=4)
    token = statistics.median(each)
    return {
        "own_seconds": own,
        "token_seconds": token,
        "share": own / token,
        "pairs": PAIRS,
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
    }


def plainly(runtime: Any, tokens: list[int]) -> None:
    forward = runtime.session.forward
    for token in tokens:
        forward((token,))


def seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ids(vocabulary: object) -> list[int]:
    import numpy as np

    found: list[int] = np.random.default_rng(0).integers(0, int(str(vocabulary)), max(LENGTHS)).tolist()
    return found


def middle(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians of all but the first."""
    return {key: statistics.median(run[key] for run in runs[1:]) for key in runs[0]}


ROUTES = {"definition": by_definition, "genai": genai, "openvino_genai": openvino_genai, "cost": cost}


def ahead() -> None:
    """As bench/plan.py: what is timed goes first on a machine that others use as well."""
    group = Path("/proc/self/autogroup")
    os.setsid()
    if os.geteuid() == 0 and group.exists():
        group.write_text(str(FOREMOST), encoding="ascii")
        os.nice(FOREMOST)


def one(route: str, directory: Path) -> dict[str, Any]:
    """In a new process, ahead of other users' where the system lets it; a route that fails ends the bench."""
    command = [sys.executable, __file__, "--one", route, str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=ahead)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(result: dict[str, Any]) -> list[list[str]]:
    from edgekit.profile.statistics import mann_whitney

    rows = []
    for engine, routes in result["runs"].items():
        own = routes["edge profile"]
        for name, runs in routes.items():
            cells = [engine, name]
            for length in map(str, LENGTHS):
                for key in ("prefill", "decode"):
                    values, base = [run[length][key] for run in runs], [run[length][key] for run in own]
                    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
                    p = "" if name == "edge profile" else f", p {mann_whitney(base, values):.2f}"
                    cells.append(f"{statistics.median(values):.1f} ({low:.1f}-{high:.1f}{p})")
            rows.append(cells)
    return rows


def main() -> None:
    os.environ["EDGEKIT_ONNX_PRODUCTS"] = "onnxruntime"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, help="an artifact of this bench's model for `cpu` (default: build it)")
    parser.add_argument("--openvino", type=Path, help="the same for `intel-cpu`")
    parser.add_argument("--genai-script", type=Path, help="onnxruntime-genai's benchmark/python/benchmark_e2e.py")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "profile.json")
    parser.add_argument("--one", nargs=2, metavar=("ROUTE", "DIR"), help="used by the bench itself")
    asked = parser.parse_args()
    if asked.one:
        print("\n" + json.dumps(ROUTES[asked.one[0]](Path(asked.one[1]))))
        return
    scratch = asked.scratch or Path(tempfile.mkdtemp(prefix="edgekit-bench-"))
    scratch.mkdir(parents=True, exist_ok=True)
    onnx, openvino = (asked.onnx, asked.openvino) if asked.onnx and asked.openvino else build(scratch)
    runs: dict[str, dict[str, list[Any]]] = {
        "ONNX Runtime": {"edge profile": [], "session, llama-bench's definitions": [], "onnxruntime-genai's loop": []},
        "OpenVINO": {"edge profile": [], "session, llama-bench's definitions": [], "openvino_genai's perf_metrics": []},
    }
    if asked.genai_script:
        runs["ONNX Runtime"]["onnxruntime-genai's benchmark_e2e.py"] = []
    result: dict[str, Any] = {
        "command": "python bench/profiling.py " + " ".join(sys.argv[1:]),
        "machine": measure.machine(),
        "versions": measure.versions(Path(sys.executable), SHOWN),
        "lengths": LENGTHS,
        "load_average": [],
        "cost": {},
        "runs": runs,
    }
    kinds = {"session, llama-bench's definitions": "definition", "onnxruntime-genai's loop": "genai"}
    for turn in range(asked.turns):
        result["load_average"].append(round(os.getloadavg()[0], 1))
        work = [(engine, name) for engine, routes in runs.items() for name in routes]
        for engine, name in [*work[turn % len(work) :], *work[: turn % len(work)]]:
            directory = onnx if engine == "ONNX Runtime" else openvino
            if name == "edge profile":
                found = profiled(directory)
            elif name.endswith("benchmark_e2e.py"):
                found = genai_script(directory, asked.genai_script, scratch)
            else:
                found = one(kinds.get(name, "openvino_genai"), directory)
            runs[engine][name].append(found)
            print(engine, name, json.dumps(found), file=sys.stderr, flush=True)
        result["cost"] = result["cost"] or {"ONNX Runtime": one("cost", onnx), "OpenVINO": one("cost", openvino)}
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    result["rows"] = table(result)
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(measure.table(["engine", "route", *(f"{key} {n}" for n in LENGTHS for key in ("prefill", "decode at"))], result["rows"]))
    if asked.scratch is None:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()

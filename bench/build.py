"""Builds a full-size random model with edgekit and with the official converters, on the same files, in turns, as a Markdown table.

    python bench/build.py --runs 3                                     # Phi-3.5-mini; 30 GB of disk; the ONNX builder takes 24 GB of memory
    python bench/build.py --only edgekit --only mlx --layers 2         # a quick look
    python bench/build.py --model mistral-7b --only edgekit
    python bench/build.py --target intel-cpu --only edgekit --only optimum
    python bench/build.py --target cpu --target apple-m --only edgekit --only mlx

Each tool has a virtual environment of its own below --scratch, made at the first run and kept there (take CPU wheels of PyTorch: pip's
configuration decides). What the gate of a verified build takes, which measures the quantized weights against the checkpoint (no other tool
does that), is reported apart. A converter that is killed for the memory it takes is reported as killed. Linux and macOS.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import measure

ROOT = Path(__file__).resolve().parent.parent
GATED = """
import sys, time
from edgekit import build, cli
module = sys.modules["edgekit.build"]
inner = module.pass_gate
def timed(*arguments):
    began = time.perf_counter()
    found = inner(*arguments)
    print("gate took", time.perf_counter() - began, "s", file=sys.stderr)
    return found
module.pass_gate = timed
cli.app()
"""
FROM_CACHE, EMPTY_CACHE = "from the cache", "in one command"


@dataclass(frozen=True)
class Tool:
    """packages: what is installed in its environment. shown: packages whose version is reported. without: removed again."""

    packages: tuple[str, ...]
    shown: tuple[str, ...]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Route:
    """One way to build. command: from the environment's Python, the checkpoint, the output and a directory for anything else."""

    name: str
    tool: str
    command: Callable[[str, Path, Path, Path], list[str]]


INTEL = "edgekit with OpenVINO"
TOOLS = {
    "edgekit": Tool(("--editable", f"{ROOT}[build,onnx]"), ("numpy", "onnxruntime")),
    INTEL: Tool(("--editable", f"{ROOT}[build,onnx,openvino]"), ("numpy", "onnxruntime", "openvino")),
    "mlx": Tool(("mlx[cpu]", "mlx-lm"), ("mlx", "mlx-lm", "transformers")),
    "genai": Tool(
        ("onnxruntime-genai==0.18.0", "onnxruntime", "onnx-ir", "onnx", "torch==2.13.0", "transformers"),
        ("onnxruntime-genai", "torch", "transformers"),
    ),
    "optimum": Tool(
        ("optimum-intel[openvino]", "nncf", "torch==2.13.0"),
        ("optimum-intel", "openvino", "nncf", "torch", "transformers"),
        without=("torchvision",),  # beside a torch for CPUs, the registry's breaks optimum-cli at import; text models need none
    ),
}
DEFAULT = ("edgekit", "mlx", "genai")


def routes(tools: Sequence[str], targets: Sequence[str]) -> list[Route]:
    found = []
    for target in targets if "edgekit" in tools else ():
        tool = tool_for([target])
        found.append(Route(f"edgekit {target}", tool, edgekit([target], "-c", GATED)))
        found.append(Route(f"edgekit {target}, --no-verify", tool, edgekit([target], "-m", "edgekit.cli", more=["--no-verify"])))
        for method in ("search", "minmax"):
            alone = edgekit([target], "-m", "edgekit.cli", more=["--no-verify", "--method", method])
            found.append(Route(f"edgekit {target}, {method}, --no-verify", tool, alone))
        kept = edgekit([target], "-m", "edgekit.cli", more=["--no-verify"], cached=True)
        found.append(Route(f"edgekit {target} {FROM_CACHE}, --no-verify", tool, kept))
    if "edgekit" in tools and len(targets) > 1:
        every = edgekit(targets, "-m", "edgekit.cli", more=["--no-verify"], cached=True)
        found.append(Route(f"edgekit {', '.join(targets)} {EMPTY_CACHE}, --no-verify", tool_for(targets), every))
    known = [
        Route("mlx_lm.convert, g128", "mlx", lambda p, m, o, _: mlx(p, m, o, 128)),
        Route("mlx_lm.convert, g32", "mlx", lambda p, m, o, _: mlx(p, m, o, 32)),
        Route("onnxruntime-genai builder", "genai", genai),
        Route("optimum-cli export openvino, g128", "optimum", optimum),
    ]
    return found + [route for route in known if route.tool in tools]


def tool_for(targets: Sequence[str]) -> str:
    return INTEL if any(target.startswith("intel") for target in targets) else "edgekit"


def edgekit(
    targets: Sequence[str], *run: str, more: Sequence[str] = (), cached: bool = False
) -> Callable[[str, Path, Path, Path], list[str]]:
    options = [*(word for target in targets for word in ("--target", target)), "--quiet", *more, *([] if cached else ["--no-cache"])]
    return lambda python, model, out, _: [python, *run, "build", str(model), "--out", str(out), *options]


def mlx(python: str, model: Path, out: Path, group: int) -> list[str]:
    options = ["--hf-path", str(model), "--mlx-path", str(out), "-q", "--q-bits", "4", "--q-group-size", str(group)]
    return [python, "-m", "mlx_lm", "convert", *options]


def genai(python: str, model: Path, out: Path, aside: Path) -> list[str]:
    return [python, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(out), "-p", "int4", "-e", "cpu", "-c", str(aside)]


def optimum(python: str, model: Path, out: Path, _: Path) -> list[str]:
    options = ["--task", "text-generation-with-past", "--weight-format", "int4", "--group-size", "128", "--ratio", "1.0"]
    return [str(Path(python).with_name("optimum-cli")), "export", "openvino", "-m", str(model), *options, str(out)]


def one(route: Route, python: Path, model: Path, scratch: Path, keep: bool) -> dict[str, object]:
    """One run: everything measured, and what the tool left on disk."""
    out = scratch / route.name.replace(" ", "_").replace("/", "-")
    shutil.rmtree(out, ignore_errors=True)
    log = scratch / f"{out.name}.log"
    environment = {**measure.quiet_environment(scratch), "EDGEKIT_CACHE": str(scratch / "cache" / "edgekit")}
    if EMPTY_CACHE in route.name:
        shutil.rmtree(environment["EDGEKIT_CACHE"], ignore_errors=True)
    if FROM_CACHE in route.name:  # another build of these weights has been there before
        with tempfile.TemporaryDirectory(dir=scratch) as aside:
            subprocess.run(route.command(str(python), model, Path(aside) / "before", Path(aside)), check=True, env=environment)
    measure.warm(model)
    with tempfile.TemporaryDirectory(dir=scratch) as aside:
        command = route.command(str(python), model, out, Path(aside))
        usage = measure.run(command, log=log, environment=environment)
    result: dict[str, object] = {**asdict(usage), "bytes": measure.disk_bytes(out) if out.is_dir() else 0}
    gate = re.search(r"gate took ([\d.]+) s", log.read_text(encoding="utf-8", errors="replace"))
    result["gate"] = float(gate[1]) if gate else 0.0
    if usage.status:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        result["ended"] = f"killed by signal {-usage.status}" if usage.status < 0 else f"exit code {usage.status}: {' / '.join(tail)}"
    if usage.status or not keep:
        shutil.rmtree(out, ignore_errors=True)
    return result


def median(runs: list[dict[str, object]], key: str) -> float:
    return statistics.median(float(str(run[key])) for run in runs)


def row(name: str, runs: list[dict[str, object]], size: int) -> list[str]:
    good = [run for run in runs if not run["status"]]
    if not good:
        return [name, str(runs[-1]["ended"]), *[""] * 3, f"{median(runs, 'peak') / 1e9:.2f}", *[""] * 2, f"{size / 1e6:.0f}", ""]
    walls = [float(str(run["wall"])) for run in good]
    failed = f" ({len(runs) - len(good)} of {len(runs)} failed: {runs[-1].get('ended', '')})" if len(good) < len(runs) else ""
    return [
        name,
        f"{statistics.median(walls):.1f} ({min(walls):.1f} to {max(walls):.1f}){failed}",
        f"{median(good, 'gate'):.1f}" if median(good, "gate") else "",
        f"{median(good, 'user'):.1f}",
        f"{median(good, 'system'):.1f}",
        f"{median(good, 'peak') / 1e9:.2f}",
        f"{median(good, 'anonymous') / 1e9:.2f}",
        f"{median(good, 'bytes') / 1e9:.2f}",
        f"{size / 1e6:.0f}",
        f"{median(good, 'load'):.1f}",
    ]


def show(result: dict[str, object], measured: dict[str, list[dict[str, object]]], sizes: dict[str, int]) -> str:
    head = [
        "converter",
        "wall s: median (range)",
        "of it the gate",
        "user s",
        "system s",
        "peak RSS GB",
        "of it own",
        "artifact GB",
        "environment MB",
        "load before",
    ]
    rows = [row(name, runs, sizes[name]) for name, runs in measured.items() if runs]
    return f"{measure.table(head, rows)}\n\n`{result['command']}`; {json.dumps(result['machine'])}; {json.dumps(result['versions'])}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("phi-3.5-mini", "mistral-7b"), default="phi-3.5-mini")
    parser.add_argument("--layers", type=int, help="fewer than the model has, for a quick look")
    parser.add_argument("--target", action="append", help="edgekit's (default: cpu); may be repeated")
    parser.add_argument(
        "--only",
        action="append",
        choices=[name for name in TOOLS if name != INTEL],
        help=f"tools to run; may be repeated (default: {', '.join(DEFAULT)})",
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where models, artifacts and environments go (default: a temporary folder)")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        choices=["model", *TOOLS],
        help="leave the checkpoint, or a tool's artifacts, in --scratch; may be repeated",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "build.json")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    tools = asked.only or DEFAULT
    scratch = asked.scratch or Path(tempfile.mkdtemp(prefix="edgekit-bench-"))
    scratch.mkdir(parents=True, exist_ok=True)
    model = scratch / "-".join([asked.model, *([str(asked.layers)] if asked.layers else [])])
    chosen = routes(tools, asked.target or ["cpu"])
    used = list(dict.fromkeys(route.tool for route in chosen))
    places = {name: scratch / "environments" / name.replace(" ", "-") for name in used}
    pythons = {name: measure.environment(places[name], TOOLS[name].packages, TOOLS[name].without) for name in used}
    if not (model / "model.safetensors.index.json").exists():
        layers = ["--layers", str(asked.layers)] if asked.layers else []
        own = next((python for name, python in pythons.items() if name.startswith("edgekit")), Path(sys.executable))
        maker = [str(own), str(ROOT / "bench" / "synthetic.py")]
        subprocess.run([*maker, asked.model, str(model), *layers], check=True)
    measured: dict[str, list[dict[str, object]]] = {route.name: [] for route in chosen}
    sizes = {route.name: measure.disk_bytes(places[route.tool]) for route in chosen}
    result: dict[str, object] = {
        "command": "python bench/build.py " + " ".join(sys.argv[1:]),
        "machine": measure.machine(),
        "versions": {name: measure.versions(pythons[name], TOOLS[name].shown) for name in used},
        "checkpoint_bytes": measure.disk_bytes(model),
        "environment_bytes": sizes,
        "runs": measured,
    }
    try:
        for turn in range(asked.runs):
            # Each turn begins elsewhere, so that none always follows the same other one.
            for route in [*chosen[turn % len(chosen) :], *chosen[: turn % len(chosen)]]:
                measured[route.name].append(one(route, pythons[route.tool], model, scratch, route.tool in asked.keep))
                print(route.name, measured[route.name][-1], file=sys.stderr, flush=True)
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    finally:
        if "model" not in asked.keep:
            shutil.rmtree(model, ignore_errors=True)
        if asked.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)
    print(show(result, measured, sizes))


if __name__ == "__main__":
    main()

"""What edgekit's loop costs beside the engine's own generate: one artifact, both in one process, turn about.

    python bench/loop.py DIR --threads 2 --pairs 30      # some five minutes at Phi-3.5-mini's size

Each continues a prompt of 64 tokens by 32, greedy; only the 32 are timed. The loop is all that `edge run` does for a token: sampler,
log-probability, text, stop tokens, over edgekit's session; the other is onnxruntime-genai's or openvino_genai's generate, same files, same
threads, same kernels: edgekit's own products are left out. Who goes first alternates. The ratio is that of neighbours, so that what else
the machine does falls on both.
"""

import argparse
import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "bench")]

from decode_one import STEPS, Engine, Genai, Loop, OpenvinoGenai  # noqa: E402
from measure import machine  # noqa: E402

PROMPT = 64
PAUSE = 0.3
"""Seconds in which the other engine's threads stop spinning."""
DRAWS = 10_000


def seconds(engine: Engine, prompt: list[int]) -> float:
    """A token."""
    engine.start(prompt)
    began = time.perf_counter()
    for _ in range(STEPS):
        engine.step()
    return (time.perf_counter() - began) / STEPS


def interval(ratios: list[float]) -> tuple[float, float]:
    """Of the median, 95 %, by bootstrap."""
    drawn = np.random.default_rng(0).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    os.environ["EDGEKIT_ONNX_PRODUCTS"] = "onnxruntime"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="an artifact for `cpu` or `intel-cpu`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    manifest = json.loads((asked.directory / "edgekit.json").read_text(encoding="utf-8"))
    vocabulary, engine = manifest["tokens"]["vocab_size"], manifest["engine"]["name"]
    other = {"onnx": Genai, "openvino": OpenvinoGenai}[engine]
    routes: dict[str, Engine] = {"loop": Loop(asked.directory, asked.threads), "generate": other(asked.directory, asked.threads)}
    rng, taken = np.random.default_rng(0), []
    load = os.getloadavg()[0]
    for pair in range(-1, asked.pairs):  # the first of each pays for page faults
        prompt, found = rng.integers(10, vocabulary, PROMPT).tolist(), {}
        for name in ("loop", "generate") if pair % 2 else ("generate", "loop"):
            time.sleep(PAUSE)
            found[name] = seconds(routes[name], prompt)
        if pair >= 0:
            taken.append(found)
            print(f"{pair + 1}: {found['loop'] * 1e3:.2f} ms against {found['generate'] * 1e3:.2f}", flush=True)
    ratios = [found["loop"] / found["generate"] for found in taken]
    low, high = interval(ratios)
    packages = {"onnx": ("onnxruntime", "onnxruntime-genai"), "openvino": ("openvino", "openvino-genai")}[engine]
    result = {
        "command": "python bench/loop.py " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "versions": {name: version(name) for name in packages},
        "engine": engine,
        "load": load,
        "pairs": len(taken),
        "ms": {name: round(statistics.median(found[name] for found in taken) * 1e3, 2) for name in routes},
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "each": [{name: round(value * 1e3, 3) for name, value in found.items()} for found in taken],
    }
    print(json.dumps({key: value for key, value in result.items() if key != "each"}, indent=2))
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What edgekit's loop costs beside the engine's own generate: one artifact, both in one process, turn about.

    python bench/loop.py DIR --threads 2 --pairs 30      # some five minutes at Phi-3.5-mini's size
    python bench/loop.py DIR --against OTHER --prompt 1024 --threads 2 --pairs 20

Each continues a prompt of 64 tokens by 32, greedy; only the 32 are timed. The loop is all that `edge run` does for a token: sampler,
log-probability, text, stop tokens, over edgekit's session; the other is onnxruntime-genai's or openvino_genai's generate, same files, same
threads, same kernels: edgekit's own products are left out. With --against the other generates from another artifact of the same model, such
as that of onnxruntime-genai's builder, and edgekit's products are what they are by default; and with each pair the memory's bandwidth is
measured (decode_one.py), of which the weights, keys and values that a token reads take a share. Who goes first alternates. Ratios are those
of neighbours, so that what else the machine does falls on both.
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

from decode_one import STEPS, Engine, Genai, Loop, OpenvinoGenai, bandwidth, token_bytes  # noqa: E402
from measure import machine  # noqa: E402

PAUSE = 0.3
"""Seconds in which the other engine's threads stop spinning."""
DRAWS = 10_000


class Again(Genai):
    """Computes a prompt that it has just continued by its last token alone, as edgekit's loop does."""

    prompt: list[int] | None = None

    def start(self, prompt: list[int]) -> None:
        if prompt == self.prompt:
            self.generator.rewind_to(len(prompt) - 1)
            self.generator.append_tokens(np.array(prompt[-1:], np.int32))
            self.generator.generate_next_token()
        else:
            super().start(prompt)
            self.prompt = prompt


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="an artifact for `cpu` or `intel-cpu`")
    parser.add_argument("--against", type=Path, help="another artifact that onnxruntime-genai opens")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.against is None:
        os.environ["EDGEKIT_ONNX_PRODUCTS"] = "onnxruntime"
    manifest = json.loads((asked.directory / "edgekit.json").read_text(encoding="utf-8"))
    vocabulary, engine = manifest["tokens"]["vocab_size"], manifest["engine"]["name"]
    other = {"onnx": Again, "openvino": OpenvinoGenai}[engine]
    place = asked.against or asked.directory
    routes: dict[str, Engine] = {"loop": Loop(asked.directory, asked.threads), "generate": other(place, asked.threads)}
    prompt, taken = np.random.default_rng(0).integers(10, vocabulary, asked.prompt).tolist(), []
    load = os.getloadavg()[0]
    for pair in range(-1, asked.pairs):  # the first of each pays for page faults
        found = {}
        for name in ("loop", "generate") if pair % 2 else ("generate", "loop"):
            time.sleep(PAUSE)
            found[name] = seconds(routes[name], prompt)
        if asked.against is not None:
            time.sleep(PAUSE)
            found["dram"] = bandwidth(asked.threads)
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
        "prompt": asked.prompt,
        "load": load,
        "pairs": len(taken),
        "ms": {name: round(statistics.median(found[name] for found in taken) * 1e3, 2) for name in routes},
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "each": [{name: round(found[name] * 1e3, 3) for name in routes} for found in taken],
    }
    if asked.against is not None:
        [read] = token_bytes(asked.directory, [asked.prompt])
        result["dram"] = [round(found["dram"] / 1e9, 2) for found in taken]
        result["of_dram"] = round(statistics.median(read / found["loop"] / found["dram"] for found in taken), 3)
    print(json.dumps({key: value for key, value in result.items() if key != "each"}, indent=2))
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

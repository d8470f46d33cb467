"""What it costs that an answer does not depend on what was cached, and how many answers did.

    python bench/same.py DIR --out bench/results/same_cpu.json        # an artifact for `cpu` or `intel-cpu`

One artifact, its session opened in several ways, which take turns step by step so that other load on the machine meets all alike:

    now                      edgekit's products and attention: any prefix is reused
    before                   (`cpu`) edgekit's products beside ONNX Runtime's attention, any prefix reused
    the engine's own         the engine's products and attention; the prompt in pieces, only whole ones are reused
    the engine's own, before the same, any prefix reused: what processors with VNNI had

Prompts of 512 tokens; 32 tokens more; then a second turn of the answer so far and 32 new tokens, of which the time to its first token
counts. Answers: greedy and with a seed, asked once of an empty cache and again in another order, with and without lookup.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "bench")]

import edgekit  # noqa: E402
import measure  # noqa: E402
from edgekit.runtime import Runtime, Sampling  # noqa: E402
from edgekit.runtime.prefix import PrefixCache  # noqa: E402

PROMPT, STEPS, NEW, ANSWER = 512, 32, 32, 24
ASKED = (
    "What is the capital of France?",
    "Name three fruits.",
    "Write a short poem about the sea.",
    "Repeat after me: the quick brown fox jumps over the lazy dog.",
    "Copy this list twice: milk, bread, butter, eggs, cheese.",
    "Why is the sky blue?",
    "Count from one to ten.",
    "Translate to French: good morning.",
    "Give me a JSON object with the keys name and age.",
    "Tell me a joke.",
)


@dataclass
class Way:
    """A session opened in one way. exact: whether only what makes no difference is reused."""

    runtime: Runtime
    exact: bool


def opened(directory: Path, engine: str, *, own: bool, attends: bool = True, exact: bool = True) -> Way:
    variable, stock = {"onnx": ("EDGEKIT_ONNX_PRODUCTS", "onnxruntime"), "openvino": ("EDGEKIT_OPENVINO_PRODUCTS", "openvino")}[engine]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {variable: "edgekit" if own else stock}))
        if not attends:
            stack.enter_context(mock.patch("edgekit.engines.onnx.operator.attends", lambda _: False))
        return Way(edgekit.load(directory), exact)


def ways(directory: Path, engine: str, only: list[str]) -> dict[str, Way]:
    known: dict[str, Callable[[], Way]] = {"now": lambda: opened(directory, engine, own=True)}
    if engine == "onnx":
        known["before"] = lambda: opened(directory, engine, own=True, attends=False, exact=False)
    known["the engine's own"] = lambda: opened(directory, engine, own=False)
    known["the engine's own, before"] = lambda: opened(directory, engine, own=False, exact=False)
    return {name: make() for name, make in known.items() if not only or name in only}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of processor."""
    began, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - spent


def round_of(all_ways: dict[str, Way], seed: int) -> dict[str, dict[str, tuple[float, float]]]:
    """One prompt, its answer and a second turn, by every way in turn."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in all_ways}
    size = next(iter(all_ways.values())).runtime.manifest.tokens.vocab_size
    draw = [int(token) for token in rng.integers(0, size, PROMPT + STEPS + NEW)]
    caches = {name: PrefixCache(way.runtime.session) for name, way in all_ways.items()}
    names = list(all_ways)
    names = names[seed % len(names) :] + names[: seed % len(names)]
    for name in names:
        caches[name].clear()
        found[name]["prefill"] = timed(lambda n=name: caches[n].extend_to(draw[:PROMPT], exact=all_ways[n].exact))
    steps: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for length in range(PROMPT + 1, PROMPT + STEPS + 1):
        for name in names:
            grow = lambda n=name, end=length: caches[n].extend_to(draw[:end], prompt=PROMPT, exact=all_ways[n].exact)  # noqa: E731
            steps[name].append(timed(grow))
    for name in names:
        found[name]["token"] = (statistics.median(s for s, _ in steps[name]), sum(c for _, c in steps[name]) / STEPS)
        found[name]["second turn"] = timed(lambda n=name: caches[n].extend_to(draw, exact=all_ways[n].exact))
    return found


def differing(way: Way, lookup: int) -> tuple[int, int]:
    """Of answers asked again in another order, with so much lookup: how many are others than from an empty cache, and of how many."""
    runtime = way.runtime
    samplings = [Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=7)]
    asks = [([{"role": "user", "content": text}], sampling) for text in ASKED for sampling in samplings]

    def tokens(messages: list[dict[str, str]], sampling: Sampling, guess: int) -> tuple[int, ...]:
        return tuple(step.token for step in runtime.chat(messages, sampling=sampling, max_tokens=ANSWER, lookup=guess))

    guessing = mock.patch.object(PrefixCache, "drafts", True)
    with ExitStack() as stack:
        if not way.exact:
            # What was done: any prefix is reused, and drafts are taken. `extend_with` gets exact=False.
            extend = PrefixCache.extend_with
            loose = lambda cache, ids, draft, *, prompt=None, exact=True: extend(cache, ids, draft, prompt=prompt, exact=False)  # noqa: E731
            stack.enter_context(mock.patch.object(PrefixCache, "extend_with", loose))

            stack.enter_context(guessing)
        fresh = []
        for messages, sampling in asks:
            runtime._cache.clear()
            fresh.append(tokens(messages, sampling, 0))
        order = [int(i) for i in np.random.default_rng(0).permutation(len(asks))]
        again = [(i, tokens(*asks[i], lookup)) for i in (*order, *reversed(order))]
    return sum(said != fresh[i] for i, said in again), len(again)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append", default=[], help="one of the ways; may be repeated")
    parser.add_argument("--no-answers", action="store_true", help="a model of random weights answers nothing worth comparing")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    manifest = edgekit.artifact.load_artifact(asked.directory).manifest
    all_ways = ways(asked.directory, manifest.engine.name, asked.only)
    load = os.getloadavg()[0]
    rounds = [round_of(all_ways, seed) for seed in range(asked.rounds + 1)][1:]  # the first pays for page faults
    answers = (
        {}
        if asked.no_answers
        else {
            name: {str(n): differing(way, n) for n in (0, 6) if n == 0 or way.runtime.session.grain == 1 or not way.exact}
            for name, way in all_ways.items()
        }
    )
    result = {
        "command": "python bench/same.py " + " ".join(sys.argv[1:]),
        "model": manifest.model.name,
        "machine": measure.machine(),
        "load_average": round(load, 1),
        "versions": measure.versions(Path(sys.executable), ("numpy", "onnxruntime", "openvino")),
        "grain": {name: way.runtime.session.grain for name, way in all_ways.items()},
        "rounds": rounds,
        "differing": answers,
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

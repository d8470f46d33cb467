"""Prompt lookup: what a pass over several tokens costs against one, and what drafts gain on answers that copy from their prompt.

    python bench/lookup.py --random 8                    # cost, on a random Llama of 8 layers (0.3 GB as INT4) made for it
    python bench/lookup.py DIR --examples 20             # cost and gain, on an artifact of tiny-phi
    python bench/lookup.py DIR --out bench/results/lookup.json

Everything is interleaved: each round times every size, each prompt is answered with every N in turn. A draft of N tokens pays where the
tokens that come of a pass (1 and what was accepted) are more than the cost of N + 1 tokens relative to one.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "tests")]

import edgekit  # noqa: E402
from checkpoints import Variant, hf_shapes, write_json, write_tokenizer  # noqa: E402
from edgekit.runtime import Step  # noqa: E402
from tiny_phi import text  # noqa: E402

SIZES = (1, 2, 3, 4, 5, 7, 9, 13, 17)
DRAFTS = (0, 3, 6, 10)
Answers = list[tuple[list[Step], float]]  # the steps after the first, and their seconds


def random_llama(directory: Path, layers: int) -> Path:
    """A checkpoint of hidden size 2048 whose bf16 weights repeat one random block: quick to write, and no value of it matters here."""
    size = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000}
    config = Variant("llama", {**size, "num_hidden_layers": layers, "max_position_embeddings": 2048}).config_json()
    block = (np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype("<f4").view("<u4") >> 16).astype("<u2")
    header: dict[str, object] = {}
    shapes, at = hf_shapes(config), 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    directory.mkdir()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            file.write(np.resize(block, int(np.prod(shape))).tobytes() if len(shape) > 1 else b"\x80\x3f" * shape[0])
    write_json(directory / "config.json", config)
    write_tokenizer(directory)
    return directory


def cost(session: edgekit.Session, vocab: int, held: int, rounds: int) -> dict[int, float]:
    """Milliseconds of a pass over so many tokens, after ``held`` tokens: the median of interleaved rounds."""
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, vocab, held + max(SIZES))]
    session.rewind(0)
    session.forward(tokens[:held])
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(rounds + 1):
        for size, taken in times.items():
            session.rewind(held)
            began = time.perf_counter()
            session.forward_last(tokens[held : held + size], size)
            taken.append((time.perf_counter() - began) * 1000)
    session.rewind(0)
    return {size: statistics.median(taken[1:]) for size, taken in times.items()}


def difference(session: edgekit.Session, tokens: list[int], size: int) -> dict[str, float]:
    """Between logits after each of the last ``size`` tokens given at once and one by one: the engine's rounding."""
    session.rewind(0)
    session.forward(tokens[:-size])
    at_once = session.forward_last(tokens[-size:], size)
    session.rewind(len(tokens) - size)
    singly = np.stack([session.forward([token]) for token in tokens[-size:]])
    apart = at_once - singly
    rms = {name: round(float(np.sqrt(np.mean(values**2))), 6) for name, values in (("rms", apart), ("rms_of_logits", singly))}
    return {"tokens": size, "greatest": round(float(np.abs(apart).max()), 6), **rms}


def prompts(each: int) -> Mapping[str, list[list[text.Message]]]:
    """By kind, what tiny-phi answers with JSON that stands in the conversation already, as a whole or but for its values."""
    rng = Random(77)
    found: dict[str, list[list[text.Message]]] = {"command again": [], "new command": []}
    for _ in range(each):
        history = [text.command(rng) for _ in range(3)]
        before = [{"role": r, "content": c} for e in history for r, c in (("user", e.user), ("assistant", e.answer))]
        found["command again"].append([*before, {"role": "user", "content": rng.choice(history).user}])
        found["new command"].append([*before, {"role": "user", "content": text.command(rng).user}])
    return found


def gain(runtime: edgekit.Runtime, kinds: Mapping[str, Sequence[list[text.Message]]]) -> dict[str, dict[int, dict[str, float]]]:
    """By kind and N, the whole loop but for the first token: median tokens a second, median of each prompt's time without lookup over
    that with it, tokens a pass, share of answers that are the same as without. Each prompt begins with another N."""
    result: dict[str, dict[int, dict[str, float]]] = {}
    for kind, chats in kinds.items():
        taken: dict[int, Answers] = {most: [] for most in DRAFTS}
        for i, messages in enumerate(chats):
            list(runtime.chat(messages, max_tokens=1))  # so that no N pays for the prompt
            for most in (*DRAFTS[i % len(DRAFTS) :], *DRAFTS[: i % len(DRAFTS)]):
                steps = runtime.chat(messages, max_tokens=60, lookup=most)
                next(steps)
                began = time.perf_counter()
                taken[most].append((list(steps), time.perf_counter() - began))
        result[kind] = {most: compare(answers, taken[0]) for most, answers in taken.items()}
    return result


def compare(answers: Answers, plain: Answers) -> dict[str, float]:
    pairs = list(zip(answers, plain, strict=True))
    steps = [step for answer, _ in answers for step in answer]
    return {
        "tokens_per_second": round(statistics.median(len(answer) / seconds for answer, seconds in answers), 1),
        "speedup": round(statistics.median(before / seconds for (_, seconds), (_, before) in pairs), 2),
        "tokens_per_pass": round(len(steps) / sum(step.computed > 0 for step in steps), 2),
        "same": statistics.mean([s.token for s in answer] == [s.token for s in other] for (answer, _), (other, _) in pairs),
    }


def measure(directory: Path, arguments: argparse.Namespace) -> dict[str, object]:
    with edgekit.load(directory, threads=arguments.threads) as runtime:
        manifest = runtime.manifest
        held = min(arguments.held, runtime.context - max(SIZES))
        tokens = [int(t) for t in np.random.default_rng(2).integers(0, manifest.tokens.vocab_size, 40)]
        rounding = difference(runtime.session, tokens, 8)
        milliseconds = cost(runtime.session, manifest.tokens.vocab_size, held, arguments.rounds)
        return {
            "model": manifest.model.name,
            "scheme": manifest.scheme.name,
            "manifest_sha256": hashlib.sha256((directory / "edgekit.json").read_bytes()).hexdigest(),
            "bytes": sum(file.bytes for file in manifest.files.values()),
            "at_once_against_singly": rounding,
            "held_tokens": held,
            "milliseconds": {size: round(ms, 3) for size, ms in milliseconds.items()},
            "relative": {size: round(ms / milliseconds[1], 2) for size, ms in milliseconds.items()},
            "gain": gain(runtime, prompts(arguments.examples)) if arguments.examples else {},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", metavar="DIR", help="an artifact")
    parser.add_argument("--random", type=int, metavar="LAYERS", help="make a random Llama of so many layers")
    parser.add_argument("--examples", type=int, default=0, help="prompts of each kind, in tiny-phi's words")
    parser.add_argument("--held", type=int, default=200, help="tokens in the cache while passes are timed")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.directory
        if arguments.random:
            directory = Path(scratch) / "artifact"
            edgekit.build(random_llama(Path(scratch) / "random-llama", arguments.random), target="cpu", output=directory)
        if directory is None:
            parser.error("give an artifact DIR or --random LAYERS")
        result = measure(directory, arguments)
    names = ("numpy", "onnxruntime")
    result |= {
        "command": "python bench/lookup.py " + " ".join(sys.argv[1:]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

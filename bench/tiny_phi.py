"""Examines tiny-phi: exact match on held-out prompts, bf16 through reference.py and INT4 through the built artifact.

    python bench/tiny_phi.py --each 50 --out bench/results/tiny_phi.json

bf16 is scored by one forward pass of the numpy reference with the right answer in place, which finds the same answers as
greedy decoding; the artifact is scored by really generating. `make docs` puts the figures into README and model card.
"""

import argparse
import hashlib
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "toolkit"))

import edgekit  # noqa: E402
from edgekit.catalog import resolve  # noqa: E402
from edgekit.models import open_model  # noqa: E402
from edgekit.progress import silent  # noqa: E402
from edgekit.reference import reference_logits_many  # noqa: E402
from tiny_phi import exam, text  # noqa: E402

Scores = dict[str, dict[str, float]]


def by_cell(prompts: list[exam.Prompt], right: list[bool]) -> Scores:
    scores: Scores = {}
    for task in text.TASKS:
        scores[task] = {}
        for context in exam.CONTEXTS:
            cell = [r for p, r in zip(prompts, right, strict=True) if (p.task, p.context) == (task, context)]
            scores[task][context] = sum(cell) / len(cell)
    return scores


def examine_bf16(runtime: edgekit.Runtime, prompts: list[exam.Prompt]) -> list[bool]:
    model = open_model(resolve("tiny-phi", progress=silent))
    right = []
    for at in range(0, len(prompts), 16):
        chunk = prompts[at : at + 16]
        starts, sequences = [], []
        for prompt in chunk:
            rendered = runtime.render(prompt.messages)
            starts.append(len(runtime.tokenizer.encode(rendered)))
            sequences.append(runtime.tokenizer.encode(rendered + prompt.answer + "<|end|>"))
        for start, sequence, logits in zip(starts, sequences, reference_logits_many(model.decoder, model.tensor, sequences), strict=True):
            right.append(bool(np.array_equal(logits[start - 1 : -1].argmax(-1), sequence[start:])))
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=50, help="prompts for each task and context")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scheme", action="append", help="schemes to examine (default: the cpu target's)")
    arguments = parser.parse_args()
    scores: dict[str, Scores] = {}
    bits: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for scheme in arguments.scheme or [None]:
            directory = Path(scratch) / (scheme or "default")
            manifest = edgekit.build("tiny-phi", target="cpu", output=directory, scheme=scheme)
            with edgekit.load(directory) as runtime:
                prompts = list(exam.prompts(arguments.each, lambda m, r=runtime: len(r.tokenizer.encode(r.render(m)))))
                if "bf16" not in scores:
                    scores["bf16"] = by_cell(prompts, examine_bf16(runtime, prompts))
                right = [runtime.complete(p.messages, max_tokens=60).text == p.answer for p in prompts]
            scores[manifest.scheme.name] = by_cell(prompts, right)
            bits[manifest.scheme.name] = round(manifest.scheme.bits_per_weight, 3)
    weights = ROOT / "toolkit/edgekit/tiny_phi/model.safetensors"
    result = {
        "command": "python bench/tiny_phi.py " + " ".join(sys.argv[1:]),
        "versions": {name: version(name) for name in ("numpy", "onnxruntime", "tokenizers")} | {"python": platform.python_version()},
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "prompts_each": arguments.each,
        "bits_per_weight": bits,
        "scores": scores,
    }
    print(exam.table(scores, tasks=True))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

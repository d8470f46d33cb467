"""How far tiny-phi's quantized weights move its predictions: KL divergence and agreement with bf16, both run by reference.py.

    python bench/divergence.py --each 25 --out bench/results/divergence.json

Engines do not enter: every engine holds these weights, and what it adds is its kernels' rounding. Text: the held-out prompts of up to 230
tokens with their right answers; all positions count.
"""

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "toolkit"))

from edgekit.catalog import resolve  # noqa: E402
from edgekit.equalize import equalize  # noqa: E402
from edgekit.fitting import ALONE  # noqa: E402
from edgekit.models import Model, open_model  # noqa: E402
from edgekit.progress import silent  # noqa: E402
from edgekit.quant import dequantize, quantize  # noqa: E402
from edgekit.quant.scheme import SCHEMES, QuantScheme  # noqa: E402
from edgekit.quantized import matrices  # noqa: E402
from edgekit.reference import reference_logits_many  # noqa: E402
from edgekit.runtime.chat import ChatTemplate, special_tokens  # noqa: E402
from edgekit.runtime.tokenizer import open_tokenizer  # noqa: E402
from tiny_phi import exam  # noqa: E402

Array = NDArray[np.float32]


def quantized(model: Model, scheme: QuantScheme, method: str) -> Callable[[str], Array]:
    """Canonical name -> the weight as it comes back from ``scheme``, rounded by a method that looks at the weights alone."""
    if method == "equalize":
        model = equalize(model, {m.weight: m.format for m in matrices(model, scheme)}, silent)
    search = method != "minmax"

    def tensor(name: str) -> Array:
        weight = model.tensor(name)
        if weight.ndim < 2:
            return weight
        return dequantize(quantize(weight, scheme.format_for(name, weight.shape[1]), name=name, search=search))

    return tensor


def log_softmax(logits: Array) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def sequences(model: Model, each: int) -> list[list[int]]:
    directory = model.checkpoint.directory
    tokenizer = open_tokenizer(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = ChatTemplate(config["chat_template"], special_tokens(directory))
    first = next(iter(exam.CONTEXTS))
    prompts = exam.prompts(each, lambda messages: len(tokenizer.encode(template.render(messages))))
    return [tokenizer.encode(template.render(p.messages) + p.answer + "<|end|>") for p in prompts if p.context == first]


def compare(wanted: list[NDArray[np.float64]], found: list[Array]) -> dict[str, float]:
    kl = np.concatenate([(np.exp(a) * (a - log_softmax(b))).sum(axis=-1) for a, b in zip(wanted, found, strict=True)])
    same = np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in zip(wanted, found, strict=True)])
    return {
        "mean_kl": round(float(kl.mean()), 5),
        "p99_kl": round(float(np.quantile(kl, 0.99)), 4),
        "same_top1": round(float(same.mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=25, help="prompts for each task")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model = open_model(resolve("tiny-phi", progress=silent))
    tokens = sequences(model, arguments.each)
    wanted = [log_softmax(logits) for logits in reference_logits_many(model.decoder, model.tensor, tokens)]
    rows: dict[str, dict[str, float]] = {}
    for scheme in SCHEMES.values():
        for method in ALONE:
            found = reference_logits_many(model.decoder, quantized(model, scheme, method), tokens)
            rows[f"{scheme.name}, {method}"] = compare(wanted, found)
    result = {
        "command": "python bench/divergence.py " + " ".join(sys.argv[1:]),
        "versions": {"numpy": version("numpy"), "python": platform.python_version()},
        "weights_sha256": hashlib.sha256((model.checkpoint.directory / "model.safetensors").read_bytes()).hexdigest(),
        "positions": sum(map(len, tokens)),
        "schemes": rows,
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

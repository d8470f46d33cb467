"""Every method of ours on trained checkpoints: mean KL divergence, same top-1 and processor seconds, by scheme, method and budget.

    python bench/methods.py tiny-phi bench/data/tiny-llama bench/data/tiny-mistral --out bench/results/methods.json
    python bench/methods.py smollm2 smollm2-off --own-text --tokens 4096 --out bench/results/methods_smollm2.json     # tests/smollm2.py
    python bench/methods.py /path/to/model --own-text --only int4-g64/equalize,int4-g32/awq-gptq

The quantized weights run in the reference decoder against the checkpoint in float32, on text that no method sees, of tiny-phi's kind, which
its siblings were trained on too; weights are fitted to tiny-phi's ``calibration.txt``. ``--own-text``: the model's own, else edgekit's
texts. Peers are in bench/fidelity.py.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "bench")]

from edgekit import fidelity, fitting  # noqa: E402
from edgekit.cache import Cache, source_files  # noqa: E402
from edgekit.catalog import resolve  # noqa: E402
from edgekit.companions import read_companions  # noqa: E402
from edgekit.divergence import F32, Figures, compare, figures, join  # noqa: E402
from edgekit.models import Model, open_model  # noqa: E402
from edgekit.precision import Budget  # noqa: E402
from edgekit.progress import silent  # noqa: E402
from edgekit.quant.scheme import QuantScheme, scheme  # noqa: E402
from edgekit.quantized import Quantizer, dequantized, matrices  # noqa: E402
from edgekit.reference import reference_logits_many  # noqa: E402
from edgekit.windows import Effort, windows  # noqa: E402
from measure import machine, table  # noqa: E402
from tiny_phi import text as tiny_text  # noqa: E402

ROWS: list[tuple[str, str, float | None]] = [
    ("int4-g32", "minmax", None),
    ("int4-g32", "search", None),
    ("int4-g32", "equalize", None),
    ("int4-g32", "awq-gptq", None),
    ("int4-g64", "equalize", None),
    ("int4-g64", "awq-gptq", None),
    *(("int4-g128", method, None) for method in fitting.METHODS),
    ("int4-sym-g128", "search", None),
    ("int4-sym-g128", "equalize", None),
    ("int4-g128", "equalize", 0.2),
    ("int4-g128", "awq-gptq", 0.2),
    ("int4-g128", "equalize", 0.5),
    ("int4-g128", "awq-gptq", 0.5),
    ("int4-g32", "awq-gptq", 0.6),
]
"""Scheme, method, and bits a weight above the scheme's least."""


def held_out() -> str:
    """Of tiny-phi's kind, whose generator makes as much as is asked for."""
    rng, text = Random("held out"), ""
    while len(text) < 60_000:
        text += "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in tiny_text.conversation(rng, 40))
    return text


def bits(model: Model, quant: QuantScheme) -> float:
    every = matrices(model, quant)
    return sum(m.format.bits_per_weight * m.shape[0] * m.shape[1] for m in every) / sum(m.shape[0] * m.shape[1] for m in every)


def measure(place: str, tokens: int, own_text: bool, only: set[str]) -> list[dict[str, object]]:
    model, tiny = (open_model(resolve(name, progress=silent)) for name in (place, "tiny-phi"))
    fitted_to = fitting.default_text(model if own_text else tiny)
    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    ids = companions.tokenizer.encode(fidelity.default_text(model) if own_text else held_out())
    cut = [w for w in windows(ids, [], model.decoder.context, model.decoder.rope.switch, Effort(tokens, 256, 0)) if w.part == "short"]
    given = [w.given for w in cut]
    reference = reference_logits_many(model.decoder, model.tensor, given)

    def score(logits: list[F32]) -> Figures:
        parts = (compare(p[-w.scored :], q[-w.scored :], w.following) for w, p, q in zip(cut, reference, logits, strict=True))
        return figures(join(parts))

    sources = source_files({t.file for t in model.checkpoint.tensors.values()}, None, silent, None)
    found: list[dict[str, object]] = []
    for name, method, above in ROWS:
        if only and f"{name}/{method}{'' if above is None else f'+{above:g}'}" not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            began, quant = time.process_time(), scheme(name)
            budget = None if above is None else Budget(bits=bits(model, quant) + above)
            text = None if method in fitting.ALONE and budget is None else fitted_to
            fitted = fitting.settle(model, companions, quant, method=method, calibration=text, budget=budget)
            quantizer = Quantizer(cache=Cache(Path(folder), 1 << 40), sources=sources)
            quant = fitting.within_budget(model, quant, fitted, lambda _: 0, quantizer, silent)
            other, quantizer = fitting.fit(model, quant, fitted, quantizer, Path(folder), silent)
            every = {m.weight: m for m in matrices(other, quant)}
            weights = {n: dequantized(other, m, quantizer) for n, m in every.items()}
            seconds = time.process_time() - began
        got = score(reference_logits_many(model.decoder, lambda n: weights[n] if n in weights else other.tensor(n), given))  # noqa: B023
        found.append(
            {
                "checkpoint": Path(place).name,
                "scheme": name,
                "method": method,
                "above": above,
                "bits": round(bits(model, quant), 3),
                "kl": float(f"{got.mean_kl.value:.3g}"),
                "kl_error": float(f"{got.mean_kl.error:.2g}"),
                "top1": round(got.same_top.value, 4),
                "perplexity_ratio": round(got.perplexity_ratio.value, 4),
                "processor_s": round(seconds, 1),
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--own-text", action="store_true")
    parser.add_argument("--only", default="", help="rows, such as int4-g64/equalize,int4-g32/awq-gptq+0.6; all where not given")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    only = set(filter(None, arguments.only.split(",")))
    rows = [row for place in arguments.checkpoints for row in measure(place, arguments.tokens, arguments.own_text, only)]
    head = ["checkpoint", "scheme", "method", "bits", "kl", "kl_error", "top1", "perplexity_ratio", "processor_s"]
    print(table(head, [[str(value) for value in row.values()] for row in rows]))
    if arguments.out is not None:
        result = {
            "command": "python bench/methods.py " + " ".join(sys.argv[1:]),
            "machine": machine(),
            "numpy": np.__version__,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

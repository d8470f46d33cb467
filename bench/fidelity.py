"""What quantizing costs: edgekit's methods and other tools' on the same trained checkpoints, measured by one harness.

    python bench/fidelity.py --scratch DIR                                        # everything; DIR keeps environments and weights
    python bench/fidelity.py --scratch DIR --checkpoint tiny-phi --only edgekit   # a quick look
    python bench/fidelity.py --scratch DIR --reuse --only mlx --out FILE          # the others' rows in FILE stay

Every method hands over dequantized float32 weights; the reference decoder runs them, so that no engine's rounding enters. Only the layers'
matrices are quantized, embedding and lm_head stay as they were and their bits are left out, so that quantizers are compared and nothing
else; --whole adds the figures with all that the tool's file quantizes. Bits: what the file stores, scales and zero points included. Text:
held-out prompts of tiny-phi's examination with their answers; what calibrates sees training conversations, all the same ones. Peers run
in environments of their own below --scratch (bench/peers/); llama-cpp-python compiles.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import measure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "toolkit"))

from edgekit.catalog import resolve  # noqa: E402
from edgekit.divergence import Figures, compare, figures  # noqa: E402
from edgekit.models import Model, open_model  # noqa: E402
from edgekit.progress import silent  # noqa: E402
from edgekit.reference import reference_logits_many  # noqa: E402
from edgekit.runtime.chat import ChatTemplate, special_tokens  # noqa: E402
from edgekit.runtime.tokenizer import Tokenizer, open_tokenizer  # noqa: E402
from fidelity_own import METHODS, Own  # noqa: E402
from tiny_phi import exam, text  # noqa: E402

F32 = NDArray[np.float32]
CHECKPOINTS = {
    "tiny-phi": "tiny-phi",
    "tiny-mistral": str(ROOT / "bench/data/tiny-mistral"),
    "tiny-llama": str(ROOT / "bench/data/tiny-llama"),
}
TORCH = "torch==2.13.0"
PEERS = {
    "llama": ("llama-cpp-python", "gguf", "safetensors"),
    "mlx": ("mlx[cpu]", "mlx-lm", "safetensors"),
    "genai": ("onnxruntime-genai==0.18.0", "onnxruntime", "onnx-ir", "onnx", TORCH, "transformers"),
    "nncf": ("optimum-intel[openvino]", "nncf", TORCH),
}
SHOWN = (
    "numpy",
    "onnxruntime",
    "onnxruntime-genai",
    "openvino",
    "nncf",
    "optimum-intel",
    "mlx",
    "mlx-lm",
    "llama-cpp-python",
    "gguf",
    "torch",
)
CONTEXTS = ("up to 230 tokens", "300 to 600")
"""Lengths of the held-out prompts' context."""
CALIBRATION = {256: 16, 512: 8}
"""Length of a sequence in tokens, and how many of it: 8,192 tokens."""
SEED = 77
OUTSIDE = ("embed_tokens", "lm_head")
JOB = "job.json"


@dataclass(frozen=True)
class Row:
    """One method on one checkpoint. layers: figures with only the layers' matrices quantized. whole: with everything, if that was asked
    for. Both hold mean KL in nats a token, 99.9 % KL, share of same top-1, perplexity and bits a weight. seconds: for quantizing alone.
    """

    name: str
    calibrated: bool
    seconds: float
    layers: Mapping[str, float]
    whole: Mapping[str, float] | None


@dataclass(frozen=True)
class Subject:
    """A checkpoint under test. wanted: the logits of ``texts`` by its own weights."""

    name: str
    model: Model
    texts: list[list[int]]
    calibration: list[list[int]]
    wanted: list[F32]


def subject(name: str, each: int) -> Subject:
    model = open_model(resolve(CHECKPOINTS[name], progress=silent))
    directory = model.checkpoint.directory
    tokenizer = open_tokenizer(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = ChatTemplate(config["chat_template"], special_tokens(directory))
    prompts = exam.prompts(each, lambda messages: len(tokenizer.encode(template.render(messages))))
    shorter = (p for p in until(prompts) if p.context in CONTEXTS)
    texts = [tokenizer.encode(template.render(p.messages) + p.answer + "<|end|>") for p in shorter]
    wanted = reference_logits_many(model.decoder, model.tensor, texts)
    return Subject(name, model, texts, calibration(tokenizer), wanted)


def until(prompts: Iterator[exam.Prompt]) -> Iterator[exam.Prompt]:
    """Those before the first of a longer context: making the long ones takes most of the time."""
    for prompt in prompts:
        if prompt.context not in CONTEXTS:
            return
        yield prompt


def calibration(tokenizer: Tokenizer) -> list[list[int]]:
    """Training conversations: no question of the examination is among them."""
    rng = Random(SEED)
    found: list[list[int]] = []
    for length, count in CALIBRATION.items():
        for _ in range(count):
            ids: list[int] = []
            while len(ids) < length:
                said = text.conversation(rng, length // 3)
                ids += tokenizer.encode("".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in said))
            found.append(ids[:length])
    return found


def figures_of(subject: Subject, tensor: Callable[[str], F32]) -> dict[str, float]:
    found = reference_logits_many(subject.model.decoder, tensor, subject.texts)
    following = [ids[1:] for ids in subject.texts]
    reference, logits = (np.concatenate([part[:-1] for part in parts]) for parts in (subject.wanted, found))
    return as_row(figures(compare(reference, logits, [token for ids in following for token in ids])))


def as_row(f: Figures) -> dict[str, float]:
    return {
        "mean_kl": f.mean_kl.value,
        "mean_kl_error": f.mean_kl.error,
        "p999_kl": f.kl_p999,
        "same_top1": f.same_top.value,
        "perplexity": f.perplexity.value,
        "reference_perplexity": f.reference_perplexity.value,
        "positions": f.positions,
    }


def measured(subject: Subject, made: Own, *, whole: bool) -> Row:
    model = subject.model
    sizes = {name: float(np.prod(shape)) for name, shape in model.decoder.weight_shapes().items() if len(shape) == 2}
    inner = [name for name in sizes if name not in OUTSIDE]

    def bits(names: Sequence[str]) -> float:
        return sum(made.bits[name] for name in names) / sum(sizes[name] for name in names)

    def tensor(name: str, *, keep: Sequence[str] = ()) -> F32:
        return made.weights[name] if name in made.weights and name not in keep else model.tensor(name)

    layers = figures_of(subject, lambda name: tensor(name, keep=OUTSIDE)) | {"bits": bits(inner)}
    every = figures_of(subject, tensor) | {"bits": bits(list(sizes))} if whole else None
    return Row(made.name, made.calibrated, made.seconds, layers, every)


def prepare(subject: Subject, directory: Path) -> None:
    """Writes the job that the peers read."""
    directory.mkdir(parents=True, exist_ok=True)
    model = subject.model
    save_file(
        {name: np.ascontiguousarray(model.tensor(name)) for name in model.decoder.weight_shapes()}, directory / "canonical.safetensors"
    )
    squares: dict[str, F32] = {}

    def seen(name: str, inputs: F32) -> None:
        squares[name] = np.square(inputs, dtype=np.float64).mean(axis=0).astype(np.float32)

    reference_logits_many(model.decoder, model.tensor, subject.calibration, last=1, seen=seen)
    save_file(squares, directory / "squares.safetensors")
    told = {
        "checkpoint": str(model.checkpoint.directory),
        "calibration": subject.calibration,
        "config": dict(model.checkpoint.config),
    }
    (directory / JOB).write_text(json.dumps(told), encoding="utf-8")


def ask_peer(peer: str, python: Path, job: Path, out: Path, only: Sequence[str]) -> None:
    """Runs a peer; what it says goes to a file beside its weights."""
    out.mkdir(parents=True, exist_ok=True)
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "HF_HOME": str(job / "hf")}
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (out / f"{peer}.log").open("w", encoding="utf-8") as log:
        command = [str(python), str(ROOT / "bench/peers" / f"peer_{peer}.py"), str(job), str(out), *only]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=kept | quiet, check=False)


def peers_weights(out: Path) -> Iterator[Own]:
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            about = file.metadata()
        yield Own(about["name"], load_file(path), json.loads(about["bits"]), float(about["seconds"]), json.loads(about["calibrated"]))


def failures(out: Path) -> dict[str, str]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.failed"))]
    return {entry["name"]: entry["error"] for entry in found}


def bench(asked: argparse.Namespace, scratch: Path, name: str, pythons: Mapping[str, Path]) -> Iterator[dict[str, object]]:
    """The figures of a checkpoint as far as they are known, more after each peer."""
    test = subject(name, asked.each)
    place = scratch / name
    if not (asked.reuse and (place / JOB).is_file()):
        prepare(test, place)
    found: dict[str, object] = {
        "weights_sha256": hashlib.sha256((test.model.checkpoint.directory / "model.safetensors").read_bytes()).hexdigest(),
        "parameters": test.model.parameters,
        "positions": sum(map(len, test.texts)) - len(test.texts),
    }
    rows: dict[str, object] = {}
    failed: dict[str, str] = {}
    for peer in asked.only or ["edgekit", *PEERS]:
        out = place / peer
        if peer == "edgekit":
            made = (method(test.model, test.calibration) for method in METHODS if chosen(asked.method, method.name))
        else:
            if not (asked.reuse and out.is_dir()):
                ask_peer(peer, pythons[peer], place, out, asked.method)
            made = (weights for weights in peers_weights(out) if chosen(asked.method, weights.name))
            failed |= failures(out)
        for one in made:
            rows[one.name] = asdict(show(measured(test, one, whole=asked.whole))) | {"by": peer}
            yield found | {"rows": rows, "failed": failed}


def chosen(parts: Sequence[str], name: str) -> bool:
    return not parts or any(part in name for part in parts)


def show(row: Row) -> Row:
    cells = " ".join(f"{row.layers[key]:.5f}" for key in ("bits", "mean_kl", "p999_kl", "same_top1", "perplexity"))
    more = f" | whole {row.whole['bits']:.3f} {row.whole['mean_kl']:.5f}" if row.whole else ""
    print(f"{row.name:42} {cells} | {row.seconds:.1f} s{more}", file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", action="append", choices=list(CHECKPOINTS), help="may be repeated (default: all)")
    parser.add_argument("--only", action="append", choices=["edgekit", *PEERS], help="whose methods; may be repeated (default: all)")
    parser.add_argument("--method", action="append", default=[], help="a part of a method's name; may be repeated (default: all)")
    parser.add_argument("--each", type=int, default=4, help="held-out prompts for each of four tasks and two lengths")
    parser.add_argument("--whole", action="store_true", help="also with embedding and lm_head quantized")
    parser.add_argument("--reuse", action="store_true", help="take peers' weights that lie in --scratch")
    parser.add_argument("--scratch", type=Path, help="environments and weights (default: a temporary folder)")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    scratch = asked.scratch or Path(tempfile.mkdtemp(prefix="edgekit-bench-"))
    peers = [peer for peer in PEERS if not asked.only or peer in asked.only]
    pythons = {peer: measure.environment(scratch / "environments" / peer, PEERS[peer], ("torchvision",)) for peer in peers}
    known = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out and asked.out.is_file() else {}
    result: dict[str, object] = {
        "command": "python bench/fidelity.py --scratch DIR --out bench/results/fidelity.json",
        "machine": measure.machine(),
        "versions": known.get("versions", {})
        | {"edgekit": measure.versions(Path(sys.executable), SHOWN)}
        | {peer: measure.versions(pythons[peer], SHOWN) for peer in peers},
        "calibration_tokens": sum(length * count for length, count in CALIBRATION.items()),
    }
    every = known.get("checkpoints", {})
    for name in asked.checkpoint or CHECKPOINTS:
        before = every.get(name, {})
        for found in bench(asked, scratch, name, pythons):
            every[name] = found | {key: before.get(key, {}) | found[key] for key in ("rows", "failed")}
            if asked.out:
                asked.out.write_text(json.dumps(result | {"checkpoints": every}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""By how much rounding moves logits, in standard deviations of them: what `edge verify` calls a near tie (verify.NEAR) rests on this.

    python bench/near_ties.py

Each model's greedy vectors through ONNX Runtime, token by token: int8 products (accuracy_level 4) against float32 ones (0), and one thread
against two; and how far a token taken at random trails the most likely one.
"""

import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "tests")]

import edgekit  # noqa: E402
from checkpoints import make_checkpoint  # noqa: E402
from edgekit.artifact import GreedyVector, load_artifact  # noqa: E402
from tiny_artifact import write_target  # noqa: E402


def logits(directory: Path, vectors: tuple[GreedyVector, ...], threads: int) -> NDArray[np.float32]:
    """[tokens, V], each row that from which a token of a continuation is chosen."""
    rows = []
    with edgekit.load(directory, threads=threads) as runtime:
        for vector in vectors:
            runtime.session.rewind(0)
            rows.append(runtime.session.forward(vector.prompt))
            rows += [runtime.session.forward([token]) for token in vector.continuation[:-1]]
    return np.array(rows)


def main() -> None:
    print(f"onnxruntime {version('onnxruntime')}, python {platform.python_version()}, {platform.machine()}")
    print("| model | tokens | int8 against float32: rms | at most | other choices | 1 thread against 2 | a random token trails by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models = {"tiny-phi": "tiny-phi"} | {name: str(make_checkpoint(folder / name, name)) for name in ("llama", "phi3", "qwen2")}
        for name, model in models.items():
            built = {}
            for level in (4, 0):
                target = write_target(
                    folder / f"{level}.toml", "onnx", context=200 if model == name else 96, options=f"accuracy_level = {level}"
                )
                built[level] = folder / f"{name}-{level}"
                edgekit.build(model, target=target, output=built[level], scheme="int4-g32")
            vectors = load_artifact(built[4]).manifest.conformance.greedy.vectors
            fast, exact, alone = (logits(built[level], vectors, threads) for level, threads in ((4, 2), (0, 2), (4, 1)))
            spread = fast.std(1)
            moved = np.abs(fast - exact)
            trails = ((fast.max(1, keepdims=True) - fast) / spread[:, None]).mean()
            print(
                f"| {name} | {len(fast)} | {(np.sqrt((moved**2).mean(1)) / spread).max():.3f} | {(moved.max(1) / spread).max():.3f} "
                f"| {(fast.argmax(1) != exact.argmax(1)).sum()} | {np.abs(fast - alone).max():g} | {trails:.1f} |"
            )


if __name__ == "__main__":
    main()

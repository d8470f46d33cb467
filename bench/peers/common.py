"""What the peers of bench/fidelity.py share: they read a job's folder and leave dequantized float32 weights under canonical names.

A job is a folder: canonical.safetensors (every weight, float32, by its canonical name), job.json (see ``Job``), squares.safetensors (for
each matrix the mean square of each of its inputs over the calibration text). Needs numpy and safetensors.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """checkpoint: in Hugging Face layout. calibration: token sequences. config: the checkpoint's config.json."""

    directory: Path
    checkpoint: Path
    calibration: list[list[int]]
    config: dict[str, object]

    def weights(self) -> dict[str, F32]:
        return load_file(self.directory / "canonical.safetensors")

    def squares(self) -> dict[str, F32]:
        return load_file(self.directory / "squares.safetensors")

    def matrices(self) -> dict[str, F32]:
        return {name: w for name, w in self.weights().items() if w.ndim == 2}

    def integer(self, key: str) -> int:
        value = self.config[key]
        assert isinstance(value, int)
        return value


@dataclass(frozen=True)
class Made:
    """Weights as a method's file gives them back. bits: what each matrix takes in that file, in bits, scales and zero points included.

    norms: norm weights that it changed. seconds: what quantizing took. calibrated: whether it saw the calibration text.
    """

    weights: Mapping[str, F32]
    bits: Mapping[str, float]
    seconds: float
    calibrated: bool


Method = Callable[[Job], Made]


def run(methods: Mapping[str, Method]) -> None:
    """The peer's ``main``: JOB, OUT and parts of the names of methods (none for all) from the command line; a file in OUT for each method,
    or the reason why it fails.
    """
    place, out, only = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    told = json.loads((place / "job.json").read_text(encoding="utf-8"))
    job = Job(place, Path(told["checkpoint"]), told["calibration"], told["config"])
    for name, method in methods.items():
        if only and not any(part in name for part in only):
            continue
        path = out / (name.replace(" ", "_").replace("/", "-") + ".safetensors")
        try:
            made = method(job)
        except Exception as error:  # a peer's own; the table says what it was
            said = f"{type(error).__name__}: {error}"
            path.with_suffix(".failed").write_text(json.dumps({"name": name, "error": said}), encoding="utf-8")
            print(f"{name}: {said}", file=sys.stderr, flush=True)
            continue
        about = {"name": name, "bits": json.dumps(made.bits), "seconds": str(made.seconds), "calibrated": json.dumps(made.calibrated)}
        save_file({n: np.ascontiguousarray(w, np.float32) for n, w in made.weights.items()}, path, metadata=about)
        print(f"{name}: {made.seconds:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def clock() -> Iterator[list[float]]:
    """A list that holds the seconds of the block once it is over."""
    found: list[float] = []
    began = time.perf_counter()
    yield found
    found.append(time.perf_counter() - began)


def fused(config: Mapping[str, object]) -> bool:
    """Whether the checkpoint has q, k, v and gate, up in one matrix each."""
    return config["model_type"] == "phi3"

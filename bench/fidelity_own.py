"""edgekit's own ways to quantize, as bench/fidelity.py measures them."""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.cache import Cache, source_files
from edgekit.calibrate import calibrate, method
from edgekit.models import Model
from edgekit.progress import silent
from edgekit.quant import concatenate, dequantize, quantize
from edgekit.quant.scheme import SCHEMES, QuantizedTensor, QuantScheme
from edgekit.quantized import Kept, Matrix, cuts, load_block, matrices

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Own:
    """Weights as a method gives them back. bits: what each matrix takes in all. seconds: of quantizing."""

    name: str
    weights: Mapping[str, F32]
    bits: Mapping[str, float]
    seconds: float
    calibrated: bool


@dataclass(frozen=True)
class Method:
    """A scheme with a way to find scales and codes: ``min/max``, ``search`` or ``calibrated``."""

    scheme: QuantScheme
    way: str

    @property
    def name(self) -> str:
        return f"edgekit {self.scheme.name} {self.way}"

    def __call__(self, model: Model, calibration: Sequence[Sequence[int]]) -> Own:
        wanted = matrices(model, self.scheme)
        began = time.perf_counter()
        if self.way == "calibrated":
            made = calibrated(model, self.scheme, calibration, wanted)
        else:
            made = {m.weight: quantize(model.tensor(m.weight), m.format, name=m.weight, search=self.way == "search") for m in wanted}
        seconds = time.perf_counter() - began
        bits = {m.weight: m.format.bits_per_weight * m.shape[0] * m.shape[1] for m in wanted}
        return Own(self.name, {name: dequantize(t) for name, t in made.items()}, bits, seconds, self.way == "calibrated")


def calibrated(
    model: Model, scheme: QuantScheme, calibration: Sequence[Sequence[int]], wanted: Sequence[Matrix]
) -> dict[str, QuantizedTensor]:
    """As ``edge build --calibrate`` does it."""
    with tempfile.TemporaryDirectory() as place:
        files = sorted({info.file for info in model.checkpoint.tensors.values()})
        store = Kept(Cache(Path(place), sys.maxsize), source_files(files, None, silent, None), method(calibration))
        calibrate(model, scheme, calibration, store, silent)

        def kept(m: Matrix) -> QuantizedTensor:
            if m.format.bits != 4:
                return quantize(model.tensor(m.weight), m.format, name=m.weight)
            blocks = [load_block(model, m, start, stop, store) for start, stop in cuts(m.shape)]
            return concatenate([block for block in blocks if block is not None])

        return {m.weight: kept(m) for m in wanted}


METHODS = [
    Method(scheme, way)
    for scheme in SCHEMES.values()
    for way in ("min/max", "search", "calibrated")
    if way != "calibrated" or not scheme.linear.symmetric
]

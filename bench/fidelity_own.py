"""edgekit's own ways to quantize, as bench/fidelity.py measures them."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.cache import Cache, source_files
from edgekit.fitting import ALONE, Fitted, Method, fit, within_budget
from edgekit.models import Model
from edgekit.precision import Budget
from edgekit.progress import silent
from edgekit.quant.scheme import QuantScheme, scheme
from edgekit.quantized import Quantizer, dequantized, matrices

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
class Way:
    """A scheme with a method. above: a budget, in bits a weight above what the scheme takes; None for no mixed precision."""

    scheme: str
    method: Method
    above: float | None = None

    @property
    def name(self) -> str:
        return f"edgekit {self.scheme} {self.method}{f' +{self.above} bits' if self.above else ''}"

    def __call__(self, model: Model, calibration: Sequence[Sequence[int]]) -> Own:
        """As ``edge build`` does it, on the calibration tokens of the bench."""
        sources = source_files({info.file for info in model.checkpoint.tensors.values()}, None, silent, None)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            quant = scheme(self.scheme)
            fitted = Fitted(self.method, "", calibration, Budget(bits=bits(model, quant) + self.above) if self.above else None)
            quantizer = Quantizer(cache=Cache(Path(place), 1 << 40), sources=sources)
            quant = within_budget(model, quant, fitted, lambda _: 0, quantizer, silent)
            other, quantizer = fit(model, quant, fitted, quantizer, Path(place), silent)
            wanted = matrices(other, quant)
            weights = {m.weight: dequantized(other, m, quantizer) for m in wanted}
        seconds = time.perf_counter() - began
        rest = {name: other.tensor(name) for name in other.decoder.weight_shapes() if name not in weights}
        stored = {m.weight: m.format.bits_per_weight * m.shape[0] * m.shape[1] for m in wanted}
        return Own(self.name, weights | rest, stored, seconds, self.method not in ALONE or self.above is not None)


def bits(model: Model, quant: QuantScheme) -> float:
    """A weight's, over all matrices."""
    every = matrices(model, quant)
    return sum(m.format.bits_per_weight * m.shape[0] * m.shape[1] for m in every) / sum(m.shape[0] * m.shape[1] for m in every)


METHODS = [
    Way("int4-g32", "minmax"),
    Way("int4-g32", "search"),
    Way("int4-g32", "equalize"),
    Way("int4-g32", "awq-gptq"),
    Way("int4-g64", "minmax"),
    Way("int4-g64", "search"),
    Way("int4-g64", "equalize"),
    Way("int4-g64", "awq-gptq"),
    Way("int4-g128", "minmax"),
    Way("int4-g128", "search"),
    Way("int4-g128", "equalize"),
    Way("int4-g128", "awq"),
    Way("int4-g128", "gptq"),
    Way("int4-g128", "awq-gptq"),
    Way("int4-g128", "equalize", 0.2),
    Way("int4-g128", "awq-gptq", 0.2),
    Way("int4-g128", "equalize", 0.5),
    Way("int4-g128", "awq-gptq", 0.5),
    Way("int4-sym-g128", "minmax"),
    Way("int4-sym-g128", "search"),
    Way("int4-sym-g128", "equalize"),
]

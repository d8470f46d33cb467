"""How a build settles its weights: by which method, on which text, in which formats. What can be refused is refused before the long job."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from edgekit.artifact import CalibrationInfo
from edgekit.cache import Cache
from edgekit.calibrate import Fitting, calibrate, calibration_tokens, kept_as
from edgekit.calibration_text import calibration_text
from edgekit.checkpoint import reading
from edgekit.companions import Companions
from edgekit.equalize import equalize
from edgekit.errors import UsageError
from edgekit.models import Model
from edgekit.precision import Budget, check_budget, measured, mixed, sample
from edgekit.progress import Progress
from edgekit.quant.scheme import QuantScheme
from edgekit.quantized import Kept, Quantizer, matrices
from edgekit.sensitivity import LENGTH, SEQUENCES

Method = Literal["minmax", "search", "equalize", "awq", "gptq", "awq-gptq"]
METHODS: tuple[Method, ...] = get_args(Method)
ALONE: tuple[Method, ...] = ("minmax", "search", "equalize")
"""Methods that look at the weights only."""
USUAL: Method = "equalize"
"""What a build does without a text: the best of these in docs/quantization.md's table."""
BEST: Method = "awq-gptq"
"""What ``--calibrate`` does: the best of docs/quantization.md's table."""
FEW = 16
"""Sequences that ``awq`` takes: sizes of inputs are known from far fewer tokens than how they go together."""
TEXT = "calibration.txt"
"""A model may bring text of its own kind in a file of this name; the project's own, in many languages, serves all others."""
CALIBRATED = ".calibrated"


@dataclass(frozen=True)
class Fitted:
    """sequences: the tokens of ``text``; both empty where neither method nor budget needs any."""

    method: Method
    text: str
    sequences: Sequence[Sequence[int]]
    budget: Budget | None

    @property
    def bits(self) -> float | None:
        """What was asked for with ``--bits``."""
        return None if self.budget is None else self.budget.bits

    @property
    def info(self) -> CalibrationInfo | None:
        """For the manifest: None where weights are rounded by themselves."""
        if self.method in ALONE:
            return None
        return CalibrationInfo(self.method, sum(map(len, self.sequences)), hashlib.sha256(self.text.encode()).hexdigest())


def default_text(model: Model) -> str:
    """What weights are fitted to unless the user says otherwise. Raises CheckpointError."""
    own = model.checkpoint.directory / TEXT
    if not own.is_file():
        return calibration_text()
    with reading(own):
        return own.read_text(encoding="utf-8", errors="replace")


def settle(
    model: Model, companions: Companions, scheme: QuantScheme, *, method: str | None, calibration: str | None, budget: Budget | None
) -> Fitted:
    """What was asked for. Raises UsageError for an unknown method, wishes that contradict each other, and too short a text."""
    if method is not None and method not in METHODS:
        raise UsageError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    chosen: Method = method or (BEST if calibration is not None else USUAL)
    if calibration is not None and chosen in ALONE and budget is None:
        raise UsageError(f"--method {chosen} looks at the weights only; leave out --calibrate, or take {BEST}")
    if scheme.linear.symmetric and chosen not in ALONE:
        raise UsageError(f"{scheme.name} cannot be calibrated: its zero points are fixed; take another --scheme, or no --calibrate")
    if chosen in ALONE and budget is None:
        return Fitted(chosen, "", (), None)
    text = calibration if calibration is not None else default_text(model)
    # Within the LongRoPE switch.
    length = model.decoder.rope.switch or model.decoder.context
    sequences = calibration_tokens(companions.tokenizer.encode(text), companions.tokens.opening, length)
    return Fitted(chosen, text, sequences[:: max(1, len(sequences) // FEW)] if chosen == "awq" else sequences, budget)


def within_budget(
    model: Model, scheme: QuantScheme, fitted: Fitted, weigh: Callable[[QuantScheme], int], quantizer: Quantizer, progress: Progress
) -> QuantScheme:
    """``scheme`` with finer formats where they do most within the budget. weigh: bytes of the artifact's weights by a scheme.

    Raises UsageError for a budget below the least.
    """
    if fitted.budget is None:
        return scheme
    check_budget(model, scheme, fitted.budget, weigh)
    sequences = sample(fitted.sequences, model, LENGTH, SEQUENCES)
    model = _equalized(model, scheme, fitted, quantizer, progress)
    losses = measured(model, scheme, sequences, quantizer.cache, quantizer.sources, progress)
    return mixed(model, scheme, fitted.budget, losses, weigh)


def fit(
    model: Model, scheme: QuantScheme, fitted: Fitted, quantizer: Quantizer, staging: Path, progress: Progress
) -> tuple[Model, Quantizer]:
    """The model to lay out, which a calibration may have folded, and what gives its weights. Raises as ``calibrate`` does."""
    if fitted.method in ALONE:
        return _equalized(model, scheme, fitted, quantizer, progress), replace(quantizer, search=fitted.method != "minmax")
    fitting = cast(Fitting, fitted.method)
    # Without the user's cache the blocks lie beside what they become, and go with it.
    place = quantizer.cache or Cache(staging / CALIBRATED, sys.maxsize)
    store = Kept(place, quantizer.sources, kept_as(scheme, model, fitting, fitted.sequences))
    return calibrate(model, scheme, fitting, fitted.sequences, store, progress), replace(quantizer, calibrated=store)


def _equalized(model: Model, scheme: QuantScheme, fitted: Fitted, quantizer: Quantizer, progress: Progress) -> Model:
    if fitted.method != "equalize":
        return model
    formats = {m.weight: m.format for m in matrices(model, scheme)}
    return equalize(model, formats, progress, cache=quantizer.cache, sources=quantizer.sources, threads=quantizer.threads)

"""Mixed precision within a budget: which matrices get smaller groups or 8 bits, so that the model as a whole loses least.

What each matrix costs in fidelity is measured (``sensitivity.py``), what it costs in bytes is known, and the choice is exact
(``quant/allocate.py``). It becomes part of the scheme, so every engine lays out the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit import cache as kept
from edgekit.cache import Cache, SourceFile
from edgekit.errors import UsageError
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant.allocate import allocate
from edgekit.quant.scheme import GROUPS, Format, QuantScheme
from edgekit.quantized import matrices
from edgekit.sensitivity import VERSION, Unit, sensitivities, units

TRIES = 8
"""Rounds in which a budget in bytes is met: an engine's files are a little larger than what is stored portably."""
EXACTLY = 0.001
"""Bits that a wish may be above the most, which is shown with three digits."""
WORK, MOST = 8_000_000_000, 4
"""Parameters times sequences that sensitivities are measured with, but two to ``MOST`` sequences: some 20 minutes on two cores."""


@dataclass(frozen=True)
class Budget:
    """bits: storage of all matrices, scales and zero points included, over their number of weights. bytes: of the artifact's weights.
    One of them is given."""

    bits: float | None = None
    bytes: int | None = None


def options(scheme: QuantScheme, unit: Unit, model: Model) -> list[Format]:
    """The formats a unit may get: first the scheme's coarsest 4 bits, then finer ones whose groups fill its inputs."""
    k = model.decoder.weight_shapes()[unit.weights[0]][1]  # of all of them: they meet the same inputs
    own = scheme.linear.fitted(k)
    finer = [Format(4, group) for group in sorted(GROUPS, reverse=True) if group < own.group and k % group == 0]
    return [own, *finer, scheme.embedding.fitted(k)]


def most_bits(model: Model, scheme: QuantScheme) -> float:
    """The bits that a budget can use, every matrix in the finest format that it may get."""
    return stored_bits(model, finest(model, scheme))


def check_budget(model: Model, scheme: QuantScheme, budget: Budget, weigh: Callable[[QuantScheme], int]) -> None:
    """Before anything is measured. weigh: bytes of the artifact's weights by a scheme. Raises UsageError naming what there can be."""
    if scheme.linear.symmetric:
        raise UsageError(f"{scheme.name} is for devices that take one format only; leave out --bits and --fit")
    cheapest = _least(model, scheme)
    name, least, most = model.checkpoint.source.name, stored_bits(model, cheapest), most_bits(model, scheme)
    if budget.bits is not None and not least <= budget.bits <= most + EXACTLY:
        low, high = math.ceil(least * 1000) / 1000, math.floor(most * 1000) / 1000
        limit = f"below the least for {name}, {low:g}" if budget.bits < least else f"above the most for {name}, {high:g}"
        raise UsageError(
            f"--bits {budget.bits:g} is {limit}: {scheme.name} can be had with {low:g} to {high:g} bits a weight, embedding and lm_head "
            "in INT8 included"
        )
    if budget.bytes is not None and budget.bytes < (size := weigh(cheapest)):
        least_gb = math.ceil(size / 1e6) / 1e3
        raise UsageError(f"--fit {budget.bytes / 1e9:g}GB is below the least for {name} here, {least_gb:g}GB")


def mixed(
    model: Model, scheme: QuantScheme, budget: Budget, losses: Sequence[Sequence[float]], weigh: Callable[[QuantScheme], int]
) -> QuantScheme:
    """The scheme within ``budget`` with the least sum of ``losses`` (by ``units`` and ``options``); ``check_budget`` has passed."""
    every = units(model.decoder)
    forms = [options(scheme, unit, model) for unit in every]
    shapes = model.decoder.weight_shapes()
    cheapest = _least(model, scheme)
    fixed = _stored(model, cheapest) - sum(_bits_of(shapes, unit, f[0]) for unit, f in zip(every, forms, strict=True))
    costs = [[_bits_of(shapes, unit, form) for form in f] for unit, f in zip(every, forms, strict=True)]
    total = sum(m.shape[0] * m.shape[1] for m in matrices(model, scheme))
    room = int(budget.bits * total) if budget.bits is not None else 8 * (budget.bytes or 0)
    for _ in range(TRIES):
        chosen = allocate(costs, losses, room - fixed)
        if chosen is None:
            break
        picked = [(unit, f[at]) for unit, f, at in zip(every, forms, chosen, strict=True)]
        found = _with(scheme, model, picked)
        over = weigh(found) - budget.bytes if budget.bytes is not None else 0
        if over <= 0:
            return found
        room = min(room, _stored(model, found)) - 8 * over
    return cheapest


def measured(
    model: Model,
    scheme: QuantScheme,
    sequences: Sequence[Sequence[int]],
    cache: Cache | None,
    sources: Mapping[Path, SourceFile],
    progress: Progress,
) -> list[list[float]]:
    """``sensitivities`` of all units in their ``options``, kept in the cache: the next budget or target costs nothing."""
    every = units(model.decoder)
    forms = [options(scheme, unit, model) for unit in every]
    width = max(map(len, forms))
    digests = sorted(source.sha256 for source in sources.values())
    facts = [[f"{f.bits}/{f.group}" for f in listed] for listed in forms]
    folds = "".join(model.folded.digest(name) for unit in every for name in unit.weights)
    group = kept.group_name(("sensitivity", VERSION, *digests, repr(facts), folds, repr([list(s) for s in sequences])))
    payload = kept.load(cache, group, "kl", 8 * len(every) * width) if cache is not None else None
    if payload is not None:
        found: NDArray[np.float64] = np.frombuffer(payload, "<f8").reshape(len(every), width)
    else:
        found = np.zeros((len(every), width))
        for row, losses in zip(found, sensitivities(model, every, forms, sequences, progress), strict=True):
            row[: len(losses)] = losses
        if cache is not None:
            about = {"model": model.checkpoint.source.name, "file": "sensitivity", "format": "KL"}
            kept.store(cache, group, "kl", [memoryview(found.astype("<f8")).cast("B")], about)
    return [[float(loss) for loss in row[: len(listed)]] for row, listed in zip(found, forms, strict=True)]


def sample(sequences: Sequence[Sequence[int]], model: Model, length: int, least: int) -> list[Sequence[int]]:
    """Beginnings of ``length`` tokens of some sequences, evenly spread over the text: fewer for a larger model."""
    count = min(len(sequences), max(least, min(MOST, WORK // max(1, model.parameters))))
    return [sequences[i * len(sequences) // count][:length] for i in range(count)]


def _with(scheme: QuantScheme, model: Model, picked: Sequence[tuple[Unit, Format]]) -> QuantScheme:
    plain, shapes = replace(scheme, exceptions=()), model.decoder.weight_shapes()
    other = ((name, form) for unit, form in picked for name in unit.weights if form != plain.format_for(name, shapes[name][1]))
    return replace(scheme, exceptions=tuple(other))


def finest(model: Model, scheme: QuantScheme) -> QuantScheme:
    """Every matrix in the finest format that a budget may give it."""
    return _with(scheme, model, [(unit, options(scheme, unit, model)[-1]) for unit in units(model.decoder)])


def _least(model: Model, scheme: QuantScheme) -> QuantScheme:
    return _with(scheme, model, [(unit, options(scheme, unit, model)[0]) for unit in units(model.decoder)])


def _bits_of(shapes: Mapping[str, tuple[int, ...]], unit: Unit, form: Format) -> int:
    return sum(8 * sum(_sizes((shapes[name][0], shapes[name][1]), form)) for name in unit.weights)


def _sizes(shape: tuple[int, int], form: Format) -> tuple[int, int]:
    """Bytes of codes, and of scales and zero points: those of a row begin with a byte."""
    groups = -(-shape[1] // form.group)
    return shape[0] * groups * form.group * form.bits // 8, shape[0] * (2 * groups + -(-groups * form.bits // 8))


def _stored(model: Model, scheme: QuantScheme) -> int:
    return sum(8 * sum(_sizes(m.shape, m.format)) for m in matrices(model, scheme))


def stored_bits(model: Model, scheme: QuantScheme) -> float:
    """Storage of all matrices as portable INT4 and INT8 in bits, scales and zero points included, over their number of weights."""
    return _stored(model, scheme) / sum(m.shape[0] * m.shape[1] for m in matrices(model, scheme))

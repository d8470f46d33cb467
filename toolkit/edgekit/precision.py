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
WORK = 8_000_000_000
"""Parameters times sequences that sensitivities are measured with, but at least two sequences: some 20 minutes on two cores."""


@dataclass(frozen=True)
class Budget:
    """bits: storage of all matrices, scales and zero points included, over their number of weights. bytes: of the artifact's weights.
    One of them is given."""

    bits: float | None = None
    bytes: int | None = None


def options(scheme: QuantScheme, unit: Unit, model: Model) -> list[Format]:
    """The formats a unit may get: first the scheme's coarsest 4 bits, then finer ones whose groups fill its inputs."""
    shapes = model.decoder.weight_shapes()
    own = scheme.linear
    finer = [Format(4, group) for group in sorted(GROUPS, reverse=True) if group < own.group]
    found = [own, *(form for form in finer if all(shapes[name][1] % form.group == 0 for name in unit.weights))]
    return [*found, scheme.embedding]


def check_budget(model: Model, scheme: QuantScheme, budget: Budget, weigh: Callable[[QuantScheme], int]) -> None:
    """Before anything is measured. weigh: bytes of the artifact's weights by a scheme. Raises UsageError naming the least there can be."""
    if scheme.linear.symmetric:
        raise UsageError(f"{scheme.name} is for devices that take one format only; leave out --bits and --fit")
    cheapest = _least(model, scheme)
    if budget.bits is not None and budget.bits < (least := _bits(model, cheapest)):
        raise UsageError(
            f"--bits {budget.bits:g} is below the least for {model.checkpoint.source.name}, {math.ceil(least * 1000) / 1000:g}"
        )
    if budget.bytes is not None and budget.bytes < (size := weigh(cheapest)):
        least_gb = math.ceil(size / 1e6) / 1e3
        raise UsageError(f"--fit {budget.bytes / 1e9:g}GB is below the least for {model.checkpoint.source.name} here, {least_gb:g}GB")


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
        found = _with(scheme, picked)
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
    widest = max(forms, key=len)
    digests = sorted(source.sha256 for source in sources.values())
    facts = [f"{f.bits}/{f.group}" for f in widest]
    folds = "".join(model.folded.digest(name) for unit in every for name in unit.weights)
    group = kept.group_name(("sensitivity", VERSION, *digests, *facts, folds, repr([list(s) for s in sequences])))
    shape = (len(every), len(widest))
    payload = kept.load(cache, group, "kl", 8 * len(every) * len(widest)) if cache is not None else None
    if payload is not None:
        found: NDArray[np.float64] = np.frombuffer(payload, "<f8").reshape(shape)
    else:
        found = np.array(sensitivities(model, every, widest, sequences, progress))
        if cache is not None:
            about = {"model": model.checkpoint.source.name, "file": "sensitivity", "format": "KL"}
            kept.store(cache, group, "kl", [memoryview(found.astype("<f8")).cast("B")], about)
    return [[float(loss[widest.index(form)]) for form in f] for loss, f in zip(found, forms, strict=True)]


def sample(sequences: Sequence[Sequence[int]], model: Model, length: int, least: int) -> list[Sequence[int]]:
    """Beginnings of ``length`` tokens of some sequences, evenly spread over the text: fewer for a larger model."""
    count = min(len(sequences), max(least, min(16, WORK // max(1, model.parameters))))
    return [sequences[i * len(sequences) // count][:length] for i in range(count)]


def _with(scheme: QuantScheme, picked: Sequence[tuple[Unit, Format]]) -> QuantScheme:
    plain = replace(scheme, exceptions=())
    other = ((name, form) for unit, form in picked for name in unit.weights if form != plain.format_of(name))
    return replace(scheme, exceptions=tuple(other))


def _least(model: Model, scheme: QuantScheme) -> QuantScheme:
    return _with(scheme, [(unit, options(scheme, unit, model)[0]) for unit in units(model.decoder)])


def _bits_of(shapes: Mapping[str, tuple[int, ...]], unit: Unit, form: Format) -> int:
    return sum(8 * sum(_sizes((shapes[name][0], shapes[name][1]), form)) for name in unit.weights)


def _sizes(shape: tuple[int, int], form: Format) -> tuple[int, int]:
    """Bytes of codes, and of scales and zero points: those of a row begin with a byte."""
    groups = -(-shape[1] // form.group)
    return shape[0] * groups * form.group * form.bits // 8, shape[0] * (2 * groups + -(-groups * form.bits // 8))


def _stored(model: Model, scheme: QuantScheme) -> int:
    return sum(8 * sum(_sizes(m.shape, m.format)) for m in matrices(model, scheme))


def _bits(model: Model, scheme: QuantScheme) -> float:
    return _stored(model, scheme) / sum(m.shape[0] * m.shape[1] for m in matrices(model, scheme))

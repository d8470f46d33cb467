"""All that can be known before the long job: what is asked for against model, target, disk and engines, of all targets at once."""

import importlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

from edgekit.catalog import resolve
from edgekit.companions import Companions, read_companions
from edgekit.device import load_device
from edgekit.engines import ENGINES
from edgekit.engines.exported import Exported, Footprint, Lossy
from edgekit.errors import EngineMissing, OutputError, TargetError, UsageError
from edgekit.fidelity_gate import Gate, Limits
from edgekit.fitting import Fitted, settle
from edgekit.models import Model, open_model
from edgekit.output import check_free, check_output
from edgekit.precision import Budget, check_budget
from edgekit.progress import Progress
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.scheme import scheme as load_scheme
from edgekit.quantized import Quantizer
from edgekit.resources import check_release
from edgekit.target import Target, load_target

COMPANION_BYTES = 32_000_000
"""More than tokenizer, graph and licence take beside the weights."""
SMALLEST_CONTEXT = 256
"""Tokens; advising less would help nobody."""


class Exporter(Protocol):
    """The ``export`` module of an engine."""

    def check(self, model: Model, scheme: QuantScheme, target: Target) -> None:
        """Cheap, before the long job. Raises TargetError or EngineMissing for what cannot be met."""

    def footprint(self, model: Model, scheme: QuantScheme, target: Target) -> Footprint:
        """What the artifact will take, from shapes alone; ``check`` has passed."""

    def export(
        self, model: Model, scheme: QuantScheme, target: Target, directory: Path, progress: Progress, quantizer: Quantizer
    ) -> Exported:
        """Writes graph, weights and the engine's own configuration into ``directory``, which already holds the tokenizer's files."""


@dataclass(frozen=True)
class Order:
    """What ``build`` is asked for beside target and output; see there."""

    model: str
    scheme: str | None = None
    revision: str | None = None
    context: int | None = None
    device: str | Path | None = None
    offline: bool = False
    force: bool = False
    cached: bool = True
    verify: bool = True
    full: bool = False
    limits: Limits = field(default_factory=Limits)
    calibration: str | None = None
    method: str | None = None
    bits: float | None = None
    fit_bytes: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Prepared:
    """One target's build, of which nothing is known that stands against it. size: with the scheme as it is, before a budget is spent."""

    order: Order
    output: Path
    model: Model
    scheme: QuantScheme
    target: Target
    exporter: Exporter
    companions: Companions
    fitted: Fitted
    gate: Gate | None
    size: Footprint


def prepare(order: Order, places: Sequence[tuple[str | Path, Path]], progress: Progress) -> list[Prepared]:
    """Checks the builds for all ``places``, targets and outputs, before the first of them begins: what one of them lacks is known then.

    Raises as ``build`` does.
    """
    gate = _gate(order)
    asked = [(check_request(target, output, scheme=order.scheme, force=order.force), output) for target, output in places]
    if order.device is not None:
        from edgekit.plan import check_fits, find  # which plans by what is here

        # Before a download, too.
        place, found = load_device(order.device), find(order.model, revision=order.revision, offline=order.offline)
        for (target, _, _), _ in asked:
            check_fits(found, target, place, scheme=order.scheme, context=order.context)
    if order.bits is not None and order.fit_bytes is not None:
        raise UsageError("--bits and --fit contradict each other; give one of them")
    model = open_model(resolve(order.model, revision=order.revision, offline=order.offline, progress=progress))
    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    made = [_prepared(order, model, companions, gate, *request, output) for request, output in asked]
    check_room(made)
    return made


def _prepared(
    order: Order,
    model: Model,
    companions: Companions,
    gate: Gate | None,
    target: Target,
    quant: QuantScheme,
    exporter: Exporter,
    output: Path,
) -> Prepared:
    wanted = replace(target, context=context_for(model, target, order.context))
    budget = Budget(order.bits, order.fit_bytes) if order.bits is not None or order.fit_bytes is not None else None
    fitted = settle(model, companions, quant, method=order.method, calibration=order.calibration, budget=budget)
    exporter.check(model, quant, wanted)
    size = exporter.footprint(model, quant, wanted)
    check_footprint(size, model, quant, wanted)
    if budget is not None:
        check_budget(model, quant, budget, lambda s: exporter.footprint(model, s, wanted).weights)
    if gate is not None and size.lossy is not None:
        _check_engine(size.lossy)
    return Prepared(order, output, model, quant, wanted, exporter, companions, fitted, gate, size)


def check_room(made: Sequence[Prepared]) -> None:
    """Whether all of them together find room on the disks that they go to. Raises OutputError."""
    need: dict[int, int] = {}
    for one in made:
        existing = next(p for p in one.output.absolute().parents if p.is_dir())
        disk = existing.stat().st_dev
        need[disk] = need.get(disk, 0) + one.size.weights + COMPANION_BYTES
        free = shutil.disk_usage(existing).free
        if need[disk] > free:
            raise OutputError(
                f"cannot write {one.output}: about {need[disk] / 1e6:,.0f} MB are needed, {existing} has {free / 1e6:,.0f} MB free; "
                "free some space or choose another place: --out DIR"
            )


def _gate(order: Order) -> Gate | None:
    if not order.verify and (order.full or order.limits != Limits()):
        raise UsageError("limits of fidelity and a full verification contradict --no-verify; give one of them")
    return Gate(order.limits, order.full) if order.verify else None


def check_request(target: str | Path, output: Path, *, scheme: str | None, force: bool) -> tuple[Target, QuantScheme, Exporter]:
    """What can be known before the model is opened. Raises TargetError, EngineMissing (of the exporter) or OutputError."""
    wanted = load_target(target)
    quant = load_scheme(scheme or wanted.scheme)
    exporter = exporter_of(wanted)
    check_output(output, force=force)
    check_free(output)
    return wanted, quant, exporter


def outputs(model: str, targets: Sequence[str], out: Path | None) -> list[tuple[str, Path]]:
    """Where ``edge build`` writes each target: ``out`` itself for one, ``out/MODEL-TARGET`` for several; without ``out``
    ``MODEL-TARGET`` in the current directory. Raises UsageError for a target given twice, and for two of one name.
    """
    if len(set(targets)) < len(targets):
        raise UsageError(f"a target is given twice: {', '.join(targets)}")
    if out is not None and len(targets) == 1:
        return [(targets[0], out)]
    found: dict[str, tuple[str, Path]] = {}
    for target in targets:
        directory = (out or Path()) / _default_name(model, target)
        other = found.setdefault(directory.name.casefold(), (target, directory))  # not every disk tells case apart
        if other[0] != target:
            raise UsageError(f"targets {other[0]} and {target} would both be written to {directory}; build them one by one with --out DIR")
    return list(found.values())


def _default_name(model: str, target: str) -> str:
    path = Path(model)
    name = path.resolve().name if path.is_dir() else model.split("@")[0].rsplit("/", 1)[-1]
    target_name = Path(target).stem if target.endswith(".toml") else target
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{target_name}"


def exporter_of(target: Target) -> Exporter:
    """The ``export`` module of the target's engine. Raises EngineMissing."""
    engine = ENGINES[target.engine]
    try:
        return cast(Exporter, importlib.import_module(engine.export))
    except ImportError as error:
        if (error.name or "edgekit").split(".")[0] == "edgekit":
            raise
        raise EngineMissing(
            f"target {target.name!r} needs {error.name}, which is not installed; run: pip install 'edgekit[build,{engine.extra}]'"
        ) from error


def context_for(model: Model, target: Target, asked: int | None) -> int:
    """The context to build for: ``asked``, else the target's, capped by the model's. Raises UsageError for more than the model holds."""
    limit = model.decoder.context
    if asked is None:
        return min(target.context, limit)
    if not 1 <= asked <= limit:
        raise UsageError(f"context {asked} is not between 1 and the {limit} tokens that {model.checkpoint.source.name} can hold")
    return asked


def check_footprint(size: Footprint, model: Model, scheme: QuantScheme, target: Target) -> None:
    """Stops before the long job where the artifact with its full context cannot fit into the device's memory. Raises TargetError."""
    full = size.weights + size.cache * target.context
    if target.memory_mb is not None and full > target.memory_mb * 1_000_000:
        room = (target.memory_mb * 1_000_000 - size.weights) // size.cache if size.cache else 0
        advice = f"build with --context {room}" if room >= SMALLEST_CONTEXT else "take a smaller model or another target"
        raise TargetError(
            f"{model.checkpoint.source.name} as {scheme.name} takes {size.weights / 1e6:,.0f} MB and its KV cache for "
            f"{target.context:,} tokens {size.cache * target.context / 1e6:,.0f} MB; "
            f"target {target.name!r} allows {target.memory_mb:,} MB in all: {advice}"
        )


def _check_engine(lossy: Lossy) -> None:
    """Whether the artifact can be run here when it is built. Raises EngineMissing."""
    note = f" (it is run when it is built, to measure what {lossy.what} costs; --no-verify builds without)"
    for module, needed in lossy.requires.items():
        try:
            found = importlib.import_module(module).__version__
        except ImportError as error:
            raise EngineMissing(f'this build needs {module} {needed} or newer{note}: pip install "{module}>={needed}"') from error
        check_release(module, found, needed, note)

"""Will it fit, and how fast will it be, before anything is built: a model's shapes, a target and a device's profile.

Sizes of files are exact: the exporter lays them out and writes nothing. Memory adds up what each engine's ``footprint.py`` says; speed is
a roofline with ranges (docs/plan.md). Every prediction is one, and nothing of it is ever written into a profile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from edgekit.build import SMALLEST_CONTEXT, context_for, exporter_of
from edgekit.catalog import Outlined, outline
from edgekit.companions import companion_files, companion_sizes
from edgekit.device import DeviceProfile, Figure, Unit
from edgekit.engines.exported import Footprint, Running
from edgekit.errors import DoesNotFit, EdgekitError, EngineMissing, TargetError
from edgekit.models import Model, open_model
from edgekit.models.decoder import DecoderConfig
from edgekit.quant.scheme import SCHEMES, QuantScheme
from edgekit.quant.scheme import scheme as load_scheme
from edgekit.target import Target, load_target, target_names

USUAL_CONTEXT = 4096
"""Tokens that are planned for where nobody says how many, and the target and the model hold more."""
PROMPT = 512
"""Tokens of the prompt whose prefill is predicted."""
SHORT = 64
"""Tokens of context at which decoding is predicted."""
PEAK_BANDWIDTH = (0.6, 0.9)
"""Share of a memory's peak bandwidth that programs reach (docs/plan.md). A measured one is what they reach."""
PEAK_COMPUTE = (0.15, 0.5)
"""Share of a unit's peak operations that 4-bit products reach, those of its widest type, at a clock that holds."""
AROUND = 65536
"""Bytes of a mapped file that come with each page asked for (Linux: fault_around_bytes)."""
CONTEXTS = (512, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
Binding = Literal["memory", "NPU limit", "bandwidth", "compute", "calls"]


@dataclass(frozen=True)
class Range:
    """Tokens a second: ``low`` can be counted on, ``high`` is what the device's figures allow."""

    low: float
    high: float


@dataclass(frozen=True)
class Memory:
    """Bytes of the process at its most, with a context of ``context`` tokens: while loading, while computing the prompt, while decoding."""

    context: int
    cache: int
    load: int
    prefill: int
    decode: int

    @property
    def peak(self) -> int:
        return max(self.load, self.prefill, self.decode)


@dataclass(frozen=True)
class Plan:
    """Bytes and tokens. download: of the checkpoint; artifact: of its files, the manifest apart; cache: each token's keys and values; read:
    weights that each token reads.

    memory: at ``context`` and at usual ones. limit: what the device, or else the target, allows; None where neither says.
    largest: the most tokens of context that fit, 0 where not even SMALLEST_CONTEXT do, None without a limit.
    measured: whether the engine's constants were measured on such a unit. Without a device no speed is known.
    """

    model: str
    target: str
    device: str | None
    unit: str | None
    scheme: str
    context: int
    parameters: int
    download: int
    artifact: int
    cache: int
    read: int | None
    memory: tuple[Memory, ...]
    limit: int | None
    largest: int | None
    decode: Range | None
    decode_full: Range | None
    prefill: Range | None
    binds: Binding | None
    measured: bool

    @property
    def fits(self) -> bool | None:
        return None if self.largest is None else self.largest >= self.context

    @property
    def at_context(self) -> Memory | None:
        return next((memory for memory in self.memory if memory.context == self.context), None)


@dataclass(frozen=True)
class Refused:
    """A target that cannot take the model at all, on any device or on this one, and why."""

    target: str
    device: str | None
    reason: str


@dataclass(frozen=True)
class Subject:
    """The model that is planned for. download: bytes, 0 where it is here. others, tokenizer: bytes of the files that a build copies, and of
    tokenizer.json among them. footprints: those made so far, by target, context and scheme."""

    model: Model
    download: int
    others: int
    tokenizer: int
    footprints: dict[tuple[str, int, str], Footprint] = field(default_factory=dict, compare=False)


def find(model: str, *, revision: str | None = None, offline: bool = False) -> Subject:
    """Opens what ``model`` means, without its weights. Raises as ``catalog.resolve`` and ``open_model`` do."""
    return subject(outline(model, revision=revision, offline=offline))


def subject(found: Outlined) -> Subject:
    directory = found.checkpoint.directory
    sizes = found.sizes or {path.name: path.stat().st_size for path in companion_files(directory)}
    return Subject(open_model(found.checkpoint), found.download, companion_sizes(sizes), sizes.get("tokenizer.json", 0))


def plan(model: Subject, target: Target, device: DeviceProfile | None, *, scheme: str | None = None, context: int | None = None) -> Plan:
    """What ``model`` built for ``target`` takes on ``device``; ``scheme`` and ``context`` (tokens) replace the target's.

    Without ``context``: the usual 4096, or fewer where the target or the model holds fewer.
    Raises TargetError: the target cannot take this model, or does not run on the device; EngineMissing: the exporter needs a package.
    """
    quant, decoder = load_scheme(scheme or target.scheme), model.model.decoder
    asked = context_for(model.model, target, context)
    used = asked if context is not None else min(asked, USUAL_CONTEXT)
    size = _footprint(model, quant, replace(target, context=asked))
    unit = None if device is None else _unit(device, target, size)
    running = size.running
    limit = _limit(target, device, unit)
    largest = None if limit is None else _allowed(model, quant, target, _largest(size, limit, decoder.context, unit))
    speeds = None if running is None or device is None or unit is None else _Speeds(size, running, decoder, device, unit)
    listed = sorted({used, *(c for c in CONTEXTS if c <= decoder.context)})
    return Plan(
        model=model.model.checkpoint.source.name,
        target=target.name,
        device=device.name if device else None,
        unit=unit.name if unit else None,
        scheme=quant.name,
        context=used,
        parameters=model.model.parameters,
        download=model.download,
        artifact=size.weights + size.graph + model.others + round(size.tokenizer * model.tokenizer),
        cache=size.cache,
        read=running.read if running else None,
        memory=tuple(_memory(size, count) for count in listed),
        limit=limit,
        largest=largest,
        decode=speeds.decode(SHORT) if speeds else None,
        decode_full=speeds.decode(used) if speeds else None,
        prefill=speeds.prefill(min(PROMPT, used)) if speeds else None,
        binds=_binds(largest, used, unit, limit, speeds),
        measured=running is not None and running.measured,
    )


def everywhere(
    model: Subject, targets: Sequence[Target], devices: Sequence[DeviceProfile], *, scheme: str | None = None, context: int | None = None
) -> Iterator[Plan | Refused]:
    """A plan for each device and each of ``targets`` that runs there, in that order; what cannot be is Refused."""
    for device in devices:
        for target in targets:
            if target.name not in device.targets:
                continue
            try:
                yield plan(model, target, device, scheme=scheme, context=context)
            except (TargetError, EngineMissing) as error:
                yield Refused(target.name, device.name, str(error))


def best_scheme(model: Subject, target: Target, device: DeviceProfile | None, context: int) -> str | None:
    """The scheme with most bits a weight that fits, of those that the target's form of weights takes; None where none fits."""
    for name in sorted(SCHEMES, key=lambda name: -SCHEMES[name].linear.bits_per_weight):
        if SCHEMES[name].linear.symmetric != load_scheme(target.scheme).linear.symmetric:
            continue
        try:
            if plan(model, target, device, scheme=name, context=context).fits:
                return name
        except EdgekitError:
            continue
    return None


def check_fits(model: Subject, target: Target, device: DeviceProfile, *, scheme: str | None = None, context: int | None = None) -> Plan:
    """The plan. Raises DoesNotFit, saying what would."""
    found = plan(model, target, device, scheme=scheme, context=context)
    if found.fits is False:
        raise DoesNotFit(refusal(found, advice(found, model, target, device)))
    return found


def refusal(found: Plan, advised: Sequence[str]) -> str:
    """Why a plan that does not fit does not, and what would."""
    need = found.at_context
    assert need is not None and found.limit is not None
    where = f"{found.device} ({found.target})" if found.device else f"target {found.target}"
    what = f"{found.model} as {found.scheme} with {found.context:,} tokens of context needs about {need.peak / 1e6:,.0f} MB"
    if found.binds == "NPU limit" and need.peak <= found.limit:
        why = f"{where} takes at most {found.largest:,} tokens"
    else:
        why = f"{where} has {found.limit / 1e6:,.0f} MB for it"
    return f"{what}; {why}. What would fit: {'; '.join(advised) or 'a smaller model (edge models)'}"


def advice(found: Plan, model: Subject, target: Target, device: DeviceProfile | None) -> list[str]:
    """What would fit instead, as options of the command: a shorter context, another scheme, another target of the device."""
    said = [f"--context {found.largest}"] if found.largest else []
    if (name := best_scheme(model, target, device, found.context)) and name != found.scheme:
        said.append(f"--scheme {name}")
    for other in device.targets if device else ():
        if other != target.name:
            try:
                if plan(model, load_target(other), device, context=found.context).fits:
                    said.append(f"--target {other}")
            except EdgekitError:
                continue
    return said


def _footprint(model: Subject, scheme: QuantScheme, target: Target) -> Footprint:
    key = (target.name, target.context, scheme.name)
    if key not in model.footprints:
        model.footprints[key] = exporter_of(target).footprint(model.model, scheme, target)
    return model.footprints[key]


def _unit(device: DeviceProfile, target: Target, size: Footprint) -> Unit:
    """What runs the target there: by its name; a target file of one's own by the kind of unit that its engine uses."""
    found = device.unit(target.name)
    if found is None and size.running is not None and not _comes_along(target):
        found = next((unit for unit in device.units if unit.kind == size.running.unit), None)
    if found is None:
        raise TargetError(f"target {target.name} does not run on {device.name}; what does: {', '.join(device.targets)}")
    return found


def _comes_along(target: Target) -> bool:
    return target.name in target_names()


def _limit(target: Target, device: DeviceProfile | None, unit: Unit | None) -> int | None:
    allowed = [float(target.memory_mb)] if target.memory_mb is not None else []
    if device is not None:
        # A profile knows more of a device than a target, which is for a kind of them.
        allowed = [device.app_memory.value]
        if unit is not None and unit.memory is not None:
            allowed.append(unit.memory.value)
    return round(min(allowed) * 1e6) if allowed else None


def _memory(size: Footprint, context: int) -> Memory:
    cache = size.cache * context
    running = size.running
    if running is None:
        total = size.weights + cache
        return Memory(context, cache, size.weights, total, total)
    held = running.process + running.loaded + min(running.mapped, AROUND * context) + cache
    return Memory(context, cache, running.process + running.loading, held + running.activation * min(context, running.piece), held)


def _largest(size: Footprint, limit: int, most: int, unit: Unit | None) -> int:
    if unit is not None and unit.context is not None:
        most = min(most, int(unit.context.value))
    if size.cache == 0:
        return most if _memory(size, most).peak <= limit else 0
    fixed = max(_memory(size, most).prefill - most * size.cache, 0)
    found = min(most, (limit - fixed) // size.cache)
    fits = found >= min(SMALLEST_CONTEXT, most) and _memory(size, found).peak <= limit
    return found if fits else 0


def _allowed(model: Subject, scheme: QuantScheme, target: Target, largest: int) -> int:
    """As much of ``largest`` as the exporter takes: some end a LongRoPE model where its factors change."""
    switch = model.model.decoder.rope.switch
    if switch is None or largest <= switch:
        return largest
    try:
        _footprint(model, scheme, replace(target, context=largest))
    except TargetError:
        return switch
    return largest


def _binds(largest: int | None, context: int, unit: Unit | None, limit: int | None, speeds: "_Speeds | None") -> Binding | None:
    if largest is not None and largest < context:
        of_npu = unit is not None and (
            (unit.context is not None and context > unit.context.value)
            or (unit.memory is not None and limit == round(unit.memory.value * 1e6))
        )
        return "NPU limit" if of_npu else "memory"
    return speeds.binds() if speeds else None


@dataclass(frozen=True)
class _Speeds:
    """The roofline of one engine on one unit: what takes longest decides of products with weights, and of attention; calls come on top."""

    size: Footprint
    running: Running
    decoder: DecoderConfig
    device: DeviceProfile
    unit: Unit

    def decode(self, depth: int) -> Range:
        """At ``depth`` tokens of context."""
        low, high = (self._products(end) + self._attention(depth, end) + self._calls(end) for end in (0, 1))
        return Range(1 / low, 1 / high)

    def prefill(self, count: int) -> Range | None:
        """Of a prompt of ``count`` tokens; None where the unit's compute is not known."""
        if self.unit.compute is None:
            return None
        running, found = self.running, []
        for end in (0, 1):
            work = (running.operations + self._attended(count // 2)) * count / self._rate(running.prefill, end)
            pieces = -(-count // running.piece)
            found.append(count / (max(work, pieces * self._moved(end)) + pieces * self._calls(end)))
        return Range(found[0], found[1])

    def binds(self) -> Binding:
        moved, computed, called = (sum(part(end) for end in (0, 1)) for part in (self._moved, self._computed, self._calls))
        if called > max(moved, computed):
            return "calls"
        return "compute" if computed > moved else "bandwidth"

    def _products(self, end: int) -> float:
        """Seconds of one token's products with weights; ``end`` 0 the slow end, 1 the fast one."""
        return max(self._moved(end), self._computed(end))

    def _moved(self, end: int) -> float:
        return self.running.read / self._bandwidth(end)

    def _computed(self, end: int) -> float:
        return self.running.operations / self._rate(self.running.compute, end)

    def _attention(self, depth: int, end: int) -> float:
        """Seconds of one token's products with the keys and values of ``depth`` tokens."""
        return max(self.size.cache * depth / self._bandwidth(end), self._attended(depth) / self._rate(self.running.attention, end))

    def _calls(self, end: int) -> float:
        return self.decoder.layers * self.running.latency[1 - end]

    def _rate(self, share: tuple[float, float], end: int) -> float:
        """Operations a second; no limit where the unit's compute is not known."""
        compute = self.unit.compute
        return inf if compute is None else compute.value * 1e9 * share[end] * _reached(compute, PEAK_COMPUTE)[end]

    def _bandwidth(self, end: int) -> float:
        return self.device.bandwidth.value * 1e9 * self.running.bandwidth[end] * _reached(self.device.bandwidth, PEAK_BANDWIDTH)[end]

    def _attended(self, depth: int) -> float:
        """Operations of one token with the keys and values of ``depth``."""
        return 4.0 * self.decoder.layers * self.decoder.heads * self.decoder.head_dim * depth


def _reached(figure: Figure, peak: tuple[float, float]) -> tuple[float, float]:
    return (1.0, 1.0) if figure.basis == "measured" else peak

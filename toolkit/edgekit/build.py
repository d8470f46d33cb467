"""One command's worth of work: a model and a target become an artifact. Checks first, then the long job, then one rename."""

import importlib
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

from edgekit import __version__
from edgekit.artifact import (
    Artifact,
    ContextInfo,
    EngineInfo,
    FidelityInfo,
    Manifest,
    ModelInfo,
    SchemeInfo,
    SourceKind,
    TensorFormat,
    list_files,
)
from edgekit.cache import Cache, make_room, open_cache, prune, source_files
from edgekit.catalog import resolve
from edgekit.checkpoint import reading
from edgekit.companions import Companions, companion_files, read_companions, write_companions
from edgekit.conformance import NOT_VERIFIED, greedy_vectors, text_vectors
from edgekit.device import load_device
from edgekit.digest import Ledger, weight_digests
from edgekit.engines import ENGINES
from edgekit.engines.exported import Exported, Footprint, Lossy
from edgekit.errors import EngineMissing, OutputError, TargetError, UsageError
from edgekit.fidelity_gate import Gate, Limits, Quantized, pass_gate, report_place
from edgekit.fitting import CALIBRATED, Fitted, fit, settle, within_budget
from edgekit.models import Model, open_model
from edgekit.output import check_free, check_output, flush, seal, writing
from edgekit.precision import Budget
from edgekit.progress import Progress, silent
from edgekit.quant.scheme import Format, QuantScheme
from edgekit.quant.scheme import scheme as load_scheme
from edgekit.quantized import Quantizer, other_formats
from edgekit.resources import check_release
from edgekit.target import Target, load_target
from edgekit.template_files import TEMPLATE, TOOL_TEMPLATE

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
class Job:
    """All that is settled before the weights are. gate: None for an artifact that is not to be verified. lossy: of the footprint."""

    model: Model
    scheme: QuantScheme
    target: Target
    exporter: Exporter
    companions: Companions
    fitted: Fitted
    gate: Gate | None
    quantizer: Quantizer
    lossy: Lossy | None


def build(
    model: str | Path,
    *,
    target: str | Path,
    output: str | Path,
    scheme: str | None = None,
    revision: str | None = None,
    context: int | None = None,
    device: str | Path | None = None,
    offline: bool = False,
    force: bool = False,
    cached: bool = True,
    verify: bool = True,
    full: bool = False,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    calibration: str | None = None,
    method: str | None = None,
    bits: float | None = None,
    fit_bytes: int | None = None,
    progress: Progress = silent,
    threads: int | None = None,
) -> Manifest:
    """Builds ``model`` for ``target`` into the directory ``output`` and returns its manifest.

    model:   a catalogue name, ``org/name[@revision]``, a local directory, or ``tiny-phi`` (in the package).
    target:  a name (``edgekit.targets()``) or the path of a ``.toml`` file; ``scheme`` and ``context`` (tokens) replace its own.
    device:  a name (``edge devices``) or the path of a ``.toml`` file: what cannot fit there is refused before anything is written.
    force:   replace an artifact that is already there, once the new one is complete.
    cached:  take quantized weights from the cache and keep new ones there (``edge cache list``).
    verify:  compare the quantized weights with the checkpoint (``fidelity_gate.py``), open the artifact with its own engine, in another
             process, and record what it answers (conformance vectors). False says "not verified" in the manifest; nothing then holds more
             than a few blocks of weights in memory, or a matrix where an engine's export computes with them.
    full:    measure the artifact itself as well, through its engine, on more text and beyond a long LongRoPE switch.
    limits:  beyond which nothing is written but a report beside ``output``; what they leave open is the scheme's own.
    calibration: text like what the model will meet, 10,000 tokens or more: 4-bit weights are fitted to it (``calibrate.py``), which takes
             a pass of the reference decoder over it.
    method:  how (``fitting.METHODS``). One that needs a text and is given none takes the model's own or edgekit's. None: the best one where
             there is a text, else ``equalize``, which looks at the weights only.
    bits, fit_bytes: a budget of storage for each weight, or of the artifact's weights in all; matrices get finer formats than the scheme's
             where that does most (``precision.py``).
    threads: that hash and quantize, and of the engine when it computes the conformance vectors; None takes every core. The artifact is
             the same, byte for byte.
    Raises UsageError, ModelError, TargetError, DoesNotFit, EngineMissing, TemplateError, OutputError, DownloadError, EngineError
    or FidelityError (with a report); then, as after Ctrl-C, nothing else is left behind.
    """
    output, gate = Path(output), _gate(verify, full, limits)
    wanted, quant, exporter = check_request(target, output, scheme=scheme, force=force)
    if device is not None:
        from edgekit.plan import check_fits, find  # which plans by what is here

        # Before a download, too.
        place, found = load_device(device), find(str(model), revision=revision, offline=offline)
        check_fits(found, wanted, place, scheme=scheme, context=context)
    opened = open_model(resolve(str(model), revision=revision, offline=offline, progress=progress))
    wanted = replace(wanted, context=context_for(opened, wanted, context))
    companions = read_companions(opened.checkpoint, opened.decoder.vocab_size)
    if bits is not None and fit_bytes is not None:
        raise UsageError("--bits and --fit contradict each other; give one of them")
    budget = Budget(bits, fit_bytes) if bits is not None or fit_bytes is not None else None
    fitted = settle(opened, companions, quant, method=method, calibration=calibration, budget=budget)
    exporter.check(opened, quant, wanted)
    size = exporter.footprint(opened, quant, wanted)
    _check_footprint(size, opened, quant, wanted, output)
    if gate is not None and size.lossy is not None:
        _check_engine(size.lossy)
    cache = open_cache() if cached else None
    quantizer = _quantizer(opened, cache, progress, threads)
    if budget is not None:
        quant = within_budget(opened, quant, fitted, lambda s: exporter.footprint(opened, s, wanted).weights, quantizer, progress)
        size = exporter.footprint(opened, quant, wanted)
        _check_footprint(size, opened, quant, wanted, output)
    if cache is not None:
        make_room(cache, size.weights)
    job = Job(opened, quant, wanted, exporter, companions, fitted, gate, quantizer, size.lossy)
    with writing(output, force=force) as staging:
        manifest = _make(job, staging, output, progress)
        seal(staging, manifest)
    report_place(output).unlink(missing_ok=True)
    if cache is not None:
        prune(cache, cache.limit)
    return manifest


def _gate(verify: bool, full: bool, limits: Limits) -> Gate | None:
    if not verify and (full or limits != Limits()):
        raise UsageError("limits of fidelity and a full verification contradict --no-verify; give one of them")
    return Gate(limits, full) if verify else None


def _make(job: Job, staging: Path, output: Path, progress: Progress) -> Manifest:
    """Writes everything but the manifest, which is returned."""
    companions = job.companions
    write_companions(companions, job.model.checkpoint, staging)
    ledger = Ledger()
    model, quantizer = fit(job.model, job.scheme, job.fitted, replace(job.quantizer, ledger=ledger), staging, progress)
    exported = job.exporter.export(model, job.scheme, job.target, staging, progress, quantizer)
    weights = weight_digests(model, ledger)
    manifest = _manifest(job, exported, weights, {path.name: source.sha256 for path, source in quantizer.sources.items()})
    if job.gate is not None:
        # A template must be among the files, and these are listed later.
        artifact = Artifact(staging, replace(manifest, chat_template=None, tool_template=None))
        made = Quantized(job.model, model, job.scheme, replace(quantizer, ledger=None), weights, job.lossy)
        manifest = replace(manifest, fidelity=pass_gate(job.gate, made, companions, artifact, output, progress))
    shutil.rmtree(staging / CALIBRATED, ignore_errors=True)
    return _listed(job, manifest, staging, progress)


def _listed(job: Job, manifest: Manifest, staging: Path, progress: Progress) -> Manifest:
    """With the digests of all files and, unless it is not to be verified, what the engine answers."""
    if job.gate is None:
        return replace(manifest, files=list_files(staging, progress))
    with greedy_vectors(staging, manifest, job.companions, job.quantizer.threads) as computed:
        manifest = replace(manifest, files=list_files(staging, progress))
        if sys.platform != "win32":  # there a file that the engine has open cannot be opened to be flushed
            flush(staging)  # the disk works while the engine computes
        return replace(manifest, conformance=replace(manifest.conformance, greedy=computed()))


def _quantizer(model: Model, cache: Cache | None, progress: Progress, threads: int | None) -> Quantizer:
    """With the digests of all checkpoint files that are read."""
    with reading(model.checkpoint.directory):
        return Quantizer(threads, cache, source_files(_model_files(model), cache, progress, threads))


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


def _check_footprint(size: Footprint, model: Model, scheme: QuantScheme, target: Target, output: Path) -> None:
    """Stops before the long job where the artifact cannot fit the disk, or with its full context not into the device's memory."""
    full = size.weights + size.cache * target.context
    if target.memory_mb is not None and full > target.memory_mb * 1_000_000:
        room = (target.memory_mb * 1_000_000 - size.weights) // size.cache if size.cache else 0
        advice = f"build with --context {room}" if room >= SMALLEST_CONTEXT else "take a smaller model or another target"
        raise TargetError(
            f"{model.checkpoint.source.name} as {scheme.name} takes {size.weights / 1e6:,.0f} MB and its KV cache for "
            f"{target.context:,} tokens {size.cache * target.context / 1e6:,.0f} MB; "
            f"target {target.name!r} allows {target.memory_mb:,} MB in all: {advice}"
        )
    existing = next(p for p in output.absolute().parents if p.is_dir())
    free = shutil.disk_usage(existing).free
    need = size.weights + COMPANION_BYTES
    if need > free:
        raise OutputError(
            f"cannot write {output}: about {need / 1e6:,.0f} MB are needed, {existing} has {free / 1e6:,.0f} MB free; "
            "free some space or choose another place: --out DIR"
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


def _manifest(job: Job, exported: Exported, weights: Mapping[str, str], files: Mapping[str, str]) -> Manifest:
    """files: digests of what was read. What is measured later says here that it was not."""
    model, scheme, target, companions = job.model, job.scheme, job.target, job.companions
    source, decoder = model.checkpoint.source, model.decoder
    window = next((w for w in decoder.windows if w is not None and w < target.context), None)
    switch = decoder.rope.switch if decoder.rope.is_long(target.context) else None
    return Manifest(
        format="edgekit",
        version=1,
        producer=f"edgekit {__version__}",
        model=ModelInfo(
            source.name, cast(SourceKind, source.kind), source.revision, source.license, decoder.model_type, model.parameters, files
        ),
        target=target.name,
        engine=EngineInfo(target.engine, exported.engine_requires, exported.details),
        scheme=SchemeInfo(
            scheme.name,
            round(exported.bits_per_weight, 4),
            _format(scheme.linear),
            _format(scheme.format_for("embed_tokens", decoder.hidden_size)),
            _format(scheme.format_for("lm_head", decoder.hidden_size)),
            {name: _format(form) for name, form in other_formats(model, scheme).items()} | dict(exported.tensors),
            job.fitted.method,
        ),
        context=ContextInfo(target.context, switch, window),
        tokens=companions.tokens,
        chat_template=None if companions.template is None else TEMPLATE,
        conformance=text_vectors(companions),
        files={},
        weights=weights,
        calibration=job.fitted.info,
        fidelity=FidelityInfo("not verified", NOT_VERIFIED),
        tool_template=None if companions.tool_template is None else TOOL_TEMPLATE,
    )


def _format(form: Format) -> TensorFormat:
    return TensorFormat(form.bits, form.group)


def _model_files(model: Model) -> list[Path]:
    """Every checkpoint file that is read; their digests say where the artifact came from."""
    checkpoint = model.checkpoint
    weights = {tensor.file for tensor in checkpoint.tensors.values()}
    return sorted(weights | set(companion_files(checkpoint.directory)), key=lambda path: path.name)

"""One command's worth of work: a model and a target become an artifact. Checks first, then the long job, then one rename."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from edgekit import __version__
from edgekit.artifact import (
    FILE_BITS,
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
from edgekit.checkpoint import reading
from edgekit.companions import Companions, companion_files, write_companions
from edgekit.conformance import NOT_VERIFIED, greedy_vectors, text_vectors
from edgekit.digest import Ledger, weight_digests
from edgekit.engines.exported import Exported, Lossy
from edgekit.fidelity_gate import Gate, Limits, Quantized, check_reachable, pass_gate, report_place
from edgekit.fitting import CALIBRATED, Fitted, fit, within_budget
from edgekit.models import Model
from edgekit.output import flush, seal, writing
from edgekit.precision import stored_bits
from edgekit.prepare import (
    SMALLEST_CONTEXT,
    Exporter,
    Order,
    Prepared,
    check_footprint,
    check_request,
    check_room,
    context_for,
    exporter_of,
    outputs,
    prepare,
)
from edgekit.progress import Progress, silent
from edgekit.quant.scheme import Format, QuantScheme
from edgekit.quantized import Quantizer, other_formats
from edgekit.target import Target
from edgekit.template_files import TEMPLATE, TOOL_TEMPLATE

__all__ = [
    "SMALLEST_CONTEXT",
    "Order",
    "Prepared",
    "build",
    "carry_out",
    "check_request",
    "context_for",
    "exporter_of",
    "outputs",
    "prepare",
]

SHOWN = 0.005
"""Bits a weight by which an engine's file must differ from the portable weights, as those with float32 scales do, to be mentioned."""


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
    limits:  beyond which nothing is written but a report beside ``output``; what they leave open is edgekit's own.
    calibration: text like what the model will meet, 10,000 tokens or more: 4-bit weights are fitted to it (``calibrate.py``), which takes
             a pass of the reference decoder over it.
    method:  how (``fitting.METHODS``). One that needs a text and is given none takes the model's own or edgekit's. None: the best one where
             there is a text, else ``equalize``, which looks at the weights only.
    bits, fit_bytes: a budget of storage for each weight, or of the artifact's weights in all; matrices get finer formats than the scheme's
             where that does most (``precision.py``). What bits cannot be had is refused at once.
    threads: that hash and quantize, and of the engine when it computes the conformance vectors; None takes every core. The artifact is
             the same, byte for byte.
    Raises UsageError, ModelError, TargetError, DoesNotFit, EngineMissing, TemplateError, OutputError, DownloadError, EngineError
    or FidelityError (with a report); then, as after Ctrl-C, nothing else is left behind.
    """
    order = Order(
        str(model),
        scheme=scheme,
        revision=revision,
        context=context,
        device=device,
        offline=offline,
        force=force,
        cached=cached,
        verify=verify,
        full=full,
        limits=limits,
        calibration=calibration,
        method=method,
        bits=bits,
        fit_bytes=fit_bytes,
        threads=threads,
    )
    (prepared,) = prepare(order, [(target, Path(output))], progress)
    return carry_out(prepared, progress)


def carry_out(prepared: Prepared, progress: Progress = silent) -> Manifest:
    """The long job: writes the artifact and returns its manifest. Raises as ``build`` does."""
    order, output, model, quant, size = prepared.order, prepared.output, prepared.model, prepared.scheme, prepared.size
    exporter, target, fitted = prepared.exporter, prepared.target, prepared.fitted
    cache = open_cache() if order.cached else None
    quantizer = _quantizer(model, cache, progress, order.threads)
    if fitted.budget is not None:
        if prepared.gate is not None:
            check_reachable(prepared.gate, model, quant, quantizer, prepared.companions, progress)
        quant = within_budget(model, quant, fitted, lambda s: exporter.footprint(model, s, target).weights, quantizer, progress)
        size = exporter.footprint(model, quant, target)
        check_footprint(size, model, quant, target)
        check_room([replace(prepared, size=size)])
    if cache is not None:
        make_room(cache, size.weights)
    job = Job(model, quant, target, exporter, prepared.companions, fitted, prepared.gate, quantizer, size.lossy)
    with writing(output, force=order.force) as staging:
        manifest = _make(job, staging, output, progress)
        seal(staging, manifest)
    report_place(output).unlink(missing_ok=True)
    if cache is not None:
        prune(cache, cache.limit)
    return manifest


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
        made = Quantized(
            job.model, model, job.scheme, replace(quantizer, ledger=None), weights, job.lossy, job.fitted.method, job.fitted.bits
        )
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


def _manifest(job: Job, exported: Exported, weights: Mapping[str, str], files: Mapping[str, str]) -> Manifest:
    """files: digests of what was read. What is measured later says here that it was not."""
    model, scheme, target, companions = job.model, job.scheme, job.target, job.companions
    source, decoder = model.checkpoint.source, model.decoder
    window = next((w for w in decoder.windows if w is not None and w < target.context), None)
    switch = decoder.rope.switch if decoder.rope.is_long(target.context) else None
    bits = _bits_per_weight(model, scheme, exported, weights)
    other = abs(exported.bits_per_weight - bits) >= SHOWN
    in_the_file = {FILE_BITS: round(exported.bits_per_weight, 4)} if other else {}
    return Manifest(
        format="edgekit",
        version=1,
        producer=f"edgekit {__version__}",
        model=ModelInfo(
            source.name, cast(SourceKind, source.kind), source.revision, source.license, decoder.model_type, model.parameters, files
        ),
        target=target.name,
        engine=EngineInfo(target.engine, exported.engine_requires, {**exported.details, **in_the_file}),
        scheme=SchemeInfo(
            scheme.name,
            round(bits, 4),
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


def _bits_per_weight(model: Model, scheme: QuantScheme, exported: Exported, weights: Mapping[str, str]) -> float:
    """Of the portable weights, the same on every engine; of what an engine stores otherwise than the scheme says, its own figure."""
    return stored_bits(model, scheme) if weights and not exported.tensors else exported.bits_per_weight


def _format(form: Format) -> TensorFormat:
    return TensorFormat(form.bits, form.group)


def _model_files(model: Model) -> list[Path]:
    """Every checkpoint file that is read; their digests say where the artifact came from."""
    checkpoint = model.checkpoint
    weights = {tensor.file for tensor in checkpoint.tensors.values()}
    return sorted(weights | set(companion_files(checkpoint.directory)), key=lambda path: path.name)

"""Manifests, targets and the catalogue as words and tables, for the command line and the generated documentation."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from edgekit.artifact import FILE_BITS, FidelityInfo, Manifest, SchemeInfo, TensorFormat
from edgekit.console import size

if TYPE_CHECKING:
    from edgekit.cache import Cache, Group, Pruned
    from edgekit.catalog import CatalogEntry
    from edgekit.device import DeviceProfile
    from edgekit.doctor import Diagnosis, Place, Probe
    from edgekit.target import Target

Table = tuple[list[str], list[list[str]]]


def stored_bytes(manifest: Manifest) -> int:
    """Size of the artifact's files, the manifest apart."""
    return sum(info.bytes for info in manifest.files.values())


def headline(manifest: Manifest) -> str:
    """One line about what was built."""
    found = manifest.fidelity
    fidelity = f", KL {max(part.mean_kl for part in found.parts):.2g}" if found is not None and found.parts else ""
    return (
        f"{manifest.model.name} for {manifest.target}, {manifest.scheme.name}{groups(manifest.scheme)}, "
        f"{manifest.scheme.bits_per_weight:.2f} bits a weight{in_the_file(manifest)}{fidelity}, {size(stored_bytes(manifest))}"
    )


def summary(manifest: Manifest) -> dict[str, str | int | float | None]:
    """What ``edge build --json`` says of one artifact. not_tried: why the engine did not run it after the build, None where it did."""
    return {
        "model": manifest.model.name,
        "target": manifest.target,
        "engine": manifest.engine.name,
        "scheme": manifest.scheme.name,
        "bits_per_weight": manifest.scheme.bits_per_weight,
        "context": manifest.context.length,
        "bytes": stored_bytes(manifest),
        "not_tried": manifest.conformance.greedy.reason,
        "mean_kl": None if manifest.fidelity is None or not manifest.fidelity.parts else max(p.mean_kl for p in manifest.fidelity.parts),
    }


def fidelity(found: FidelityInfo | None) -> list[tuple[str, str]]:
    """What a manifest says of its fidelity, a line for each kind of window."""
    if found is None or not found.parts:
        return [("fidelity", f"not verified: {found.reason}" if found is not None and found.reason else "not verified")]
    what = {"quick": "of the weights", "not verified": ""}.get(found.verified, "of the artifact, by its engine")
    lines = [
        f"{part.name} context: KL {part.mean_kl:.3g}, 99.9 % {part.kl_p999:.3g}, same likeliest token {part.same_top:.1%}, "
        f"perplexity {part.perplexity:.4g} for {part.reference_perplexity:.4g}, {part.positions} positions"
        for part in found.parts
    ]
    limits = f"limits: KL {found.max_kl:g}, same likeliest token {found.min_top1:.0%}" if found.max_kl and found.min_top1 else None
    return [("fidelity", what), *(("", line) for line in [*lines, *([limits] if limits else [])])]


def description(manifest: Manifest, *, checked: bool) -> list[tuple[str, str]]:
    """Label and text of every line of ``edge inspect``."""
    model, scheme, context, tokens, greedy = (
        manifest.model,
        manifest.scheme,
        manifest.context,
        manifest.tokens,
        manifest.conformance.greedy,
    )
    origin = ", ".join([model.source, *([f"revision {model.revision}"] if model.revision else [])])
    requires = ", ".join(f"{name} >= {version}" for name, version in manifest.engine.requires.items())
    details = [f"{key} {value}" for key, value in manifest.engine.details.items()]
    lines = [
        ("model", f"{model.name} ({origin}), {model.architecture}, {model.parameters / 1e6:,.1f} M parameters"),
        ("license", model.license or "not declared"),
        ("target", manifest.target),
        ("engine", "; ".join([f"{manifest.engine.name} ({requires})" if requires else manifest.engine.name, *details])),
        ("scheme", f"{scheme.name}, {scheme.bits_per_weight:.2f} bits a weight{in_the_file(manifest)}"),
        ("", f"linear {_format(scheme.linear)}, embedding {_format(scheme.embedding)}, lm_head {_format(scheme.lm_head)}"),
        *(("", line) for line in _others(scheme)),
        ("context", f"{context.length} tokens"),
        *([("", f"LongRoPE: long factors beyond {context.rope_switch} tokens")] if context.rope_switch else []),
        *([("", f"sliding window of {context.sliding_window} tokens")] if context.sliding_window else []),
        ("tokens", f"{tokens.vocab_size}; stop at {', '.join(map(str, tokens.stop))}"),
        ("chat template", manifest.chat_template or "none: a base model, use --raw"),
        ("conformance", f"{len(manifest.conformance.encode)} encode, {len(manifest.conformance.chat)} chat, {len(greedy.vectors)} greedy"),
        *([("", f"no greedy vectors: {greedy.reason}")] if greedy.reason else []),
        *fidelity(manifest.fidelity),
        ("built by", manifest.producer),
        ("files", f"{len(manifest.files)}, {size(stored_bytes(manifest))}, {'every digest is right' if checked else 'sizes are right'}"),
        *(("", f"{name}, {size(info.bytes)}") for name, info in manifest.files.items()),
    ]
    return lines


def target_table(targets: "Sequence[Target]") -> Table:
    """Name, engine, scheme, context, verified, description."""
    rows = [[t.name, t.engine, t.scheme, str(t.context), t.verified, t.description] for t in targets]
    return ["target", "engine", "scheme", "context", "verified", "for"], rows


def device_table(devices: "Sequence[DeviceProfile]") -> Table:
    """Name, chip, memory, memory of an app, bandwidth, units with an NPU's generation, targets, what it is."""
    rows = [
        [
            d.name,
            d.chip,
            size(d.memory.value * 1e6),
            size(d.app_memory.value * 1e6),
            f"{d.bandwidth.value:.3g} GB/s",
            next((unit.generation or "yes" for unit in d.units if unit.kind == "npu"), ""),
            ", ".join(d.targets),
            d.description,
        ]
        for d in devices
    ]
    return ["device", "chip", "memory", "for an app", "bandwidth", "NPU", "targets", "what it is"], rows


def model_table(entries: "Sequence[CatalogEntry]") -> Table:
    """Name, hub id, architecture, parameters, download, context, licence."""
    rows = [
        [e.name, e.hub or "in the package", e.architecture, _count(e.parameters), size(e.parameters * 2), str(e.context), e.license]
        for e in entries
    ]
    return ["model", "hub id", "architecture", "parameters", "bf16 size", "context", "licence"], rows


def cache_facts(cache: "Cache", groups: "Sequence[Group]") -> dict[str, object]:
    """What ``edge cache list --json`` says."""
    return {
        "directory": str(cache.directory),
        "limit": cache.limit,
        "bytes": sum(g.bytes for g in groups),
        "entries": [asdict(g) for g in groups],
    }


def cache_summary(cache: "Cache", groups: "Sequence[Group]") -> list[tuple[str, str]]:
    """Where the cache is and how full."""
    return [("cache", str(cache.directory)), ("holds", f"{size(sum(g.bytes for g in groups))} of at most {size(cache.limit)}")]


def cache_table(groups: "Sequence[Group]") -> Table:
    """Model, checkpoint file, format, size, last use."""
    rows = [[g.model, g.file, g.format, size(g.bytes), f"{datetime.fromtimestamp(g.used):%Y-%m-%d %H:%M}"] for g in groups]
    return ["model", "file", "format", "size", "last used"], rows


def pruned_line(pruned: "Pruned") -> str:
    """What ``edge cache prune`` did."""
    stuck = f"; {pruned.stuck} files could not be removed (in use, or another user's)" if pruned.stuck else ""
    return f"removed {pruned.files} files, {size(pruned.bytes)}; {size(pruned.left)} left{stuck}"


def diagnosis(found: "Diagnosis") -> list[tuple[str, str]]:
    """Label and text of every line of ``edge doctor``."""
    memory = f", {size(found.memory)} of memory" if found.memory else ""
    return [
        ("edgekit", f"{found.edgekit}; Python {found.python}"),
        ("machine", f"{found.platform}; {found.cores} cores{memory}"),
        ("quantizer", "C code" if found.kernel else "NumPy (the C code was not compiled)"),
        *((p.extra or "base", f"{p.name} {p.installed or 'missing'}{'' if p.fits else f', wanted {p.wanted}'}") for p in found.packages),
        *((f"engine {p.engine}", f"{', '.join(p.targets)}: {_outcome(p)}") for p in found.probes),
        *((d.kind, f"{d.name}, {d.driver or 'no driver'}") for d in found.devices or ()),
        *([("devices", "edgekit does not know where to look on this system")] if found.devices is None else []),
        *([("devices", "none seen")] if found.devices == () else []),
        *((p.name, _place(p)) for p in found.places),
        *(("setting", f"{name}={value}") for name, value in found.settings.items()),
        *(("advice", line) for line in found.advice),
    ]


def _outcome(probe: "Probe") -> str:
    """What is wrong is told as advice."""
    return probe.outcome if probe.outcome in ("missing", "fails") else f"{probe.outcome}: {probe.detail}"


def _place(place: "Place") -> str:
    limit = f" of at most {size(place.limit)}" if place.limit is not None else ""
    return f"{place.directory}, {size(place.holds)}{limit}, {size(place.free)} free"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} G" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _others(scheme: SchemeInfo) -> list[str]:
    """Matrices of the layers in other formats: a line for each format, with the parts of a layer that have it."""
    found: dict[TensorFormat, list[str]] = {}
    for name, form in scheme.exceptions.items():
        found.setdefault(form, []).append(name)
    return [f"{_format(form)}: {', '.join(_gathered(names))}" for form, names in found.items()]


def _gathered(names: Sequence[str]) -> list[str]:
    """``layers.0.q_proj`` and ``layers.1.q_proj`` as ``q_proj of 2 layers``."""
    parts: dict[str, int] = {}
    others = []
    for name in names:
        layer = re.fullmatch(r"layers\.\d+\.(.+)", name)
        if layer is None:
            others.append(name)
        else:
            parts[layer[1]] = parts.get(layer[1], 0) + 1
    return [*others, *(f"{part} of {count} layer{'s' if count > 1 else ''}" for part, count in parts.items())]


def in_the_file(manifest: Manifest) -> str:
    """What the engine's own file takes for a weight, where it stores scales wider than they are; else empty."""
    found = manifest.engine.details.get(FILE_BITS)
    return f" ({found:.2f} in the file)" if isinstance(found, float | int) else ""


def groups(scheme: SchemeInfo) -> str:
    """Which groups a scheme's 4-bit matrices are in where they are not all the scheme's, such as `` (also g64)``; else empty."""
    found = sorted({form.group for form in scheme.exceptions.values() if form.group and form.bits == scheme.linear.bits}, reverse=True)
    other = [f"g{group}" for group in found if group != scheme.linear.group]
    return f" (also {', '.join(other)})" if other else ""


def _format(form: TensorFormat) -> str:
    return f"{form.bits} bits g{form.group}" if form.group else f"float{form.bits}"

"""``edge profile --on aihub:DEVICE``: an artifact's graphs on a device of Qualcomm AI Hub.

A compiled graph is uploaded and profiled as it is. Plain ONNX is compiled there first, and what shares weights is linked into one binary.
The hub runs graphs, not the generation loop: its report is another than that of a device with a Python (docs/remote.md).
"""

import hashlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from edgekit import __version__
from edgekit.artifact import MANIFEST, Artifact
from edgekit.errors import DeviceUnfit, LinkBroken
from edgekit.files import file_digest
from edgekit.remote.hub_graphs import HubGraph, Phase, graphs
from edgekit.remote.hub_jobs import PATIENCE, Hub, connect
from edgekit.resources import cache_folder

VERSION = 1


@dataclass(frozen=True)
class GraphProfile:
    """seconds: of a run, the median of the samples where the hub tells them, else its own estimate. load: seconds, cold and warm. peak:
    bytes. units: of the device -> layers that it ran."""

    file: str
    graph: str
    phase: Phase
    job: str
    url: str
    seconds: float
    samples: tuple[float, ...]
    load_cold: float | None
    load_warm: float | None
    peak: int | None
    units: Mapping[str, int]


@dataclass(frozen=True)
class HubMissing:
    """A graph that was not measured, and why."""

    file: str
    graph: str
    reason: str


@dataclass(frozen=True)
class HubReport:
    """prompt_seconds, token_seconds: of one pass through the graphs for a piece of the prompt, and for a token; None where one is missing.
    They leave out what the CPU does: embedding, lm_head, sampling."""

    format: Literal["edgekit-aihub-profile"]
    version: int
    producer: str
    command: str
    began: str
    device: str
    system: str
    attributes: tuple[str, ...]
    directory: str
    manifest_sha256: str
    model: str
    target: str
    complete: bool
    prompt_seconds: float | None
    token_seconds: float | None
    graphs: tuple[GraphProfile, ...]
    missing: tuple[HubMissing, ...]


@dataclass(frozen=True)
class Binary:
    """A compiled file there: its model id, and the graphs in it."""

    model: str
    graphs: tuple[HubGraph, ...]


def profile_in_hub(
    name: str, system: str, artifact: Artifact, journal: Path | None, command: str, tell: Callable[[str], None], patience: float = PATIENCE
) -> HubReport:
    """Raises EngineMissing, Untrusted, DeviceUnfit, ArtifactError; LinkBroken with where the ids of the jobs are kept."""
    found = graphs(artifact)
    manifest = file_digest(artifact.directory / MANIFEST).hex()
    path = journal or _journals() / f"{hashlib.sha256(f'{name}@{system} {manifest}'.encode()).hexdigest()[:16]}.jsonl"
    hub = connect(name, system, path, tell, patience)
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        profiles, missing = _measure(hub, found, artifact)
    except LinkBroken as error:
        raise LinkBroken(f"{error}; the jobs are noted in {path}, the same command goes on with them") from None
    if not missing and journal is None:
        path.unlink(missing_ok=True)
    return HubReport(
        format="edgekit-aihub-profile",
        version=VERSION,
        producer=f"edgekit {__version__}",
        command=command,
        began=began,
        device=hub.device.name,
        system=hub.device.os,
        attributes=tuple(hub.device.attributes),
        directory=str(artifact.directory),
        manifest_sha256=manifest,
        model=artifact.manifest.model.name,
        target=artifact.manifest.target,
        complete=not missing,
        prompt_seconds=_sum(profiles, missing, "prompt"),
        token_seconds=_sum(profiles, missing, "token"),
        graphs=tuple(profiles),
        missing=tuple(missing),
    )


def as_lines(report: HubReport) -> Iterator[tuple[str, ...]]:
    """A table, its head first."""
    yield ("file", "graph", "run ms", "load s", "peak MB", "units", "job")
    for graph in report.graphs:
        units = ", ".join(f"{count} {unit}" for unit, count in graph.units.items())
        load = f"{graph.load_cold:.2f}" if graph.load_cold is not None else ""
        peak = f"{graph.peak / 1e6:.0f}" if graph.peak is not None else ""
        yield (graph.file, graph.graph, f"{1e3 * graph.seconds:.2f}", load, peak, units, graph.job)
    for lost in report.missing:
        yield (lost.file, lost.graph, "", "", "", "", lost.reason)


def _journals() -> Path:
    folder = cache_folder(os.environ) / "remote" / "aihub"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _measure(hub: Hub, found: tuple[HubGraph, ...], artifact: Artifact) -> tuple[list[GraphProfile], list[HubMissing]]:
    """All jobs are submitted before the first is waited for: they run side by side there."""
    profiles: list[GraphProfile] = []
    missing: list[HubMissing] = []
    begun, binaries = [], []

    def lost(group: Sequence[HubGraph], error: DeviceUnfit) -> None:
        missing.extend(HubMissing(graph.file, graph.name, str(error)) for graph in group)

    for group in _groups(found):
        try:
            begun.append((group, _begin(hub, group, artifact)))
        except DeviceUnfit as error:
            lost(group, error)
    for group, dids in begun:
        try:
            binaries.append(Binary(_linked(hub, group, dids, artifact) if dids else _uploaded(hub, group), group))
        except DeviceUnfit as error:
            lost(group, error)
    waiting = [(binary, graph, _submit(hub, binary, graph)) for binary in binaries for graph in binary.graphs]
    for _, graph, did in waiting:
        try:
            profiles.append(_result(hub, graph, did))
        except DeviceUnfit as error:
            lost([graph], error)
    if not profiles:
        raise DeviceUnfit(missing[0].reason)
    return profiles, missing


def _groups(found: tuple[HubGraph, ...]) -> list[tuple[HubGraph, ...]]:
    """Graphs of one binary: those that are in it, or those that share weights and so shall be."""
    groups: dict[str, list[HubGraph]] = {}
    for graph in found:
        groups.setdefault(str(graph.binary or graph.data or graph.file), []).append(graph)
    return [tuple(group) for group in groups.values()]


def _begin(hub: Hub, group: tuple[HubGraph, ...], artifact: Artifact) -> list[str]:
    """Submits what has to be compiled; what the jobs are noted as."""
    return [_compile(hub, graph, artifact) for graph in group if graph.binary is None]


def _uploaded(hub: Hub, group: tuple[HubGraph, ...]) -> str:
    """The model id of a compiled file."""
    binary = group[0].binary
    assert binary is not None
    digest = file_digest(binary).hex()
    hub.tell(f"{hub.where}: uploading {binary.name}")
    return hub.once(f"upload {digest}", lambda: str(hub.client.upload_model(str(binary)).model_id))


def _linked(hub: Hub, group: tuple[HubGraph, ...], compiled: list[str], artifact: Artifact) -> str:
    """Links what was compiled; the binary's model id."""
    models = [_target(hub, did, f"compile {graph.file}") for did, graph in zip(compiled, group, strict=True)]
    did = "link " + " ".join(compiled)

    def submit() -> str:
        sources = [hub.client.get_model(model) for model in models]
        return str(hub.client.submit_link_job(sources, device=hub.device, name=f"edgekit {artifact.manifest.model.name}").job_id)

    hub.once(did, submit)
    return _target(hub, did, f"link {', '.join(graph.file for graph in group)}")


def _compile(hub: Hub, graph: HubGraph, artifact: Artifact) -> str:
    """Submits; what it is noted as."""
    digest = " ".join(file_digest(path).hex() for path in (artifact.directory / graph.file, graph.data) if path is not None)
    options = f"--target_runtime qnn_dlc --qnn_graph_name {graph.name}"

    def upload() -> str:
        with tempfile.TemporaryDirectory(prefix="edgekit-aihub-") as folder:
            # The client takes one .onnx and one .data beside it, as a folder.
            staged = Path(folder) / f"{graph.name}.onnx"
            staged.mkdir()
            for path in [artifact.directory / graph.file, *([graph.data] if graph.data is not None else [])]:
                (staged / path.name).symlink_to(path.resolve())
            return str(hub.client.upload_model(str(staged)).model_id)

    hub.tell(f"{hub.where}: uploading {graph.file}")
    model = hub.once(f"upload {digest}", upload)
    did = f"compile {digest} {options}"
    name = f"edgekit {graph.name}"

    def submit() -> str:
        source = hub.client.get_model(model)
        return str(hub.client.submit_compile_job(source, hub.device, name, options=options, retry=False).job_id)

    hub.once(did, submit)
    return did


def _target(hub: Hub, did: str, what: str) -> str:
    job = hub.finished(did, what)
    model = hub.call(job.get_target_model)
    if model is None:
        raise DeviceUnfit(f"{hub.where}: {what}: job {job.job_id} gave no model; see {job.url}")
    return str(model.model_id)


def _submit(hub: Hub, binary: Binary, graph: HubGraph) -> str:
    options = f"--compute_unit npu --qnn_options context_enable_graphs={graph.name}"
    did = f"profile {binary.model} {options}"

    def submit() -> str:
        model = hub.client.get_model(binary.model)
        return str(hub.client.submit_inference_job(model, hub.device, name=f"edgekit {graph.name}", options=options, retry=False).job_id)

    hub.once(did, submit)
    return did


def _result(hub: Hub, graph: HubGraph, did: str) -> GraphProfile:
    """The hub tells microseconds and bytes."""
    job = hub.finished(did, f"profile {graph.file}")
    found = hub.call(job.download_profile)
    if not found:
        raise DeviceUnfit(f"{hub.where}: profile {graph.file}: job {job.job_id} ended without a profile; see {job.url}")
    told = found["execution_summary"]
    samples = tuple(value / 1e6 for value in told.get("all_inference_times") or [])
    units: dict[str, int] = {}
    for layer in found["execution_detail"]:
        units[layer["compute_unit"]] = units.get(layer["compute_unit"], 0) + 1
    return GraphProfile(
        graph.file,
        graph.name,
        graph.phase,
        str(job.job_id),
        str(job.url),
        statistics.median(samples) if samples else told["estimated_inference_time"] / 1e6,
        samples,
        _seconds(told.get("first_load_time")),
        _seconds(told.get("warm_load_time")),
        told.get("estimated_inference_peak_memory") or None,
        units,
    )


def _seconds(microseconds: int | None) -> float | None:
    return microseconds / 1e6 if microseconds else None


def _sum(profiles: list[GraphProfile], missing: list[HubMissing], phase: Phase) -> float | None:
    mine = [graph.seconds for graph in profiles if graph.phase in (phase, "both")]
    return sum(mine) if mine and not missing else None

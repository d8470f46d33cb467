"""Which graphs of an artifact a device of Qualcomm AI Hub can run: compiled ones as they are, plain ONNX after compiling it there."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit import strict_json
from edgekit.artifact import Artifact
from edgekit.errors import ArtifactError, DeviceUnfit, EngineMissing

if TYPE_CHECKING:
    import onnx

Phase = Literal["prompt", "token", "both"]


@dataclass(frozen=True)
class HubGraph:
    """file: the .onnx in the artifact. name: of the graph in the compiled file. binary: that file, None where it is to be made. data: its
    external weights; graphs that share them are linked into one binary.."""

    file: str
    name: str
    phase: Phase
    binary: Path | None
    data: Path | None


def graphs(artifact: Artifact) -> tuple[HubGraph, ...]:
    """The compiled ones where there are any (the rest is the CPU's work), else all.

    Raises EngineMissing without onnx, ArtifactError for a file that is no ONNX, DeviceUnfit for a graph that AI Hub cannot take.
    """
    files = [name for name in artifact.manifest.files if name.endswith(".onnx")]
    if not files:
        raise DeviceUnfit(
            f"{artifact.directory} has no ONNX file: AI Hub's devices run what Qualcomm's compiler makes of ONNX; build for a Snapdragon, "
            "edge targets lists them"
        )
    phases = _phases(artifact)
    found = [graph for name in files for graph in _read(artifact.directory, name, phases.get(name, "both"))]
    compiled = tuple(graph for graph in found if graph.binary is not None)
    if not compiled:
        for graph in found:
            _check_shapes(artifact.directory / graph.file)
    return compiled or tuple(found)


def _phases(artifact: Artifact) -> dict[str, Phase]:
    """File -> when it runs, from genai_config.json's pipeline where there is one."""
    path = artifact.directory / "genai_config.json"
    if not path.exists():
        return {}
    try:
        stages = strict_json.load(path.read_text(encoding="utf-8"))["model"]["decoder"].get("pipeline", [])
        steps = [step for stage in stages for step in stage.values()]
        phases: dict[str, Phase] = {}
        for step in steps:
            prompt, token = step.get("run_on_prompt", True), step.get("run_on_token_gen", True)
            phases[str(step["filename"])] = "both" if prompt and token else "prompt" if prompt else "token"
        return phases
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path}: no configuration of onnxruntime-genai ({error!r}); build the artifact again") from None


def _load(path: Path) -> "onnx.ModelProto":
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise EngineMissing('Qualcomm AI Hub needs its client; install it: pip install "edgekit[aihub]"') from None
    try:
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(f"{path}: no ONNX file ({error}); build the artifact again") from None


def _read(directory: Path, name: str, phase: Phase) -> Iterator[HubGraph]:
    model = _load(directory / name)
    contexts = [node for node in model.graph.node if node.op_type == "EPContext"]
    for node in contexts:
        values = {attribute.name: attribute for attribute in node.attribute}
        if "embed_mode" in values and values["embed_mode"].i:
            raise DeviceUnfit(f"{directory / name}: its compiled graph is inside the file; AI Hub takes one in a file of its own")
        yield HubGraph(name, node.name, phase, inside(directory, values["ep_cache_context"].s.decode()), None)
    if not contexts:
        places = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
        if len(places) > 1:
            raise DeviceUnfit(f"{directory / name}: its weights lie in {len(places)} files, and AI Hub takes one")
        yield HubGraph(name, Path(name).stem, phase, None, inside(directory, places.pop()) if places else None)


def inside(directory: Path, name: str) -> Path:
    """A file that another of the artifact names. Raises ArtifactError where it is none of the artifact's."""
    path = directory / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
        raise ArtifactError(f"{directory}: a file in it names {name!r}, which is not there; copy or build the artifact again")
    return path


def _check_shapes(path: Path) -> None:
    for value in _load(path).graph.input:
        free = [dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim if not dim.HasField("dim_value")]
        if free:
            raise DeviceUnfit(
                f"{path}: the input {value.name!r} has no fixed shape ({', '.join(free)}), which an NPU needs; build for a Snapdragon, "
                "edge targets lists them"
            )

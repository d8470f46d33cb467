"""``windows``: a C# library on ONNX Runtime GenAI and a minimal console application."""

from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.packagers import Made, Settings
from edgekit.packagers.android import GENAI
from edgekit.packagers.apps import check_app, check_genai, facts
from edgekit.packagers.kinds import of_artifact
from edgekit.packagers.parts import ARTIFACT, Component, copy_artifact, fill_templates, texts
from edgekit.packagers.room import Place, Room, room_for
from edgekit.packagers.room import facts as room_facts
from edgekit.progress import Progress

LIBRARIES = {
    "cpu": "Microsoft.ML.OnnxRuntimeGenAI",
    "dml": "Microsoft.ML.OnnxRuntimeGenAI.DirectML",
    "cuda": "Microsoft.ML.OnnxRuntimeGenAI.Cuda",
}
"""NuGet package by the artifact's provider."""
PROVIDERS = tuple(LIBRARIES)
VERSIONS = {"dml": "0.14.1"}
"""By provider, where it is not the usual one: no newer GenAI was released for DirectML. Its Python package opens these artifacts too and
answers alike (onnxruntime-genai 0.14.1, on a CPU)."""
COMPUTERS = Place(("laptop", "desktop", "mini PC", "class"), {"cpu": "generic-8gb", "dml": "rtx-4060", "cuda": "rtx-4060"})


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    check_app(artifact, settings, "windows")
    check_genai(artifact, "windows")
    room(artifact, settings)


def room(artifact: Artifact, settings: Settings) -> Room:
    """Of its conversations. Raises UsageError."""
    return room_for(artifact, "windows", settings.device, COMPUTERS)


def fill(artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
    """See ``Packager.fill``."""
    provider = of_artifact(artifact).provider
    library, version = LIBRARIES[provider], VERSIONS.get(provider, GENAI)
    found = room(artifact, settings)
    copy_artifact(artifact, folder / ARTIFACT, progress)
    fill_templates("windows", folder, {**facts(artifact), **room_facts(found), "library": library, "genai": version})
    return Made([Component(library, version, f"pkg:nuget/{library}@{version}", "MIT", papers=texts("MIT-microsoft"))], ["windows"], found)

"""``windows``: a C# library on ONNX Runtime GenAI and a minimal console application."""

from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.packagers import Made, Settings
from edgekit.packagers.android import GENAI
from edgekit.packagers.apps import check_app, facts
from edgekit.packagers.parts import ARTIFACT, Component, copy_artifact, fill_templates
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
COMPUTERS = Place(("laptop", "desktop", "mini PC", "class"), {"cpu": "generic-8gb", "dml": "rtx-4060", "cuda": "rtx-4060"})


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    check_app(artifact, settings, "windows")
    room(artifact, settings)


def room(artifact: Artifact, settings: Settings) -> Room:
    """Of its conversations. Raises UsageError."""
    return room_for(artifact, "windows", settings.device, COMPUTERS)


def fill(artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
    """See ``Packager.fill``."""
    library = LIBRARIES[str(artifact.manifest.engine.details.get("provider", "cpu"))]
    copy_artifact(artifact, folder / ARTIFACT, progress)
    found = room(artifact, settings)
    fill_templates("windows", folder, {**facts(artifact), **room_facts(found), "library": library, "genai": GENAI})
    return Made([Component(library, GENAI, f"pkg:nuget/{library}@{GENAI}", "MIT")], ["windows"], found)

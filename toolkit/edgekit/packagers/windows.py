"""``windows``: a C# library on ONNX Runtime GenAI and a minimal console application."""

from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.packagers import Made, Settings
from edgekit.packagers.android import GENAI
from edgekit.packagers.apps import check_app, facts
from edgekit.packagers.parts import ARTIFACT, Component, copy_artifact, fill_templates
from edgekit.packagers.web import refuse_python
from edgekit.progress import Progress

LIBRARIES = {
    "cpu": "Microsoft.ML.OnnxRuntimeGenAI",
    "directml": "Microsoft.ML.OnnxRuntimeGenAI.DirectML",
    "cuda": "Microsoft.ML.OnnxRuntimeGenAI.Cuda",
}
"""NuGet package by the artifact's provider."""


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    refuse_python(settings, "windows")
    check_app(artifact, tuple(LIBRARIES), "windows")


def fill(artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
    """See ``Packager.fill``."""
    library = LIBRARIES[str(artifact.manifest.engine.details.get("provider", "cpu"))]
    copy_artifact(artifact, folder / ARTIFACT, progress)
    fill_templates("windows", folder, {**facts(artifact), "library": library, "genai": GENAI})
    return Made([Component(library, GENAI, f"pkg:nuget/{library}@{GENAI}", "MIT")], ["windows"])

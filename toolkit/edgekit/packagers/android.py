"""``android``: a Gradle project with a module for the model, in Kotlin on ONNX Runtime GenAI, and a minimal app."""

from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.packagers import Made, Settings
from edgekit.packagers.apps import check_app, check_genai, facts
from edgekit.packagers.parts import Component, copy_artifact, fill_templates, texts
from edgekit.packagers.room import Place, Room, room_for
from edgekit.packagers.room import facts as room_facts
from edgekit.packagers.split import LIST, listing, split
from edgekit.progress import Progress

PROVIDERS = ("cpu",)
PHONES = Place(("phone", "tablet"), {"cpu": "galaxy-s24"})
"""Of the phones among the profiles, the usual one has least memory."""

GENAI, ORT = "0.18.0", "1.31.0"
"""The version whose Python package opens these artifacts in edgekit's tests, and the ONNX Runtime that it asks for."""
IN_APP = 150_000_000
"""Bytes; what is larger is downloaded at the first run. Google Play takes 200 MB as an app's base module (developer.android.com,
"Android App Bundle: size restrictions"), and the libraries need the rest."""
ASSETS = Path("model/src/main/assets/artifact")
HOSTED = Path("hosted/artifact")


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    check_app(artifact, settings, "android")
    check_genai(artifact, "android")
    room(artifact, settings)


def room(artifact: Artifact, settings: Settings) -> Room:
    """Of its conversations. Raises UsageError."""
    return room_for(artifact, "android", settings.device, PHONES)


def fill(artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
    """See ``Packager.fill``."""
    size = sum(info.bytes for info in artifact.manifest.files.values())
    place = ASSETS if size <= IN_APP else HOSTED
    copy_artifact(artifact, folder / place, progress)
    text = listing(split(folder / place, settings.part))
    (folder / ASSETS).mkdir(parents=True, exist_ok=True)
    # Of the app in any case: what was downloaded is compared with it.
    (folder / ASSETS / LIST).write_text(text, encoding="utf-8", newline="\n")
    found = room(artifact, settings)
    values = {**facts(artifact), **room_facts(found), "genai": GENAI, "ort": ORT, "in_app": place == ASSETS, "megabytes": round(size / 1e6)}
    fill_templates("android", folder, values)
    libraries = (("onnxruntime-genai-android", GENAI), ("onnxruntime-android", ORT))
    components = [
        Component(name, version, f"pkg:maven/com.microsoft.onnxruntime/{name}@{version}", "MIT", papers=texts("MIT-microsoft"))
        for name, version in libraries
    ]
    return Made(components, ["android_arm64-v8a"], found)

"""``web``: one page that runs the model in the browser, and goes on without a network after the first load."""

import hashlib
import json
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.packagers import Made, Settings
from edgekit.packagers.apps import check_app
from edgekit.packagers.apps import facts as app_facts
from edgekit.packagers.kinds import kinds_for, listed, of_artifact, of_target, targets_for
from edgekit.packagers.npm import Package, packages, vendor
from edgekit.packagers.parts import ARTIFACT, copy_artifact, fill_templates
from edgekit.packagers.room import Place, Room, room_for
from edgekit.packagers.room import facts as room_facts
from edgekit.packagers.split import LIST, listing, split
from edgekit.progress import Progress
from edgekit.resources import release
from edgekit.target import load_target

VENDOR = "vendor"
HEAP = 4 << 30
"""Bytes of a page's WebAssembly in all (ONNX Runtime Web is 32-bit)."""
LARGEST = {"cpu": 2 << 30, "webgpu": 4 << 30}
"""Bytes of an artifact. In WebAssembly weights take room beside a copy that is laid out anew; with WebGPU they go from the page to the
GPU, and ONNX Runtime Web counts the bytes of a file of weights in 32 bits."""
PROVIDERS = tuple(LARGEST)
BROWSERS = {
    "cpu": Place(("laptop", "desktop", "mini PC", "class", "board", "phone", "tablet"), {"cpu": "generic-8gb"}, most=HEAP, copies=2),
    "webgpu": Place(("laptop", "desktop", "mini PC", "phone", "tablet"), {"webgpu": "rtx-4060"}, copies=2),
}
"""By the artifact's provider. What a token leaves is made from what was there before it, beside it."""


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    check_app(artifact, settings, "web")
    libraries(artifact)
    check_size(artifact)
    room(artifact, settings)


def check_size(artifact: Artifact) -> None:
    """Raises UsageError for more than a page can load, saying what would do."""
    runs, size = of_artifact(artifact), sum(info.bytes for info in artifact.manifest.files.values())
    if size <= LARGEST[runs.provider]:
        return
    others = [kind for kind in kinds_for(runs) if kind != "web"]
    larger = [name for name in targets_for("web") if LARGEST[of_target(load_target(name)).provider] >= size]
    would = [f"build the model for {listed(larger)} (--target), which a page can load up to {HEAP:,} bytes of"] if larger else []
    would += [f"package this artifact for {listed(others)} (--for)", "take a smaller model (edge models)"]
    raise UsageError(
        f"{artifact.directory} has {size:,} bytes, more than the {LARGEST[runs.provider]:,} that a page can load of an artifact for "
        f"{runs.provider}; {', or '.join(would)}"
    )


def room(artifact: Artifact, settings: Settings) -> Room:
    """Of its conversations. Raises UsageError."""
    return room_for(artifact, "web", settings.device, BROWSERS[of_artifact(artifact).provider])


def fill(artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
    """See ``Packager.fill``."""
    copy_artifact(artifact, folder / ARTIFACT, progress)
    files = split(folder / ARTIFACT, settings.part)
    (folder / ARTIFACT / LIST).write_text(listing(files), encoding="utf-8", newline="\n")
    (folder / VENDOR).mkdir()
    components = [vendor(package, folder / VENDOR, progress) for package in libraries(artifact)]
    found = room(artifact, settings)
    values = {**app_facts(artifact), **room_facts(found), "shell": "", "version": ""}
    fill_templates("web", folder, values)
    # The service worker names what belongs to the page, and is another one whenever any of that is another.
    shell = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if _of_the_page(path, folder))
    digest = hashlib.sha256(b"".join(hashlib.sha256((folder / name).read_bytes()).digest() for name in shell)).hexdigest()
    fill_templates("web", folder, {**values, "shell": json.dumps(["./", *shell], indent=2), "version": digest[:16]})
    return Made(components, room=found)


def _of_the_page(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder).parts
    return path.is_file() and inside[0] not in (ARTIFACT, "sw.js") and path.suffix in (".html", ".js", ".mjs", ".css", ".wasm")


def libraries(artifact: Artifact) -> list[Package]:
    """What the page needs for this artifact. Raises UsageError: it needs a newer ONNX Runtime than pages have."""
    runs = of_artifact(artifact)
    chosen = [package for package in packages() if package.provider in (None, runs.provider)]
    needed = artifact.manifest.engine.requires.get("onnxruntime", "0")
    for package in chosen:
        if package.name == "onnxruntime-web" and release(package.version) < release(needed):
            others = listed([kind for kind in kinds_for(runs) if kind != "web"])
            raise UsageError(
                f"{artifact.directory} needs ONNX Runtime {needed}, and pages run on {package.name} {package.version}; build it for "
                f"{listed(targets_for('web'))} (--target) without what needs the newer one (docs/performance.md), or package this "
                f"artifact for {others} (--for)"
            )
    return chosen

"""``web``: one page that runs the model in the browser, and goes on without a network after the first load."""

import hashlib
import json
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.listing import headline
from edgekit.packagers import Made, Settings
from edgekit.packagers.npm import Package, packages, vendor
from edgekit.packagers.parts import ARTIFACT, copy_artifact, fill_templates, plain_name, shell_safe
from edgekit.packagers.split import LIST, listing, split
from edgekit.progress import Progress
from edgekit.resources import release

VENDOR = "vendor"
LARGEST = 2 << 30
"""Bytes of weights; a page's WebAssembly has 4 GB in all, and the weights are there twice while they are loaded."""


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    refuse_python(settings, "web")
    libraries(artifact)
    size = sum(info.bytes for info in artifact.manifest.files.values())
    if size > LARGEST:
        raise UsageError(f"{artifact.directory} has {size:,} bytes, more than the {LARGEST:,} that a page can load; choose a smaller model")
    if artifact.manifest.chat_template is None:
        raise UsageError(f"{artifact.directory} has no chat template, and the page is for conversations; give an instruct model")


def fill(artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
    """See ``Packager.fill``."""
    copy_artifact(artifact, folder / ARTIFACT, progress)
    files = split(folder / ARTIFACT, settings.part)
    (folder / ARTIFACT / LIST).write_text(listing(files), encoding="utf-8", newline="\n")
    (folder / VENDOR).mkdir()
    components = [vendor(package, folder / VENDOR, progress) for package in libraries(artifact)]
    words = {"model": artifact.manifest.model.name, "headline": headline(artifact.manifest)}
    values = {**dict(shell_safe(words)), "name": plain_name(artifact.manifest.model.name), "shell": "", "version": ""}
    fill_templates("web", folder, values)
    # The service worker names what belongs to the page, and is another one whenever any of that is another.
    shell = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if _of_the_page(path, folder))
    digest = hashlib.sha256(b"".join(hashlib.sha256((folder / name).read_bytes()).digest() for name in shell)).hexdigest()
    fill_templates("web", folder, {**values, "shell": json.dumps(["./", *shell], indent=2), "version": digest[:16]})
    return Made(components)


def _of_the_page(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder).parts
    return path.is_file() and inside[0] not in (ARTIFACT, "sw.js") and path.suffix in (".html", ".js", ".mjs", ".css", ".wasm")


def libraries(artifact: Artifact) -> list[Package]:
    """What the page needs for this artifact. Raises UsageError: its provider is none of a browser's, or it needs a newer ONNX Runtime."""
    provider = str(artifact.manifest.engine.details.get("provider", "cpu"))
    known = packages()
    providers = sorted({package.provider for package in known if package.provider is not None})
    if provider not in providers:
        raise UsageError(
            f"{artifact.directory} was built for {provider}, which no browser has; build for one of {', '.join(providers)}: edge targets"
        )
    chosen = [package for package in known if package.provider in (None, provider)]
    needed = artifact.manifest.engine.requires.get("onnxruntime", "0")
    for package in chosen:
        if package.name == "onnxruntime-web" and release(package.version) < release(needed):
            raise UsageError(
                f"{artifact.directory} needs ONNX Runtime {needed}, and pages run on {package.name} {package.version}; "
                "build it for the web without what needs the newer one (docs/performance.md)"
            )
    return chosen


def refuse_python(settings: Settings, kind: str) -> None:
    """Raises UsageError: options that are about Python's packages."""
    given = {"--platform": settings.platforms, "--python": settings.python, "--wheels": settings.wheels, "--base": settings.base}
    if names := [name for name, value in given.items() if value]:
        raise UsageError(f"{names[0]} says nothing of a package for {kind}; leave it out")

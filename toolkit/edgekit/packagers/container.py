"""``container``: an OCI image for one or more architectures, written without a daemon upon a base image that has Python."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgekit.artifact import MANIFEST, SIGNATURE, Artifact
from edgekit.errors import EngineMissing, UsageError
from edgekit.packagers import Made, Settings, papers
from edgekit.packagers.oci_image import Base, Layer, Layout, read_base
from edgekit.packagers.parts import Component, fill_templates
from edgekit.packagers.python import PYTHON, check_runs, components, facts, refuse_others, this_machine
from edgekit.progress import Progress
from edgekit.wheels import Place, collect, locked, place, requirements

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
HOME = "opt/edgekit"
"""Where everything is in the image."""
USER = "65532:65532"
"""No user of the machine's, by the number that images without a root use."""
PORT = "8080/tcp"


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    refuse_others(settings, base=True)
    for where in _places(settings):
        check_runs(artifact, where)
    if settings.base is None:
        raise UsageError(
            "a container is built upon an image that has Python; get one and give it: "
            "skopeo copy --all docker://python:3.11-slim oci:python:3.11-slim, then --base python"
        )
    for where in _places(settings):
        _base(settings.base, where)


def fill(artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
    """See ``Packager.fill``."""
    if settings.base is None:
        raise UsageError("--base is missing")
    layout = Layout(folder / "image")
    names = [*artifact.manifest.files, MANIFEST, *([SIGNATURE] if (artifact.directory / SIGNATURE).exists() else [])]
    model = layout.layer(
        {f"{HOME}/artifact/{name}": artifact.directory / name for name in names},
        f"edgekit: {artifact.manifest.model.name}",
        compressed=False,
    )
    found: dict[str, Component] = {}
    images = []
    places = _places(settings)
    for where in places:
        base = _base(settings.base, where)
        layout.take(base)
        site, brought = _site(artifact, where, settings, layout)
        found |= {one.sha256 or one.purl: one for one in brought}
        architecture = ARCHITECTURES[where.markers["platform_machine"]]
        own = _papers(artifact, brought, layout)
        images.append(layout.image(base, architecture, [site, model, own], _run(base)))
    values = {**facts(artifact, places[0]), "platforms": ", ".join(where.name for where in places)}
    layout.close(images, f"{values['name']}:latest")
    fill_templates("container", folder, values)
    return Made(list(found.values()), [where.name for where in places])


def _places(settings: Settings) -> list[Place]:
    """Raises UsageError."""
    chosen = [place(name, settings.python or PYTHON) for name in settings.platforms or (this_machine(),)]
    for where in chosen:
        if where.markers["sys_platform"] != "linux":
            raise UsageError(f"--platform {where.name}: containers are Linux; give linux_x86_64 or linux_aarch64")
    if len({where.markers["platform_machine"] for where in chosen}) != len(chosen):
        raise UsageError("an image has each architecture once; give every --platform of its own architecture")
    return chosen


def _base(folder: Path, where: Place) -> Base:
    """Raises UsageError where the base has no image for that machine, or says that its Python is another."""
    base = read_base(folder, ARCHITECTURES[where.markers["platform_machine"]])
    said = next((text for text in _environment(base) if text.startswith("PYTHON_VERSION=")), None)
    if said is not None and not re.match(rf"PYTHON_VERSION={re.escape(where.python)}(\.|$)", said):
        raise UsageError(f"--base {folder} has Python {said.partition('=')[2]}, and the package is for {where.python}; give --python")
    return base


def _environment(base: Base) -> list[str]:
    run = base.config.get("config")
    held = run.get("Env") if isinstance(run, dict) else None
    return [str(text) for text in held] if isinstance(held, list) else []


def _run(base: Base) -> Mapping[str, object]:
    kept = [text for text in _environment(base) if not text.startswith("PYTHONPATH=")]
    return {
        "Env": [*kept, f"PYTHONPATH=/{HOME}/site-packages", "PYTHONDONTWRITEBYTECODE=1", "HF_HUB_OFFLINE=1"],
        "Entrypoint": ["python3", "-m", "edgekit.cli"],
        "Cmd": ["serve", f"/{HOME}/artifact", "--host", "0.0.0.0"],
        "ExposedPorts": {PORT: {}},
        "User": USER,
        "WorkingDir": f"/{HOME}",
        "StopSignal": "SIGTERM",
    }


def _site(artifact: Artifact, where: Place, settings: Settings, layout: Layout) -> tuple[Layer, list[Component]]:
    """The layer with all that runs there, unpacked here: nothing of a wheel is executed, so that any architecture can be made."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        house, site = Path(scratch) / "wheels", Path(scratch) / "site"
        wheels = collect(requirements(artifact.manifest, where.markers, ("serve",)), where, house, settings.wheels)
        listed = Path(scratch) / "requirements.txt"
        listed.write_text(locked(wheels), encoding="utf-8")
        fits = [f"--platform={tag}" for tag in where.tags]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += [
            "--no-compile",
            "--no-deps",
            "--no-index",
            f"--find-links={house}",
            "--only-binary=:all:",
            "--implementation=cp",
            f"--python-version={where.python}",
            *fits,
        ]
        done = subprocess.run(
            [*command, f"--target={site}", "--require-hashes", f"--requirement={listed}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise EngineMissing(f"pip could not unpack the wheels for {where.name}: {done.stderr.strip()[-300:]}")
        files: dict[str, Path | bytes] = {}
        for path in sorted(p for p in site.rglob("*") if p.is_file()):
            name = path.relative_to(site).as_posix()
            # Scripts name this machine's Python, and RECORD their digests.
            if not name.startswith("bin/") and not name.endswith((".pyc", ".dist-info/RECORD")):
                files[f"{HOME}/site-packages/{name}"] = path
        return layout.layer(files, f"edgekit: packages for {where.name}"), components([one for one in wheels if one.name != "pip"])


def _papers(artifact: Artifact, brought: list[Component], layout: Layout) -> Layer:
    """Licences travel with the image too."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        folder = Path(scratch)
        papers.write(artifact, "container", folder, brought)
        files: dict[str, Path | bytes] = {
            f"{HOME}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()
        }
        return layout.layer(files, "edgekit: licences, model card and bill of materials")

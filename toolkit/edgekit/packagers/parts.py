"""What packages are put together from: components with their licences, templates, and copies of the artifact."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from edgekit.artifact import MANIFEST, SIGNATURE, Artifact, check_digests, read_artifact
from edgekit.progress import Progress
from edgekit.wheels import own_license

TEMPLATES = Path(__file__).parent / "templates"
LICENCES = Path(__file__).parent / "licences"
"""Texts of licences, with their owners, of software that is fetched or comes without one."""
ARTIFACT = "artifact"
"""The folder of the artifact in every package that holds it as it is."""


@dataclass(frozen=True)
class Component:
    """Software of others in a package, or that its build fetches (then ``sha256`` is None). purl: package-url.github.io.
    papers: its licence texts and notices, by file name."""

    name: str
    version: str
    purl: str
    license: str | None
    sha256: str | None = None
    papers: tuple[tuple[str, bytes], ...] = ()


def texts(name: str) -> tuple[tuple[str, bytes], ...]:
    """The papers of a component whose licence is that of ``licences/NAME.txt``, or Apache-2.0, which is edgekit's own."""
    return (("LICENSE", own_license().encode() if name == "Apache-2.0" else (LICENCES / f"{name}.txt").read_bytes()),)


def copy_artifact(artifact: Artifact, folder: Path, progress: Progress) -> None:
    """A copy whose digests were compared once it was there."""
    folder.mkdir(parents=True)
    for name in (*artifact.manifest.files, MANIFEST, SIGNATURE):
        if name == SIGNATURE and not (artifact.directory / name).exists():
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.directory / name, target)
    check_digests(read_artifact(folder), progress)


def fill_templates(kind: str, folder: Path, values: Mapping[str, object]) -> None:
    """Everything below ``templates/KIND``: ``NAME.j2`` filled as NAME, other files as they are. A path may hold ``__key__``."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, trim_blocks=True)
    for path in sorted(p for p in (TEMPLATES / kind).rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        name = path.relative_to(TEMPLATES / kind).as_posix()
        for key in (key for key in values if f"__{key}__" in name):
            name = name.replace(f"__{key}__", str(values[key]))
        target = folder / name.removesuffix(".j2")
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".j2"):
            text = environment.from_string(path.read_text(encoding="utf-8")).render(values)
            target.write_text(text, encoding="utf-8", newline="\n")
        else:
            shutil.copyfile(path, target)
        if target.suffix == ".sh":
            target.chmod(0o755)


def plain_name(name: str) -> str:
    """A model's name where only letters, digits and hyphens may be: a unit, an image, an application."""
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in name.lower()).split()) or "model"


def shell_safe(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Values that stand in scripts and units: without what a shell or systemd would read."""
    for key, value in values.items():
        yield key, "".join(c if c.isalnum() or c in " .,_+:/-()" else "_" for c in value)

"""``python``: the artifact and a wheel-house, installed by one command without a network."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.listing import headline
from edgekit.packagers import Made, Settings
from edgekit.packagers.parts import ARTIFACT, Component, copy_artifact, fill_templates, plain_name, shell_safe
from edgekit.progress import Progress
from edgekit.wheels import Place, Wheel, collect, locked, papers, place, requirements

PYTHON = "3.11"
"""Raspberry Pi OS's and Debian 12's."""
WHEELS = "wheels"


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    one_place(settings)
    refuse_base(settings)


def fill(artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
    """See ``Packager.fill``."""
    return fill_house(artifact, folder, settings, progress, extras=())


def fill_house(artifact: Artifact, folder: Path, settings: Settings, progress: Progress, *, extras: Sequence[str]) -> Made:
    """The package for Python: also the ground of those that add to it."""
    where = one_place(settings)
    wheels = collect(requirements(artifact.manifest, where.markers, extras), where, folder / WHEELS, settings.wheels)
    copy_artifact(artifact, folder / ARTIFACT, progress)
    (folder / "requirements.txt").write_text(locked(wheels), encoding="utf-8", newline="\n")
    fill_templates("python", folder, facts(artifact, where))
    return Made(components(wheels), (where.name,))


def facts(artifact: Artifact, where: Place) -> dict[str, object]:
    """What templates of the Python kinds speak of."""
    words = {"model": artifact.manifest.model.name, "headline": headline(artifact.manifest)}
    return {**dict(shell_safe(words)), "name": plain_name(artifact.manifest.model.name), "python": where.python, **_machine(where)}


def _machine(where: Place) -> dict[str, str]:
    return {"platform": where.name, "system": where.markers["platform_system"], "machine": where.markers["platform_machine"]}


def components(wheels: Sequence[Wheel]) -> list[Component]:
    """edgekit itself is one: what runs there is as much in the bill as what it needs."""
    return [
        Component(one.name, one.version, f"pkg:pypi/{one.name}@{one.version}", one.license, one.sha256, tuple(papers(one)))
        for one in wheels
    ]


def one_place(settings: Settings) -> Place:
    """Raises UsageError."""
    if len(settings.platforms) > 1:
        raise UsageError("this kind of package is for one --platform; make one for each")
    return place(settings.platforms[0] if settings.platforms else this_machine(), settings.python or PYTHON)


def this_machine() -> str:
    """As ``--platform`` names it."""
    name = sysconfig.get_platform().replace("-", "_")
    return "macosx_arm64" if name.startswith("macosx") and name.endswith("arm64") else name


def refuse_base(settings: Settings) -> None:
    """Raises UsageError."""
    if settings.base is not None:
        raise UsageError("--base is about containers: --for container")

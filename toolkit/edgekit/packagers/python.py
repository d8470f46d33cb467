"""``python``: the artifact and a wheel-house, installed by one command without a network."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.listing import headline
from edgekit.packagers import Made, Settings
from edgekit.packagers.kinds import instead, of_artifact, targets_for
from edgekit.packagers.parts import ARTIFACT, Component, copy_artifact, fill_templates, plain_name, shell_safe
from edgekit.progress import Progress
from edgekit.wheels import Place, Wheel, collect, locked, papers, place, requirements

PYTHON = "3.11"
"""Raspberry Pi OS's and Debian 12's."""
WHEELS = "wheels"


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    refuse_others(settings)
    check_runs(artifact, one_place(settings))


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


def check_runs(artifact: Artifact, where: Place) -> None:
    """Raises UsageError where the artifact's engine does not exist on that machine; its package would come without."""
    needs = [canonicalize_name(name) for name in artifact.manifest.engine.requires][-1:]
    found = {canonicalize_name(need.name) for need in requirements(artifact.manifest, where.markers)}
    if missing := [name for name in needs if name not in found]:
        raise UsageError(
            f"{artifact.directory} runs on {missing[0]}, which does not exist for {where.name}; "
            f"{instead('python', targets_for('python'), of_artifact(artifact))}"
        )


def refuse_others(settings: Settings, *, base: bool = False) -> None:
    """Raises UsageError: options of other kinds. base: this one is built upon an image."""
    if settings.base is not None and not base:
        raise UsageError("--base is about containers: --for container")
    if settings.device is not None:
        raise UsageError(
            "--device is about applications on a loader of others, which reserve memory; edgekit takes it as a conversation grows"
        )

"""``linux-service``: the package for Python with a server, as a systemd service that is watched."""

from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.packagers import Made, Settings
from edgekit.packagers.parts import fill_templates
from edgekit.packagers.python import check_runs, facts, fill_house, one_place, refuse_others
from edgekit.progress import Progress


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    refuse_others(settings)
    where = one_place(settings)
    if where.markers["sys_platform"] != "linux":
        raise UsageError(f"--platform {where.name} has no systemd; give a Linux one, such as linux_aarch64")
    check_runs(artifact, where)


def fill(artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
    """See ``Packager.fill``."""
    made = fill_house(artifact, folder, settings, progress, extras=("serve",))
    fill_templates("linux-service", folder, facts(artifact, one_place(settings)))
    return made

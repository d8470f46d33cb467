"""``edge package``: an artifact, and all that an application needs beside it, as one directory (docs/package.md)."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit import __version__
from edgekit.artifact import Artifact, check_digests, check_files, load_artifact
from edgekit.errors import UsageError
from edgekit.output import flush, writing
from edgekit.packagers.kinds import KINDS, check_kind
from edgekit.packagers.parts import Component
from edgekit.packagers.room import Room
from edgekit.progress import Progress, silent
from edgekit.signing import Trust, pinned

MARKER = "edgekit-package.json"
"""What a directory is known by as a package; written last."""


@dataclass(frozen=True)
class Settings:
    """platforms, python: of the machine that it is for, see ``wheels.place``; empty and None take each kind's own choice.
    wheels: take Python packages from this folder, without a network. base: the OCI image layout that a container is built upon.
    part: the largest file in bytes, for kinds that cut the weights. device: the profile whose memory conversations have to fit, for kinds
    on a loader of others; None takes the target's memory, or each kind's usual device."""

    platforms: tuple[str, ...] = ()
    python: str | None = None
    wheels: Path | None = None
    base: Path | None = None
    part: int = 32 << 20
    device: str | None = None


@dataclass(frozen=True)
class Made:
    """What a packager put into the folder, beside the papers that every package has. room: of its conversations, where that is settled
    here."""

    components: Sequence[Component]
    platforms: Sequence[str] = ()
    room: Room | None = None


class Packager(Protocol):
    """A module of ``packagers``."""

    def check(self, artifact: Artifact, settings: Settings) -> None:
        """Before the long job. Raises UsageError and TargetError where this artifact, or these settings, cannot be meant."""

    def fill(self, artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
        """Writes everything but the papers into ``folder``, which is empty."""


def package(
    directory: Path,
    kind: str,
    output: Path,
    settings: Settings | None = None,
    *,
    force: bool = False,
    trust: Trust | None = None,
    progress: Progress = silent,
) -> dict[str, object]:
    """Writes ``output`` and returns what its ``edgekit-package.json`` says. The artifact's every digest is compared before.

    Raises UsageError (an unknown kind, or one that this artifact's engine does not take part in), ArtifactError, SignatureError,
    EngineMissing (no wheels for that machine), DownloadError, OutputError.
    """
    settings = settings or Settings()
    if kind not in KINDS:
        raise UsageError(f"--for {kind!r} is unknown; there are: {', '.join(KINDS)}")
    trust = trust or pinned()
    artifact = load_artifact(directory, trust=trust, progress=progress)
    check_kind(artifact, kind)
    check_files(artifact)
    packager: Packager = importlib.import_module(KINDS[kind])
    packager.check(artifact, settings)
    if trust is None:
        check_digests(artifact, progress)
    with writing(output, force=force, marker=MARKER) as folder:
        from edgekit.packagers import papers

        made = packager.fill(artifact, folder, settings, progress)
        said = describe(artifact, kind, made)
        papers.write(artifact, kind, folder, made.components)
        text = json.dumps(said, indent=2) + "\n"
        papers.checksums(folder, {MARKER: text.encode()}, progress)
        flush(folder)
        (folder / MARKER).write_text(text, encoding="utf-8", newline="\n")
    return said


def describe(artifact: Artifact, kind: str, made: Made) -> dict[str, object]:
    return {
        "format": "edgekit package",
        "version": 1,
        "kind": kind,
        "producer": f"edgekit {__version__}",
        "model": artifact.manifest.model.name,
        "target": artifact.manifest.target,
        "release": artifact.manifest.release,
        "platforms": list(made.platforms),
        "components": len(made.components),
        **({"tokens": made.room.limit, "device": made.room.device} if made.room else {}),
    }

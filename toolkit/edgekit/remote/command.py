"""What ``edge profile --on`` does with what the user asked for."""

from dataclasses import replace
from pathlib import Path

from edgekit import console
from edgekit.artifact import load_artifact
from edgekit.profile import report
from edgekit.profile.report import Report, Settings
from edgekit.remote.address import HubDevice, address
from edgekit.remote.aihub import HubReport, profile_in_hub
from edgekit.remote.run import Wishes, profile_on


def arguments(settings: Settings) -> tuple[str, ...]:
    """Of ``edge profile``, for the same settings on the device."""
    prompts = [part for length in settings.prompts for part in ("--prompt", str(length))]
    counts = ["--tokens", str(settings.tokens), "--rounds", str(settings.rounds), "--loads", str(settings.loads)]
    threads = ["--threads", str(settings.threads)] if settings.threads is not None else []
    return (*prompts, *counts, *threads)


def profile_elsewhere(
    on: str, directory: Path, settings: Settings, *, journal_path: Path | None, keep: bool, command: str, quiet: bool
) -> Report | HubReport:
    """The report of a device elsewhere; of AI Hub's another, and the settings do not apply there: it runs each graph as often as it does.

    Raises UsageError, RemoteError, EngineMissing, and what ``edge profile`` raises there.
    """
    place = address(on)
    artifact = load_artifact(directory)
    tell = console.hide if quiet else console.notice
    if isinstance(place, HubDevice):
        return profile_in_hub(place.name, place.os, artifact, journal_path, command, tell)
    with console.progress(quiet=quiet) as progress:
        document = profile_on(place, artifact, Wishes(arguments(settings), journal_path, keep), tell, progress)
    found = report.from_json(document, place.where)
    return replace(found, command=command, subject=replace(found.subject, directory=str(directory)))

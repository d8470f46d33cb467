"""What ``edge profile --on`` does with what the user asked for."""

from dataclasses import replace
from pathlib import Path

from edgekit import console
from edgekit.artifact import load_artifact
from edgekit.errors import UsageError
from edgekit.profile import report
from edgekit.profile.report import Report, Settings
from edgekit.remote.address import HubDevice, address
from edgekit.remote.run import Wishes, profile_on


def arguments(settings: Settings) -> tuple[str, ...]:
    """Of ``edge profile``, for the same settings on the device."""
    prompts = [part for length in settings.prompts for part in ("--prompt", str(length))]
    counts = ["--tokens", str(settings.tokens), "--rounds", str(settings.rounds), "--loads", str(settings.loads)]
    threads = ["--threads", str(settings.threads)] if settings.threads is not None else []
    return (*prompts, *counts, *threads)


def profile_elsewhere(
    on: str, directory: Path, settings: Settings, *, journal_path: Path | None, keep: bool, command: str, quiet: bool
) -> Report:
    """The report of a device elsewhere. Raises UsageError, RemoteError, and what ``edge profile`` raises there."""
    place = address(on)
    if isinstance(place, HubDevice):
        raise UsageError(f"--on {on}")
    tell = console.hide if quiet else console.notice
    with console.progress(quiet=quiet) as progress:
        document = profile_on(place, load_artifact(directory), Wishes(arguments(settings), journal_path, keep), tell, progress)
    found = report.from_json(document, place.where)
    return replace(found, command=command, subject=replace(found.subject, directory=str(directory)))

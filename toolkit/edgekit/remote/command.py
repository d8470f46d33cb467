"""What ``edge profile --on`` does with what the user asked for."""

from dataclasses import replace
from pathlib import Path

from edgekit.artifact import Artifact, load_artifact
from edgekit.errors import RemoteError
from edgekit.profile import journal, report
from edgekit.profile.report import Machine, Report, Settings
from edgekit.profile.run import composed, settled
from edgekit.profile.subject import subject
from edgekit.progress import Progress
from edgekit.records import parse
from edgekit.remote.run import Outcome, Tell, Wishes, profile_on
from edgekit.remote.transport import Transport
from edgekit.signing import Trust


def arguments(settings: Settings) -> tuple[str, ...]:
    """Of ``edge profile``, for the same settings on the device."""
    prompts = [part for length in settings.prompts for part in ("--prompt", str(length))]
    counts = ["--tokens", str(settings.tokens), "--rounds", str(settings.rounds), "--loads", str(settings.loads)]
    threads = ["--threads", str(settings.threads)] if settings.threads is not None else []
    return (*prompts, *counts, *threads, "--sustained", str(settings.sustained))


def profile_elsewhere(
    place: Transport,
    directory: Path,
    wanted: Settings,
    *,
    journal_path: Path | None,
    trace: Path | None,
    keep: bool,
    command: str,
    tell: Tell,
    progress: Progress,
    trust: Trust | None = None,
) -> tuple[Report, RemoteError | None]:
    """The report of a device elsewhere; of what was measured where the link stayed broken, and the error.

    trust: whose signature the artifact must bear before anything of it is sent.
    Raises SignatureError, UsageError, RemoteError where nothing was measured, EngineMissing, and what ``edge profile`` raises there.
    """
    artifact = load_artifact(directory, trust=trust)
    settings = settled(artifact, wanted)
    outcome = profile_on(place, artifact, Wishes(arguments(settings), journal_path, trace, keep), tell, progress)
    if outcome.document is not None:
        found = report.from_json(outcome.document, place.where)
        return replace(found, command=command, subject=replace(found.subject, directory=str(directory))), None
    return _so_far(outcome, artifact, settings, command), outcome.broken


def _so_far(outcome: Outcome, artifact: Artifact, settings: Settings, command: str) -> Report:
    """Of the journal, which is here."""
    machine = parse(Machine, outcome.machine, unknown="ignore")
    return composed(artifact, settings, subject(artifact), journal.load(outcome.journal), machine, command, str(outcome.broken))

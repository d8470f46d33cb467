"""``edge profile DIR``: measures an artifact on this machine, in processes of their own, and tells what was found."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

from edgekit import __version__, child
from edgekit.artifact import Artifact, load_artifact
from edgekit.engines.observing import observer
from edgekit.errors import EngineError, UsageError
from edgekit.parallel import cores
from edgekit.profile import compose, files, journal, machine
from edgekit.profile.journal import Journal
from edgekit.profile.report import FORMAT, VERSION, Machine, Report, Settings, Subject
from edgekit.profile.subject import subject, weight_files
from edgekit.profile.trace import operators
from edgekit.signing import Trust

WORKER = "edgekit.profile.worker"
LENGTHS = (32, 128, 512, 2048)
Tell = Callable[[str], None]


def settled(artifact: Artifact, wanted: Settings) -> Settings:
    """``wanted``, made definite: without ``prompts``, those of LENGTHS that the artifact's context holds, and half the context where it
    holds none. Raises UsageError for a length that does not fit.
    """
    prompts, tokens = wanted.prompts, wanted.tokens
    context = artifact.manifest.context.length
    long = next((prompt for prompt in prompts if prompt + tokens > context), None)
    if long is not None:
        raise UsageError(f"a prompt of {long} tokens and {tokens} more do not fit into the context of {context}; give a shorter --prompt")
    fit = tuple(length for length in LENGTHS if length + tokens <= context)
    if not prompts and not fit and context < 4:
        raise UsageError(f"a context of {context} tokens is too short to measure")
    if not prompts and not fit:
        fit, tokens = (context // 2,), min(tokens, context // 2)
    return replace(wanted, prompts=tuple(sorted(set(prompts))) or fit, tokens=tokens)


def profile(
    directory: Path,
    wanted: Settings,
    *,
    journal_path: Path | None,
    trace: Path | None,
    command: str,
    tell: Tell,
    trust: Trust | None = None,
) -> Report:
    """Measures what the journal does not hold yet. trace: where a Chrome trace of the operators is written.

    tell: what is being done, a line at a time. trust: whose signature it must bear.
    Raises SignatureError, ArtifactError, EngineMissing, UsageError, and EngineError where nothing could be measured; a later failure is
    told in the report's ``missing``.
    """
    artifact = load_artifact(directory, trust=trust)
    settings = settled(artifact, wanted)
    of = subject(artifact)
    here = machine.describe(artifact.manifest.engine.requires)
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    clock = time.monotonic()
    with _journal(journal_path) as path:
        same = {"manifest_sha256": of.manifest_sha256, "processor": here.processor, "edgekit": __version__, **asdict(settings)}
        journal.start(path, same, began)
        reason = ""
        try:
            _measure(artifact, settings, path, tell)
        except EngineError as error:
            if not journal.load(path).entries:
                raise
            reason = str(error)
        held = journal.load(path)
    shares = None
    if trace is not None and not reason:
        tell("operators")
        shares = operators(artifact.directory, settings.prompts[0], settings.threads, trace)
    report = composed(artifact, settings, of, held, here, command, reason)
    return replace(report, seconds=time.monotonic() - clock, operators=shares)


def composed(artifact: Artifact, settings: Settings, of: Subject, held: Journal, here: Machine, command: str, reason: str) -> Report:
    """The report of what a journal holds. reason: why nothing more came, where something is missing."""
    limit = compose.bandwidth(held)
    lacking = tuple(compose.missing(held, settings, reason))
    shared = limit if observer(of.engine).host_memory(artifact.manifest) else None
    return Report(
        format=FORMAT,
        version=VERSION,
        producer=f"edgekit {__version__}",
        command=command,
        began=held.began,
        seconds=0.0,
        complete=all(part.cannot for part in lacking),
        subject=of,
        machine=here,
        settings=settings,
        bandwidth=limit,
        load=tuple(compose.loads(held, settings.prompts[0])),
        prefill=tuple(compose.prefills(held, settings)),
        decode=tuple(compose.decodes(held, settings, of, shared)),
        text=compose.text(held),
        memory=compose.memory(held, settings),
        energy=compose.energy(held),
        sustained=compose.sustained(held),
        operators=None,
        missing=lacking,
    )


@contextmanager
def _journal(path: Path | None) -> Iterator[Path]:
    """``path``, or one that is gone when the report is made."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-profile-") as folder:
        yield Path(folder) / "journal"


def _measure(artifact: Artifact, settings: Settings, path: Path, tell: Tell) -> None:
    held = journal.load(path)
    threads = settings.threads or cores()
    if not held.done("bandwidth"):
        tell("memory bandwidth")
        said = child.ask(WORKER, {"do": "bandwidth", "threads": threads})
        journal.append(path, {"part": "bandwidth", "round": 0, "threads": threads, **said})
    _loads(artifact, settings, path, held, tell)
    wanted = {f"length/{length}": settings.rounds for length in settings.prompts} | {"text": settings.rounds, "energy": settings.rounds}
    wanted |= {"sustained/end": 1} if settings.sustained else {}
    if any(held.done(part) < rounds for part, rounds in wanted.items()):
        tell(f"prompts of {', '.join(map(str, settings.prompts))} tokens and {settings.tokens} after each, {settings.rounds} rounds")
        asked = {"prompts": settings.prompts, "tokens": settings.tokens, "rounds": settings.rounds, "threads": settings.threads}
        asked["sustained"] = settings.sustained
        child.ask(WORKER, {"do": "rounds", "directory": str(artifact.directory), "journal": str(path), **asked})


def _loads(artifact: Artifact, settings: Settings, path: Path, held: Journal, tell: Tell) -> None:
    """Cold and warm by turns, each in a new process."""
    weights = weight_files(artifact)
    asked: child.Json = {"do": "load", "directory": str(artifact.directory), "threads": settings.threads, "prompt": settings.prompts[0]}
    for number in range(settings.loads):
        if number >= held.done("load/cold"):
            tell(f"cold load, {number + 1} of {settings.loads}")
            dropped = files.drop(weights)
            journal.append(path, {"part": "load/cold", "round": number, **child.ask(WORKER, asked)} if dropped else COLD)
        if number >= held.done("load/warm"):
            tell(f"warm load, {number + 1} of {settings.loads}")
            files.read(weights)
            journal.append(path, {"part": "load/warm", "round": number, **child.ask(WORKER, asked)})


COLD = {"part": "load/cold", "cannot": "this system lets nobody drop files from its page cache"}

"""Is an artifact what was built, and does it answer here as it did there? Imports nothing of the build side.

Compared with ==: the manifest against its schema, every file's size and sha256, every encode and chat vector. A greedy vector depends on
the rounding of the kernels, so its tokens are judged one by one, each after the vector's own earlier ones: where another token is the most
likely one here, it must lead by no more than rounding could explain (``NEAR``). The engine runs in a process of its own.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np

from edgekit import child, strict_json
from edgekit.artifact import SIGNATURE, Artifact, GreedyVector, load_artifact, read_artifact, unlisted
from edgekit.errors import ArtifactError, EngineError
from edgekit.progress import Progress, silent
from edgekit.runtime import open_text
from edgekit.runtime.session import Session, open_session
from edgekit.signing import Trust, pinned

NEAR = 0.25
"""Of the standard deviation of the logits at a token: by how much another token may lead and still be a near tie.

Measured on random and trained small models (bench/near_ties.py): ONNX Runtime's int8 products moved a logit by 0.06 rms and at most 0.17 of
that deviation against its float32 ones, and other numbers of threads not at all; a token taken at random trails by 3 and more.
"""


@dataclass(frozen=True)
class Answers:
    """How the greedy vectors came out. different: tokens that were not the most likely here. margin: by how much another one led at most,
    in standard deviations of the logits there. reason: why nothing was compared, else None.
    """

    outcome: Literal["equal", "near ties", "not compared"]
    tokens: int
    different: int
    margin: float
    reason: str | None


@dataclass(frozen=True)
class Report:
    """What was found right. signature: "trusted" where one of the trusted keys made it, "not checked" where no key was given. unlisted:
    files that lie there and are no part of the artifact.
    """

    directory: str
    model: str
    engine: str
    files: int
    bytes: int
    signature: Literal["trusted", "not checked", "none"]
    unlisted: tuple[str, ...]
    encode: int
    chat: int
    greedy: Answers


def verify(
    directory: Path | str, *, run: bool = True, threads: int | None = None, trust: Trust | None = None, progress: Progress = silent
) -> Report:
    """Checks everything about an artifact that can be checked without its checkpoint.

    run:     let the engine answer the greedy vectors. threads: that it computes with.
    trust:   whose signature it must bear; None: a pinned key's, if there is one.
    Raises SignatureError, ArtifactError (schema, size, digest, encode or chat vector), TemplateError, EngineMissing, and EngineError: the
    engine fails, or prefers other tokens by more than rounding explains.
    """
    trust = trust or pinned()
    artifact = load_artifact(directory, trust=trust, whole=True, progress=progress)
    manifest = artifact.manifest
    open_text(artifact)
    _check_stops(artifact)
    return Report(
        str(artifact.directory),
        manifest.model.name,
        manifest.engine.name,
        len(manifest.files),
        sum(info.bytes for info in manifest.files.values()),
        _signed(artifact, trust),
        tuple(unlisted(artifact)),
        len(manifest.conformance.encode),
        len(manifest.conformance.chat),
        _answers(artifact, run, threads),
    )


def _signed(artifact: Artifact, trust: Trust | None) -> Literal["trusted", "not checked", "none"]:
    if trust is not None:
        return "trusted"
    return "not checked" if (artifact.directory / SIGNATURE).is_file() else "none"


def _check_stops(artifact: Artifact) -> None:
    """The full stop set lies in the artifact twice (docs/artifact.md): a manifest that lost one would let answers run on."""
    path = artifact.directory / "generation_config.json"
    if path.name not in artifact.manifest.files:
        return
    try:
        listed = strict_json.load(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); build the artifact again") from None
    for token in listed if isinstance(listed, list) else [listed]:
        if isinstance(token, int) and token not in artifact.manifest.tokens.stop:
            raise ArtifactError(
                f"{artifact.directory}: stop id {token} of {path.name} is missing in the manifest: answers would not end there; "
                "build the artifact again"
            )


def _answers(artifact: Artifact, run: bool, threads: int | None) -> Answers:
    greedy = artifact.manifest.conformance.greedy
    if not greedy.vectors or not run:
        reason = "it was not to be run" if greedy.vectors else greedy.reason or "the manifest has no greedy vector"
        return Answers("not compared", 0, 0, 0.0, reason)
    said = child.ask(__name__, {"directory": str(artifact.directory), "threads": threads})
    leads = cast(list[list[float]], said["leads"])
    flat = [lead for vector in leads for lead in vector]
    for vector, lead in zip(greedy.vectors, leads, strict=True):
        _judge(artifact, vector, lead)
    different = sum(lead > 0 for lead in flat)
    return Answers("near ties" if different else "equal", len(flat), different, max(flat), None)


def _judge(artifact: Artifact, vector: GreedyVector, leads: Sequence[float]) -> None:
    for at, (token, lead) in enumerate(zip(vector.continuation, leads, strict=True)):
        if not lead <= NEAR:
            raise EngineError(
                f"{artifact.directory}: {artifact.manifest.engine.name} answers differently than when it was built, though every file is "
                f"right: after {len(vector.prompt) + at} tokens another one than {token} leads by {lead:.2g} standard deviations of the "
                f"logits, and rounding explains {NEAR}. Try another version of the engine, or another machine, and build the artifact again"
            )


def main() -> None:
    """The process in which the engine runs."""
    child.serve(lambda request: {"leads": _leads(str(request["directory"]), cast("int | None", request["threads"]))})


def _leads(directory: str, threads: int | None) -> list[list[float]]:
    artifact = read_artifact(directory)
    manifest = artifact.manifest
    with closing(open_session(artifact.directory, manifest, threads=threads)) as session:
        return [_lead(session, vector) for vector in manifest.conformance.greedy.vectors]


def _lead(session: Session, vector: GreedyVector) -> list[float]:
    """By how much the most likely token leads each of the vector's own, 0 where it is that one. The calls are those of the build."""
    session.rewind(0)
    given: Sequence[int] = vector.prompt
    leads = []
    for token in vector.continuation:
        logits = session.forward(given).astype(np.float64)
        if not np.isfinite(logits).all() or not 0 <= token < len(logits):
            raise EngineError(f"the logits after {session.position} tokens are not finite, or fewer than the manifest says")
        leads.append(float((logits.max() - logits[token]) / max(float(logits.std()), 1e-30)))
        given = [token]
    return leads


def as_lines(report: Report) -> list[str]:
    """For people."""
    greedy = report.greedy
    answers = {
        "equal": f"{greedy.tokens} of {greedy.tokens} tokens as when it was built",
        "near ties": f"{greedy.different} of {greedy.tokens} tokens differ, all near ties (by {greedy.margin:.2g} of {NEAR} allowed)",
        "not compared": f"not compared: {greedy.reason}",
    }[greedy.outcome]
    lines = [
        f"{report.directory}: {report.model} for {report.engine} is as it was built",
        f"  {report.files} files, {report.bytes / 1e6:,.1f} MB, every digest is right",
        f"  {report.encode} texts and {report.chat} chats give the same tokens and prompts",
        f"  answers: {answers}",
    ]
    signed = {
        "trusted": "signed by a trusted key",
        "not checked": "signed, by whom was not checked: give the public key with --trusted-key",
    }.get(report.signature)
    lines += [f"  {signed}"] if signed else []
    if report.unlisted:
        lines.append(f"  no part of the artifact: {', '.join(report.unlisted[:5])}{', ...' if len(report.unlisted) > 5 else ''}")
    return lines


def as_json(report: Report) -> dict[str, object]:
    """One object of ``edge verify --json``."""
    return asdict(report)

"""Do several artifacts of one model hold the same weights and say the same? Imports nothing of the build side.

The first artifact answers a few prompts greedily. Every other one is then asked, token by token, what it would say after the same
beginning (teacher forcing), so that one divergence does not hide what comes after. Engines round differently: two tokens whose logits
tie to within that rounding may change places. How far apart they are, the margin, tells such a tie from a wrong kernel. Each engine
runs in a process of its own.
"""

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgekit import child
from edgekit.artifact import Artifact, load_artifact, read_artifact
from edgekit.errors import ArtifactError, EdgekitError, EngineError, UsageError
from edgekit.runtime.chat import open_template
from edgekit.runtime.prefix import PrefixCache
from edgekit.runtime.session import Session, open_session
from edgekit.runtime.tokenizer import Tokenizer, open_tokenizer
from edgekit.signing import Trust

TOKENS = 32
MARGIN = 0.5
"""Of logits. ONNX Runtime's int8 products (accuracy_level 4) move one by 0.03 to 0.07 rms; with float32 kernels ties are below 1e-3."""
TEXTS = 3
"""Encode vectors that serve as raw prompts, after the chat vectors."""
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Divergence:
    """Where another token was the most likely one. prompt and token count from 0. margin: the greater of what the first artifact's logits
    of its own choice lead by over the other's, and the other's the other way round."""

    prompt: int
    token: int
    after: str
    expected: int
    expected_text: str
    found: int
    found_text: str
    margin: float


@dataclass(frozen=True)
class Comparison:
    """One artifact against the first. weights: "equal", "different" or "not recorded" (an older edgekit); different_weights: their names.

    same: positions with the same most likely token, of ``positions`` (0 where nothing was run). rms, greatest: of the differences of all
    logits there.
    margin: the greatest of all divergences, 0 without any. agrees: it is within the limit, and the weights are not different.
    """

    directory: str
    engine: str
    weights: str
    different_weights: tuple[str, ...]
    positions: int
    same: int
    rms: float
    greatest: float
    first: Divergence | None
    margin: float
    agrees: bool


@dataclass(frozen=True)
class Report:
    reference: str
    engine: str
    prompts: int
    limit: float
    compared: tuple[Comparison, ...]

    @property
    def agrees(self) -> bool:
        return all(c.agrees for c in self.compared)

    def as_json(self) -> dict[str, object]:
        return {"agrees": self.agrees, **asdict(self)}

    def as_lines(self) -> list[str]:
        """For people."""
        ran = f"{self.prompts} prompts" if self.prompts else "weights only"
        lines = [f"against {self.reference} ({self.engine}), {ran}:"]
        for c in self.compared:
            names = (
                f" ({', '.join(c.different_weights[:3])}{', ...' if len(c.different_weights) > 3 else ''})" if c.different_weights else ""
            )
            lines += [
                f"{c.directory} ({c.engine}): {'agrees' if c.agrees else 'DOES NOT AGREE'}",
                f"  weights {c.weights}{names}",
            ]
            if c.positions:
                lines.append(f"  {c.same} of {c.positions} tokens the same; logits differ by {c.rms:.2g} rms, at most {c.greatest:.2g}")
            if c.first is not None:
                f = c.first
                lines += [
                    f"  first at token {f.token} of prompt {f.prompt}, after {f.after!r}: {f.found_text!r} ({f.found}) instead of "
                    f"{f.expected_text!r} ({f.expected}), margin {f.margin:.2g}",
                    f"  greatest margin {c.margin:.2g}, allowed {self.limit:g}",
                ]
        return lines


def verify(
    directories: Sequence[Path],
    *,
    prompts: Sequence[str] = (),
    tokens: int = TOKENS,
    margin: float = MARGIN,
    threads: int | None = None,
    weights_only: bool = False,
    trust: Trust | None = None,
) -> Report:
    """Compares every artifact with the first.

    prompts: what to ask, through the chat template where there is one; none takes the conformance vectors' chats and texts.
    tokens:  most tokens of an answer. margin: of logits, the most by which a divergence may be more than a tie.
    weights_only: compare what the manifests say of the weights, and run nothing. They agree only if all say the same.
    trust: whose signature each must bear; None: a pinned key's, if there is one.
    Raises UsageError (fewer than two artifacts, a prompt without room), ArtifactError (also for artifacts of different tokenizers),
    EngineMissing, EngineError.
    """
    if len(directories) < 2:
        raise UsageError("there is nothing to compare with: give at least two artifacts of one model")
    artifacts = [load_artifact(directory, trust=trust) for directory in directories]
    if weights_only:
        return Report(
            str(artifacts[0].directory),
            artifacts[0].manifest.engine.name,
            0,
            margin,
            tuple(_only_weights(artifacts[0], o) for o in artifacts[1:]),
        )
    for other in artifacts[1:]:
        _check_same_tokens(artifacts[0], other)
    tokenizer = open_tokenizer(artifacts[0].directory, bos=artifacts[0].manifest.tokens.bos)
    asked = _prompts(artifacts, tokenizer, prompts, tokens)
    with tempfile.TemporaryDirectory(prefix="edgekit-verify-") as folder:
        answers, reference = _run(artifacts[0], asked, None, tokens, threads, Path(folder) / "0.npy")
        compared = []
        for i, other in enumerate(artifacts[1:], 1):
            _, logits = _run(other, asked, answers, tokens, threads, Path(folder) / f"{i}.npy")
            compared.append(_compare(artifacts[0], other, tokenizer, answers, reference, logits, margin))
    first = artifacts[0]
    return Report(str(first.directory), first.manifest.engine.name, len(asked), margin, tuple(compared))


def _check_same_tokens(first: Artifact, other: Artifact) -> None:
    def identity(artifact: Artifact) -> tuple[object, ...]:
        file = artifact.manifest.files.get("tokenizer.json")
        return artifact.manifest.tokens, None if file is None else file.sha256

    if identity(first) != identity(other):
        raise ArtifactError(
            f"{first.directory} and {other.directory} have different tokenizers or stop ids: they are not of one model, and their tokens "
            "cannot be compared"
        )


def _prompts(artifacts: Sequence[Artifact], tokenizer: Tokenizer, asked: Sequence[str], tokens: int) -> list[list[int]]:
    """Token ids. Every prompt fits, with its answer, into the context of every artifact."""
    manifest = artifacts[0].manifest
    room = min(artifact.manifest.context.length for artifact in artifacts) - tokens
    if asked and manifest.chat_template is not None:
        template = open_template(artifacts[0].directory, manifest.chat_template)
        chosen = [tokenizer.encode(template.render([{"role": "user", "content": text}])) for text in asked]
    elif asked:
        chosen = [tokenizer.encode(text, add_bos=manifest.tokens.add_bos) for text in asked]
    else:
        chosen = [tokenizer.encode(chat.rendered) for chat in manifest.conformance.chat]
        texts = [vector.text for vector in manifest.conformance.encode if vector.ids][:TEXTS]
        chosen += [tokenizer.encode(text, add_bos=manifest.tokens.add_bos) for text in texts]
        chosen = [ids for ids in chosen if len(ids) <= room]
    long = next((len(ids) for ids in chosen if not 1 <= len(ids) <= room), None)
    if long is not None or not chosen:
        raise UsageError(
            f"a prompt of {long or 0} tokens and an answer of {tokens} do not fit; the contexts hold {room + tokens}: lower --tokens"
        )
    return chosen


def _compare(
    first: Artifact, other: Artifact, tokenizer: Tokenizer, answers: Sequence[Sequence[int]], wanted: Logits, got: Logits, limit: float
) -> Comparison:
    chosen = np.concatenate([np.asarray(answer, np.int64) for answer in answers])
    found = got.argmax(1)
    rows = np.arange(len(chosen))
    lead = np.maximum(wanted[rows, chosen] - wanted[rows, found], got[rows, found] - got[rows, chosen])
    apart = np.flatnonzero(found != chosen)
    margin = float(lead[apart].max()) if apart.size else 0.0
    kind, names = _weights(first, other)
    # A row at a time: the whole may be hundreds of megabytes.
    squares, greatest = 0.0, 0.0
    for a, b in zip(wanted, got, strict=True):
        difference = np.abs(a - b)
        squares += float(np.mean(difference.astype(np.float64) ** 2))
        greatest = max(greatest, float(difference.max()))
    at = None if not apart.size else _divergence(tokenizer, answers, int(apart[0]), int(found[apart[0]]), float(lead[apart[0]]))
    return Comparison(
        str(other.directory),
        other.manifest.engine.name,
        kind,
        names,
        len(chosen),
        len(chosen) - int(apart.size),
        (squares / len(chosen)) ** 0.5,
        greatest,
        at,
        margin,
        margin <= limit and kind != "different",
    )


def _only_weights(first: Artifact, other: Artifact) -> Comparison:
    kind, names = _weights(first, other)
    return Comparison(str(other.directory), other.manifest.engine.name, kind, names, 0, 0, 0.0, 0.0, None, 0.0, kind == "equal")


def _weights(first: Artifact, other: Artifact) -> tuple[str, tuple[str, ...]]:
    a, b = first.manifest.weights, other.manifest.weights
    if not a or not b:
        return "not recorded", ()
    different = tuple(name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name))
    return ("different" if different else "equal"), different


def _divergence(tokenizer: Tokenizer, answers: Sequence[Sequence[int]], row: int, found: int, margin: float) -> Divergence:
    prompt = 0
    while row >= len(answers[prompt]):
        row -= len(answers[prompt])
        prompt += 1
    answer = answers[prompt]
    return Divergence(
        prompt,
        row,
        tokenizer.decode(answer[:row])[-60:],
        answer[row],
        _text(tokenizer, answer[row]),
        found,
        _text(tokenizer, found),
        margin,
    )


def _text(tokenizer: Tokenizer, token: int) -> str:
    """Special tokens too, which ``decode`` leaves out."""
    return tokenizer.decode([token]) or str(tokenizer.backend.id_to_token(token))


def _run(
    artifact: Artifact,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]] | None,
    tokens: int,
    threads: int | None,
    out: Path,
) -> tuple[list[list[int]], Logits]:
    """The answers (the artifact's own, where none are given) and the logits before each of their tokens, [positions, V]."""
    asked = {"prompts": prompts, "answers": answers, "tokens": tokens, "threads": threads}
    try:
        said = child.ask(__name__, {"directory": str(artifact.directory), "out": str(out), **asked})
    except EdgekitError as error:
        raise type(error)(f"{artifact.directory}: {error}") from None
    logits: Logits = np.load(out, mmap_mode="r")
    return cast(list[list[int]], said["answers"]), logits


def main() -> None:
    """The process of one engine."""
    child.serve(_serve)


def _serve(request: dict[str, Any]) -> child.Json:
    artifact = read_artifact(request["directory"])
    with closing(open_session(artifact.directory, artifact.manifest, threads=request["threads"])) as session:
        given = request["answers"] or [None] * len(request["prompts"])
        said = [_answer(session, artifact, p, a, request["tokens"]) for p, a in zip(request["prompts"], given, strict=True)]
    np.save(request["out"], np.concatenate([rows for _, rows in said]))
    return {"answers": [tokens for tokens, _ in said]}


def _answer(session: Session, artifact: Artifact, prompt: list[int], given: list[int] | None, tokens: int) -> tuple[list[int], Logits]:
    """What follows ``prompt``: ``given``, or the most likely tokens up to the first stop id; and the logits before each."""
    cache = PrefixCache(session, switch=artifact.manifest.context.rope_switch)
    cache.clear()
    said: list[int] = []
    rows: list[Logits] = []
    while len(said) < (tokens if given is None else len(given)) and not (
        given is None and said and said[-1] in artifact.manifest.tokens.stop
    ):
        logits, _ = cache.extend_to([*prompt, *said], prompt=len(prompt))
        if not np.isfinite(logits).all():
            raise EngineError(f"the logits after {len(prompt) + len(said)} tokens are not finite; build the artifact again")
        rows.append(logits)
        said.append(int(logits.argmax()) if given is None else given[len(said)])
    return said, np.stack(rows)

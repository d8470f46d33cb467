"""How faithful an artifact is: its own engine's predictions against the unquantized checkpoint's, run by ``reference.py``.

Nothing here trusts the build: the artifact is opened as a device opens it, in a process of its own, and the reference reads the checkpoint.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.artifact import Artifact, Manifest
from edgekit.cache import Cache, source_files
from edgekit.checkpoint import reading
from edgekit.divergence import F32, Figures, Scores, compare, figures, join
from edgekit.errors import CheckpointError, UsageError
from edgekit.logits import Ask, compute
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.reference_cache import Weighted, logits
from edgekit.runtime.tokenizer import Tokenizer, open_tokenizer
from edgekit.windows import Effort, Window, windows

WORST, BEFORE = 12, 24
"""Positions that a report shows, and tokens before each."""
CONTINUED, CONTINUATIONS = 32, 4
"""Tokens of a greedy continuation that is compared, and continuations of each kind of window at most."""
TEXT = "verification.txt"
"""A model may bring text of its own kind in a file of this name; the project's own, in many languages, serves all others."""


def default_text(model: Model) -> str:
    """What a model is measured on unless the user says otherwise. Raises CheckpointError."""
    own = model.checkpoint.directory / TEXT
    place = own if own.is_file() else Path(__file__).with_name(TEXT)
    with reading(place):
        return place.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Greedy:
    """One greedy continuation of ``length`` tokens: how many are the reference's own choice before the first that is not, and the
    reference's margin there: how much higher, in logits, it rates its own choice (0 where all agree)."""

    agreed: int
    length: int
    margin: float


@dataclass(frozen=True)
class Part:
    """Figures of one kind of window: ``context`` tokens or fewer before each scored position. greedy: empty where nothing was run."""

    name: str
    context: int
    figures: Figures
    greedy: tuple[Greedy, ...]


@dataclass(frozen=True)
class Worst:
    """A position where the predictions differ most: its KL divergence, the text before, the token that came, and both likeliest tokens."""

    part: str
    kl: float
    before: str
    token: str
    reference: str
    found: str


@dataclass(frozen=True)
class Fidelity:
    """same_source: the checkpoint is, by its digests, the one that the artifact was built from. kl: by part, of every scored position."""

    parts: tuple[Part, ...]
    same_source: bool
    text_sha256: str
    kl: Mapping[str, tuple[float, ...]]
    worst: tuple[Worst, ...]


def measure(
    artifact: Artifact, model: Model, text: str, effort: Effort, *, cache: Cache | None, progress: Progress, threads: int | None = None
) -> Fidelity:
    """Compares an artifact with the checkpoint ``model`` on ``text``.

    cache: keeps the reference's logits, by the digests of checkpoint and tokens.
    Raises UsageError (too little text, or a model of another vocabulary), what opening and running an artifact raises, CheckpointError.
    """
    manifest = artifact.manifest
    if model.decoder.vocab_size != manifest.tokens.vocab_size:
        raise UsageError(
            f"{model.checkpoint.source.name} has a vocabulary of {model.decoder.vocab_size} and {artifact.directory} one of "
            f"{manifest.tokens.vocab_size}: compare the artifact with the model it was built from"
        )
    tokenizer = open_tokenizer(artifact.directory)
    cut = windows(tokenizer.encode(text), manifest.tokens.opening, manifest.context.length, manifest.context.rope_switch, effort)
    prompts = _prompts(cut, manifest)
    asks = [*(Ask(w.given, w.scored) for w in cut), *(Ask(prompt, greedy=room) for _, prompt, room in prompts)]
    sources = source_digests(model, cache, progress, threads)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        continued = compute(artifact, asks, Path(folder), threads)[len(cut) :]
        wanted = [(w.given, w.scored) for w in cut]
        wanted += [((*prompt, *said)[:-1], len(said)) for (_, prompt, _), said in zip(prompts, continued, strict=True)]
        reference = logits(unquantized(model, sources), wanted, cache, progress, "the model itself")
        found = [np.load(Path(folder) / f"{i}.npy", mmap_mode="r") for i in range(len(cut))]
        greedy: dict[str, tuple[Greedy, ...]] = {}
        for (part, _, _), said, rows in zip(prompts, continued, reference[len(cut) :], strict=True):
            greedy[part] = (*greedy.get(part, ()), _agreement(rows, said))
        same = same_source(manifest, sources)
        return score(cut, reference[: len(cut)], found, tokenizer, text, same_source=same, greedy=greedy)


def source_digests(model: Model, cache: Cache | None, progress: Progress, threads: int | None) -> dict[str, str]:
    """Name -> sha256 of the checkpoint's files of weights."""
    files = source_files({tensor.file for tensor in model.checkpoint.tensors.values()}, cache, progress, threads)
    return {path.name: source.sha256 for path, source in files.items()}


def same_source(manifest: Manifest, sources: Mapping[str, str]) -> bool:
    """Whether these are the files of weights that the artifact was built from."""
    return all(manifest.model.files.get(name) == digest for name, digest in sources.items())


def unquantized(model: Model, sources: Mapping[str, str]) -> Weighted:
    """The checkpoint as it is; ``sources``: digests of its files of weights."""
    name = model.checkpoint.source.name
    broken = CheckpointError(f"{name} itself gives logits that are not finite: get an intact checkpoint")
    return Weighted(model.decoder, model.tensor, name, [f"{file}:{digest}" for file, digest in sorted(sources.items())], broken)


def score(
    cut: Sequence[Window],
    reference: Sequence[F32],
    found: Sequence[F32],
    tokenizer: Tokenizer,
    text: str,
    *,
    same_source: bool,
    greedy: Mapping[str, tuple[Greedy, ...]],
) -> Fidelity:
    """What the logits of each window, the reference's and those ``found``, add up to; both [scored, V]."""
    scores: dict[str, list[Scores]] = {}
    worst: list[Worst] = []
    for window, wanted, got in zip(cut, reference, found, strict=True):
        scores.setdefault(window.part, []).append(compare(wanted, got, window.following))
        worst += _worst(window, scores[window.part][-1], wanted, got, tokenizer)
    context = {w.part: len(w.given) for w in cut}
    joined = {name: join(listed) for name, listed in scores.items()}
    return Fidelity(
        tuple(Part(name, context[name], figures(listed), greedy.get(name, ())) for name, listed in joined.items()),
        same_source,
        hashlib.sha256(text.encode()).hexdigest(),
        {name: tuple(float(f"{v:.4g}") for v in listed.kl) for name, listed in joined.items()},
        tuple(sorted(worst, key=lambda w: -w.kl)[:WORST]),
    )


def _worst(window: Window, scores: Scores, reference: F32, found: F32, tokenizer: Tokenizer) -> list[Worst]:
    """The worst positions of one window, with what stands there."""
    start = len(window.tokens) - window.scored
    listed = []
    for row in np.argsort(-scores.kl, kind="stable")[:WORST]:
        at = start + int(row)
        before = tokenizer.decode(window.tokens[max(0, at - BEFORE) : at])
        words = [tokenizer.decode([int(token)]) for token in (window.tokens[at], reference[row].argmax(), found[row].argmax())]
        listed.append(Worst(window.part, float(scores.kl[row]), before, *words))
    return listed


def _prompts(cut: Sequence[Window], manifest: Manifest) -> list[tuple[str, tuple[int, ...], int]]:
    """Part, prompt and tokens of each greedy continuation: of the first half of a short window, up to the LongRoPE switch; of a long
    window up to just beyond the switch. None crosses it."""
    context, switch = manifest.context.length, manifest.context.rope_switch
    found: list[tuple[str, tuple[int, ...], int]] = []
    for part, end in (("short", min(context, switch or context)), ("long", context)):
        for window in [w for w in cut if w.part == part][:CONTINUATIONS]:
            prompt = window.tokens[: len(window.tokens) // 2] if part == "short" else window.tokens[: len(window.tokens) - window.scored]
            room = min(CONTINUED, end - len(prompt))
            found += [(part, prompt, room)] if room > 0 else []
    return found


def _agreement(reference: F32, continued: Sequence[int]) -> Greedy:
    """reference: the logits that decide each token of the continuation, [len(continued), V]."""
    choice = reference.argmax(-1)
    agreed = next((i for i, token in enumerate(continued) if choice[i] != token), len(continued))
    margin = float(reference[agreed].max() - reference[agreed][continued[agreed]]) if agreed < len(continued) else 0.0
    return Greedy(agreed, len(continued), margin)

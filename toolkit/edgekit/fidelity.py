"""How faithful an artifact is: its own engine's predictions against the unquantized checkpoint's, run by ``reference.py``.

Nothing here trusts the build: the artifact is opened as a device opens it, in a process of its own, and the reference reads the checkpoint.
Text is cut into windows as llama-perplexity does it: the first half of a window is context, the positions of the second half are scored.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit import cache as kept
from edgekit.artifact import Artifact, Manifest
from edgekit.cache import Cache, source_files
from edgekit.checkpoint import reading
from edgekit.divergence import F32, Figures, Scores, compare, figures, join
from edgekit.errors import CheckpointError, UsageError
from edgekit.logits import Ask, compute
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.reference import VERSION, reference_logits_many
from edgekit.runtime.tokenizer import Tokenizer, open_tokenizer

BEYOND = 128
"""Tokens by which the long window passes the LongRoPE switch; all of them are scored."""
WORST, BEFORE = 12, 24
"""Positions that a report shows, and tokens before each."""
CONTINUED = 32
"""Tokens of a greedy continuation that is compared."""


TEXT = "verification.txt"
"""A model may bring text of its own kind in a file of this name; the project's own, in many languages, serves all others."""


def default_text(model: Model) -> str:
    """What a model is measured on unless the user says otherwise. Raises CheckpointError."""
    own = model.checkpoint.directory / TEXT
    place = own if own.is_file() else Path(__file__).with_name(TEXT)
    with reading(place):
        return place.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Effort:
    """windows: how many of ``length`` tokens are scored. switch: the longest LongRoPE switch that one more window is laid across."""

    windows: int
    length: int
    switch: int


QUICK = Effort(2, 256, 512)
"""A few hundred tokens: half a minute for a model of 4 billion weights on two cores."""
FULL = Effort(16, 512, 1 << 30)


@dataclass(frozen=True)
class Part:
    """Figures of one kind of window: ``context`` tokens or fewer before each scored position."""

    name: str
    context: int
    figures: Figures


@dataclass(frozen=True)
class Greedy:
    """How many tokens of a greedy continuation of ``length`` tokens are the reference's own choice, before the first that is not; the
    reference's margin there: how much higher, in logits, it rates its own choice (0 where all agree)."""

    agreed: int
    length: int
    margin: float


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
    greedy: Greedy | None
    same_source: bool
    text_sha256: str
    kl: Mapping[str, tuple[float, ...]]
    worst: tuple[Worst, ...]


@dataclass(frozen=True)
class _Window:
    """A sequence and how many of its last positions are scored (the token after each is part of the sequence)."""

    part: str
    tokens: tuple[int, ...]
    scored: int

    @property
    def given(self) -> tuple[int, ...]:
        return self.tokens[:-1]


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
    windows = _windows(tokenizer.encode(text), manifest, effort)
    prompt = windows[0].tokens[: len(windows[0].tokens) // 2]
    asks = [*(Ask(w.given, w.scored) for w in windows), Ask(prompt, greedy=_room(len(prompt), manifest))]
    files = source_files({tensor.file for tensor in model.checkpoint.tensors.values()}, cache, progress, threads)
    sources = {path.name: source.sha256 for path, source in files.items()}
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        continued = tuple(compute(artifact.directory, asks, Path(folder), threads)[-1])
        wanted = [(w.given, w.scored) for w in windows] + ([((*prompt, *continued)[:-1], len(continued))] if continued else [])
        reference = _reference(model, wanted, sources, cache)
        scores: dict[str, list[Scores]] = {}
        worst: list[Worst] = []
        for i, window in enumerate(windows):
            found = np.load(Path(folder) / f"{i}.npy", mmap_mode="r")
            scores.setdefault(window.part, []).append(compare(reference[i], found, window.tokens[-window.scored :]))
            worst += _worst(window, scores[window.part][-1], reference[i], found, tokenizer)
    context = {w.part: len(w.given) for w in windows}
    joined = {name: join(found) for name, found in scores.items()}
    return Fidelity(
        tuple(Part(name, context[name], figures(found)) for name, found in joined.items()),
        _agreement(reference[-1], continued) if continued else None,
        all(manifest.model.files.get(name) == digest for name, digest in sources.items()),
        hashlib.sha256(text.encode()).hexdigest(),
        {name: tuple(float(f"{v:.4g}") for v in found.kl) for name, found in joined.items()},
        tuple(sorted(worst, key=lambda w: -w.kl)[:WORST]),
    )


def _worst(window: _Window, scores: Scores, reference: F32, found: F32, tokenizer: Tokenizer) -> list[Worst]:
    """The worst positions of one window, with what stands there."""
    start = len(window.tokens) - window.scored
    listed = []
    for row in np.argsort(-scores.kl, kind="stable")[:WORST]:
        at = start + int(row)
        before = tokenizer.decode(window.tokens[max(0, at - BEFORE) : at])
        words = [tokenizer.decode([int(token)]) for token in (window.tokens[at], reference[row].argmax(), found[row].argmax())]
        listed.append(Worst(window.part, float(scores.kl[row]), before, *words))
    return listed


def _windows(ids: Sequence[int], manifest: Manifest, effort: Effort) -> list[_Window]:
    """Windows within the LongRoPE switch ("short"), and one that ends beyond it ("long") where effort and context allow."""
    bos = [manifest.tokens.bos] if manifest.tokens.add_bos and manifest.tokens.bos is not None else []
    context, switch = manifest.context.length, manifest.context.rope_switch
    length = min(effort.length, context, switch or context)
    step = length - len(bos)
    cut = [ids[at : at + step] for at in range(0, len(ids), step)]
    short = [_Window("short", (*bos, *piece), (length + 1) // 2) for piece in cut[: effort.windows] if len(piece) == step]
    if not short or length < 4:
        raise UsageError(f"the text has {len(ids)} tokens; a window takes {length}: give a longer text")
    if switch is None or switch > effort.switch or switch + 2 > context:
        return short
    end = min(switch + BEYOND, context)
    repeated = list(ids) * -(-end // len(ids))  # what was said before may be said again; only positions beyond the switch count
    return [*short, _Window("long", (*bos, *repeated[: end - len(bos)]), end - switch - 1)]


def _room(length: int, manifest: Manifest) -> int:
    """Tokens a continuation may have without crossing the LongRoPE switch or the context."""
    end = min(manifest.context.length, manifest.context.rope_switch or manifest.context.length)
    return max(0, min(CONTINUED, end - length))


def _reference(model: Model, wanted: Sequence[tuple[tuple[int, ...], int]], sources: Mapping[str, str], cache: Cache | None) -> list[F32]:
    """The reference's logits after each of the last ``n`` tokens of each sequence, from the cache or by one pass over the layers."""
    vocab = model.decoder.vocab_size
    group = kept.group_name(("reference", VERSION, *(f"{name}:{digest}" for name, digest in sorted(sources.items()))))
    names = [hashlib.sha256(repr(ask).encode()).hexdigest()[:32] for ask in wanted]
    found: dict[int, F32] = {}
    for i, (name, (_, last)) in enumerate(zip(names, wanted, strict=True)):
        payload = kept.load(cache, group, name, 4 * last * vocab) if cache is not None else None
        if payload is not None:
            found[i] = np.frombuffer(payload, "<f4").astype(np.float32, copy=False).reshape(last, vocab)
    missing = [i for i in range(len(wanted)) if i not in found]
    most = max((wanted[i][1] for i in missing), default=0)
    computed = reference_logits_many(model.decoder, model.tensor, [wanted[i][0] for i in missing], last=most)
    for i, logits in zip(missing, computed, strict=True):
        found[i] = logits[-wanted[i][1] :]
        if not np.isfinite(found[i]).all():
            raise CheckpointError(f"{model.checkpoint.source.name} itself gives logits that are not finite: get an intact checkpoint")
        if cache is not None:
            about = {"model": model.checkpoint.source.name, "file": "reference", "format": "logits"}
            kept.store(cache, group, names[i], [memoryview(found[i].astype("<f4", copy=False)).cast("B")], about)
    return [found[i] for i in range(len(wanted))]


def _agreement(reference: F32, continued: Sequence[int]) -> Greedy:
    """reference: the logits that decide each token of the continuation, [len(continued), V]."""
    choice = reference.argmax(-1)
    agreed = next((i for i, token in enumerate(continued) if choice[i] != token), len(continued))
    margin = float(reference[agreed].max() - reference[agreed][continued[agreed]]) if agreed < len(continued) else 0.0
    return Greedy(agreed, len(continued), margin)

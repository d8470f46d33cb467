"""Which token comes next: greedy, or drawn with the filters and in the order of Hugging Face transformers.

Order: repetition penalty, the caller's logit processors, the form of the answer (constrain.py), temperature, top-k, top-p, min-p, draw.
Definitions are those of
transformers' ``RepetitionPenaltyLogitsProcessor`` (Keskar et al. 2019), ``TopKLogitsWarper`` (Fan et al. 2018), ``TopPLogitsWarper``
(Holtzman et al. 2019) and ``MinPLogitsWarper`` (Nguyen et al. 2024).

Reproducible: with a seed, token n of an answer is fixed by the n-th double of numpy's PCG64 stream (equal on every platform and
numpy since 1.17) and by the logits. Probabilities are float64; equal logits could give different tokens on two platforms only where
their ``exp`` differs in the last bit and the drawn number lies within that of a boundary (about 1e-13 of all draws). Logits themselves
differ between engines and processors by their kernels' rounding, so across those a long sampled text may part at a near tie.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, UsageError
from edgekit.runtime.constrain import Guide

Processor = Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32]]
"""``(all tokens so far, logits float32 [vocab]) -> logits float32 [vocab]``: -inf forbids a token. It may change ``logits`` in place.

The tokens are a tuple: the sequence itself is not a processor's to change.
"""


def _check(name: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise UsageError(f"{name} has to be {wanted}; found {value!r}")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The default is greedy: always the most likely one, the lowest id in a tie.

    temperature:        divides the logits; 0 is greedy, and then only ``repetition_penalty`` and the processors matter: what else is given
                        would change nothing, and is refused.
    top_k:              keep the k most likely tokens, and what ties with the last; 0 keeps all.
    top_p:              keep the smallest set of most likely tokens whose probability reaches p; 1 keeps all.
    min_p:              keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    repetition_penalty: logits of all tokens in prompt and answer so far are divided (negative ones multiplied) by it; 1 is none.
    seed:               makes draws repeatable; None draws anew each time.
    Raises UsageError on a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, _real(self.temperature) and 0 <= self.temperature < math.inf, "at least 0")
        _check("top_k", self.top_k, _whole(self.top_k) and self.top_k >= 0, "a whole number, 0 for all")
        _check("top_p", self.top_p, _real(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, _real(self.min_p) and 0 <= self.min_p <= 1, "between 0 and 1")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, _real(penalty) and 0 < penalty < math.inf, "above 0, and 1 for none")
        _check("seed", self.seed, self.seed is None or (_whole(self.seed) and self.seed >= 0), "a whole number from 0")
        idle = {"top_k": self.top_k > 0, "top_p": self.top_p < 1, "min_p": self.min_p > 0, "seed": self.seed is not None}
        if not self.temperature and any(idle.values()):
            named = ", ".join(name for name, given in idle.items() if given)
            raise UsageError(
                f"{named} would change nothing: at temperature 0 the likeliest token is taken each time; give one, such as 0.8"
            )


def _real(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


GREEDY = Sampling()
TRIES = 4
"""Tokens that may turn out to leave no way to the end of an answer in a given form, before the known way is taken."""


class Sampler:
    """Chooses the tokens of one answer. Holds the random stream and which tokens were seen."""

    def __init__(self, sampling: Sampling, processors: Sequence[Processor] = (), guide: Guide | None = None) -> None:
        self._sampling = sampling
        self._processors = processors
        self._guide = guide
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))
        self._seen: NDArray[np.bool_] | None = None
        self._counted = 0

    @property
    def finished(self) -> bool:
        """Whether the answer has a given form and is complete."""
        return self._guide is not None and self._guide.finished

    def choose(self, tokens: Sequence[int], logits: NDArray[np.float32]) -> tuple[int, float]:
        """The next token after ``tokens`` and its log-probability (natural) under the model itself: before penalty, processors
        and filters. ``logits`` float32 [vocab] is left as it is.

        Raises EngineError when a logit is NaN or infinite, UsageError when the processors leave no token or return no logits.
        """
        top = float(logits.max())
        total = float(np.exp(logits - np.float32(top)).sum(dtype=np.float64)) if math.isfinite(top) else math.nan
        if math.isnan(total):
            raise EngineError(f"the engine gave logits that are not numbers after {len(tokens)} tokens; verify or rebuild the artifact")
        scores = self._processed(tokens, logits)
        token = self._pick(tokens, scores) if self._guide is None else self._guided(tokens, scores, self._guide)
        return token, float(logits[token]) - top - math.log(total)

    def _pick(self, tokens: Sequence[int], scores: NDArray[np.float32]) -> int:
        token = int(scores.argmax())
        if not math.isfinite(float(scores[token])):
            raise UsageError(f"the logit processors left no token to choose after {len(tokens)} tokens (all are -inf or NaN)")
        return draw(scores, self._sampling, self._random) if self._sampling.temperature > 0 else token

    def _guided(self, tokens: Sequence[int], scores: NDArray[np.float32], guide: Guide) -> int:
        """Of the tokens that the form allows. One after which the answer could not be completed in time is chosen again without it."""
        scores = np.where(guide.mask(), scores, np.float32(-np.inf))
        for _ in range(TRIES):
            token = self._pick(tokens, scores)
            if guide.take(token):
                return token
            scores[token] = -np.inf
        token = guide.planned()
        if not math.isfinite(float(scores[token])):
            raise UsageError(f"the logit processors forbid what would complete the answer within its limit, after {len(tokens)} tokens")
        if not guide.take(token):
            raise RuntimeError("the known way to the end of the answer is none")
        return token

    def _processed(self, tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        penalty = self._sampling.repetition_penalty
        scores = logits
        if penalty != 1:
            scores = penalized(logits, self._count(tokens, logits.size), penalty)
        given = tuple(tokens) if self._processors else ()
        for process in self._processors:
            scores = _logits(process(given, scores.copy() if scores is logits else scores), logits.size)
        return scores

    def _count(self, tokens: Sequence[int], vocabulary: int) -> NDArray[np.bool_]:
        """Which ids are in ``tokens``, bool [vocab]. These only ever grow during an answer, so each is looked at once."""
        seen = np.zeros(vocabulary, np.bool_) if self._seen is None else self._seen
        seen[np.asarray(tokens[self._counted :], np.intp)] = True
        self._seen, self._counted = seen, len(tokens)
        return seen


def _logits(returned: object, vocabulary: int) -> NDArray[np.float32]:
    """What a processor returned, if it is logits; other precisions than float32 are converted."""
    if isinstance(returned, np.ndarray) and returned.shape == (vocabulary,) and np.issubdtype(returned.dtype, np.floating):
        return returned.astype(np.float32, copy=False)
    found = f"{returned.dtype} of shape {returned.shape}" if isinstance(returned, np.ndarray) else type(returned).__name__
    raise UsageError(f"a logit processor must return the logits (float32 [vocab], here {vocabulary}); found {found}")


def likeliest(logits: NDArray[np.float32], count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` (at least 1) likeliest tokens, the lower id first in a tie, each with its natural log-probability under the model."""
    count = min(count, logits.size)
    least = np.partition(logits, logits.size - count)[logits.size - count]
    ids = np.flatnonzero(logits >= least)
    ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
    top = float(logits.max())
    total = math.log(float(np.exp(logits - np.float32(top)).sum(dtype=np.float64)))
    return tuple((int(token), float(logits[token]) - top - total) for token in ids)


def penalized(logits: NDArray[np.float32], seen: NDArray[np.bool_], penalty: float) -> NDArray[np.float32]:
    """A copy of ``logits`` with those of the ``seen`` ids divided by ``penalty`` where positive, multiplied where negative."""
    scores = logits.copy()
    found = scores[seen]
    scores[seen] = np.where(found < 0, found * np.float32(penalty), found / np.float32(penalty))
    return scores


def candidates(scores: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The ids that the filters keep (ascending) and their probabilities (they add up to 1). ``temperature`` must be above 0."""
    scaled = scores / np.float32(sampling.temperature)
    ids = np.flatnonzero(scaled > -np.inf)
    if 0 < sampling.top_k < ids.size:
        least = np.partition(scaled[ids], ids.size - sampling.top_k)[ids.size - sampling.top_k]
        ids = ids[scaled[ids] >= least]
    p = _softmax(scaled[ids])
    if sampling.top_p < 1:
        kept = _nucleus(p, sampling.top_p)
        ids, p = ids[kept], p[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(p >= sampling.min_p * p.max())
        ids, p = ids[kept], p[kept]
    return ids, p / p.sum()


def draw(scores: NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    """One token from the filtered distribution, by inverting its cumulative sum at one uniform double."""
    ids, p = candidates(scores, sampling)
    cumulative = p.cumsum()
    at = int(cumulative.searchsorted(random.random() * cumulative[-1], side="right"))
    return int(ids[min(at, ids.size - 1)])


def _nucleus(p: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Positions kept by top-p, ascending: those before which less than ``top_p`` has been gathered, most likely first.

    Tokens of at most ``(1 - top_p) / n`` are never among them (together they stay below what is cut), so few have to be sorted.
    """
    likely = np.flatnonzero(p > (1 - top_p) / p.size)
    if not likely.size:
        likely = np.arange(p.size)
    order = likely[np.argsort(-p[likely], kind="stable")]
    before = np.concatenate(([0.0], p[order].cumsum()[:-1]))
    return np.sort(order[before < top_p])


def _softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    e = np.exp(x.astype(np.float64) - float(x.max()))
    return np.asarray(e / e.sum(), dtype=np.float64)

"""The one generation loop, for every engine: tokens in, steps of text out."""

import operator
import re
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgekit.errors import ContextOverflow, UsageError
from edgekit.runtime.constrain import Guide
from edgekit.runtime.lookup import Lookup
from edgekit.runtime.prefix import PrefixCache
from edgekit.runtime.sampling import GREEDY, Processor, Sampler, Sampling, likeliest
from edgekit.runtime.tokenizer import TextStream, check_whole

Finish = Literal["stop", "length", "context"]
"""stop: a stop token or stop string, or an answer in a given form is complete. length: ``max_tokens`` reached.
context: the artifact's context is full."""


@dataclass(frozen=True)
class Step:
    """One generated token.

    text:     what may be shown now. Often empty: a cut character, or what may become a stop string, waits. The texts of all steps add
              up to the answer, without the stop string and without special tokens.
    finish:   why the answer ends here, None while it goes on. The last step's token may be a stop token.
    logprob:  natural logarithm of the token's probability under the model itself (before penalty, processors, temperature, filters).
    seconds:  the engine took to compute the logits this token was chosen from. For the first step this is the prefill.
    computed: tokens it computed for that: what was new of the prompt, then 1; all tokens where a LongRoPE switch is crossed.
              With lookup it is 1 and the draft's length, and ``seconds`` is for all of them; a token that comes of an accepted draft has
              0 of both, as the engine did not run again for it.
    top:      the likeliest tokens here with their ``logprob``, likeliest first; as many as were asked for.
    stopped_by: the stop string that ended the answer, None where something else did.
    """

    token: int
    text: str
    finish: Finish | None
    logprob: float
    seconds: float
    computed: int
    top: tuple[tuple[int, float], ...] = ()
    stopped_by: str | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer. tokens: every generated id, a final stop token included.

    prefill_seconds, prefilled: time and tokens of the first step (less than ``prompt_tokens`` where a prefix was still held).
    decode_seconds:             time of the engine for all further tokens.
    ttft:                       seconds from the call to the first token, everything included.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    prompt_tokens: int
    prefilled: int
    prefill_seconds: float
    decode_seconds: float
    ttft: float

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed: tokens after the first over ``decode_seconds``; 0 where there is only one."""
        return (len(self.tokens) - 1) / self.decode_seconds if len(self.tokens) > 1 and self.decode_seconds > 0 else 0.0


def generate(
    cache: PrefixCache,
    prompt: Sequence[int],
    stream: TextStream,
    *,
    context: int,
    stop_tokens: Collection[int],
    sampling: Sampling = GREEDY,
    max_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    processors: Sequence[Processor] = (),
    lookup: int = 0,
    form: Callable[[int], Guide] | None = None,
    top_logprobs: int = 0,
) -> Generator[Step, None, None]:
    """Continues ``prompt`` (token ids, at least one), one Step a token, until a step has a ``finish``.

    stream:     turns the tokens into text.
    context:    most tokens of prompt and answer together.
    max_tokens: of the answer; None is as many as fit.
    stop:       the answer ends before the stop string that is completed first; no part of it is ever shown. A special token's text in it
                also stands for that token, which shows as no text.
    processors: see sampling.Processor; they run on every step, also when decoding greedily.
    lookup:     most tokens to guess ahead from the text so far (see lookup.py); 0 for none. The answer is the same, greedy or with a seed:
                every token is chosen by the same sampler, in order, from the logits that the engine computed after exactly the tokens
                before it, and a guess is kept only where it is that token. Refused where the engine's rounding depends on how many tokens
                a call brings (``Session.grain``): there another token could win than without.
    form:       makes the guide of an answer in a given form (see constrain.py) of at most so many tokens. ``stream`` should decode exactly,
                leading space and all. It cannot be had with stop strings, which would cut the answer.
    top_logprobs: how many tokens each step's ``top`` names; 0 computes nothing for it.
    The arguments are checked at once; the engine runs as steps are taken. Closing the generator, an exception or Ctrl-C in the middle leave
    ``cache`` usable, and generators that share one may be used by turns.
    A greedy or seeded answer does not depend on what ``cache`` held before. One drawn without a seed, which cannot be repeated, takes
    up all that is there, though it be rounded a little differently (``PrefixCache.extend_to``).
    Raises ContextOverflow when the prompt leaves no room for an answer, UsageError, EngineError.
    """
    strings = _strings(stop)
    max_tokens = None if max_tokens is None else _whole("max_tokens", max_tokens, 1, "at least 1")
    lookup = _whole("lookup", lookup, 0, "0 (off) or the most tokens to guess ahead")
    if lookup and not cache.drafts:
        raise UsageError(
            "lookup would change this answer: this engine rounds several tokens at once otherwise than one by one. Leave it out "
            "(lookup 0), or build for the target cpu or intel-cpu and run it on x86-64 with edgekit's own products (docs/performance.md)"
        )
    top_logprobs = _whole("top_logprobs", top_logprobs, 0, "0 (none) or how many tokens to name")
    if not len(prompt):
        raise UsageError("the prompt is empty: there is no token to start from")
    if len(prompt) >= context:
        raise ContextOverflow(
            f"the prompt has {len(prompt):,} tokens and the context of this artifact holds {context:,}, prompt and answer together; "
            "shorten the prompt, or, where the model itself can hold more, build with more context: edge build MODEL --context N"
        )
    room = context - len(prompt)
    limit = room if max_tokens is None else min(room, max_tokens)
    last: Finish = "length" if limit == max_tokens else "context"
    if form is not None and strings:
        raise UsageError("a stop string would cut an answer in a given form, which is complete by itself; leave it out")
    sampler, text = Sampler(sampling, processors, None if form is None else form(limit)), _Text(stream, strings, frozenset(stop_tokens))
    exact = sampling.temperature == 0 or sampling.seed is not None
    return _steps(cache, list(prompt), sampler, text, frozenset(stop_tokens), limit, last, lookup, top_logprobs, exact)


def _strings(stop: object) -> tuple[str, ...]:
    found = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Sequence) else (stop,)
    for text in found:
        if not isinstance(text, str):
            raise UsageError(f"stop is a text or a list of texts; found {type(text).__name__}")
        if not text:
            raise UsageError("a stop string cannot be empty")
        check_whole(text, "a stop string")
    return found


def _whole(name: str, value: object, least: int, wanted: str) -> int:
    """``value`` as an int, whatever integer it is. Raises UsageError."""
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = least - 1
    if found < least or isinstance(value, bool):
        raise UsageError(f"{name} has to be {wanted}; found {value!r}")
    return found


def _steps(
    cache: PrefixCache,
    tokens: list[int],
    sampler: Sampler,
    text: "_Text",
    stop_tokens: frozenset[int],
    limit: int,
    last: Finish,
    lookup: int,
    top_logprobs: int,
    exact: bool,
) -> Generator[Step, None, None]:
    prompt, end = len(tokens), len(tokens) + limit
    drafts = Lookup(end)
    while True:
        # None with the prompt: it would only delay the first token. Never more than can still be used.
        most = min(lookup, end - len(tokens) - 1) if len(tokens) > prompt else 0
        draft = drafts.draft(tokens, most, stop_tokens) if most else []
        began = time.perf_counter()
        rows, computed = cache.extend_with(tokens, draft, prompt=prompt, exact=exact)
        seconds = time.perf_counter() - began
        for i, logits in enumerate(rows):
            token, logprob = sampler.choose(tokens, logits)
            tokens.append(token)
            finish: Finish | None = "stop" if token in stop_tokens or sampler.finished else last if len(tokens) == end else None
            piece = text.push(token)
            if finish is not None:
                piece += text.finish()
            if text.stopped_by is not None:
                finish = "stop"
            top = likeliest(logits, top_logprobs) if top_logprobs else ()
            yield Step(token, piece, finish, logprob, seconds, computed, top, text.stopped_by)
            if finish is not None:
                return
            if i == len(rows) - 1 or token != draft[i]:
                break
            seconds, computed = 0.0, 0


def collect(steps: Iterable[Step], prompt_tokens: int, began: float) -> Completion:
    """All steps of one answer. ``began``: ``time.perf_counter()`` when it was asked for."""
    taken: list[Step] = []
    ttft = 0.0
    for step in steps:
        ttft = ttft or time.perf_counter() - began
        taken.append(step)
    finish = taken[-1].finish if taken else None
    if finish is None:
        raise ValueError("the steps ended without a finish")
    return Completion(
        text="".join(step.text for step in taken),
        tokens=tuple(step.token for step in taken),
        finish=finish,
        prompt_tokens=prompt_tokens,
        prefilled=taken[0].computed,
        prefill_seconds=taken[0].seconds,
        decode_seconds=sum(step.seconds for step in taken[1:]),
        ttft=ttft,
    )


class StopBuffer:
    """Lets text through up to the stop string that is completed first (of two that end together, the longer).

    Text that may be the beginning of a stop string waits, so the result does not depend on how the text was cut into pieces.
    special: for texts of special tokens the character that stands for the token in what is pushed. It is never let through, and a stop
    string is found with these characters in it as well as with the tokens' texts. Without any, it is found across OTHER and the like.
    """

    OTHER = "\udfff"
    """Stands for a special token that no stop string names."""

    def __init__(self, stop: Sequence[str], special: Mapping[str, str] | None = None) -> None:
        given = special or {}
        named = re.compile("|".join(map(re.escape, sorted(given, key=len, reverse=True))) or "(?!)")
        self._hidden = frozenset((*given.values(), self.OTHER)) if given else frozenset[str]()
        across = f"[{''.join(self._hidden)}]*" if given else ""
        # As written it lies across special tokens; with their stand-ins it is exact.
        self._plain = tuple(stop)
        self._exact = {named.sub(lambda found: given[found[0]], s): s for s in stop if named.search(s)}
        self._patterns = [(re.compile(across.join(map(re.escape, s))), s) for s in stop]
        self._patterns += [(re.compile(re.escape(exact)), s) for exact, s in self._exact.items()]
        self._waiting = ""
        self.stopped_by: str | None = None

    def push(self, text: str) -> str:
        """What may be shown after ``text``."""
        if self.stopped_by is not None:
            return ""
        text = self._waiting + text
        ends = [(found.end(), found.start(), s) for pattern, s in self._patterns if (found := pattern.search(text))]
        if ends:
            _, at, self.stopped_by = min(ends)
            self._waiting = ""
            return self._shown(text[:at])
        keep = self._keep(text)
        self._waiting = text[len(text) - keep :]
        return self._shown(text[: len(text) - keep])

    def finish(self) -> str:
        """What was waiting and did not become a stop string."""
        text, self._waiting = self._waiting, ""
        return self._shown(text)

    def _shown(self, text: str) -> str:
        return "".join(character for character in text if character not in self._hidden) if self._hidden else text

    def _keep(self, text: str) -> int:
        """Length of the longest end of ``text`` that a stop string begins with."""
        exact = _beginning(text, self._exact)
        if not self._hidden:
            return max(exact, _beginning(text, self._plain))
        places = [i for i, character in enumerate(text) if character not in self._hidden]
        plain = _beginning("".join(text[i] for i in places), self._plain)
        return max(exact, len(text) - places[-plain] if plain else 0)


def _beginning(text: str, stops: Collection[str]) -> int:
    """Length of the longest end of ``text`` that one of ``stops`` begins with, and is not."""
    longest = max((len(s) for s in stops), default=1) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0)


class _Text:
    """Tokens to text that may be shown: the streaming decoder, then the stop strings.

    Stop tokens have no text, nor have special ones; where a stop string names one, the buffer hears of all of them.
    """

    def __init__(self, stream: TextStream, stop: Sequence[str], stop_tokens: frozenset[int]) -> None:
        self._stream, self._stop_tokens = stream, stop_tokens
        texts = stream.silent_texts(stop_tokens) if stop else {}
        named = sorted({text for text in texts.values() if text and any(text in s for s in stop)})
        special = {text: chr(0xD800 + i) for i, text in enumerate(named)}  # half characters, which no decoder gives
        self._marks = {token: special.get(text, StopBuffer.OTHER) for token, text in texts.items()} if named else {}
        self._buffer = StopBuffer(stop, special)
        self._early = ""

    @property
    def stopped_by(self) -> str | None:
        return self._buffer.stopped_by

    def push(self, token: int) -> str:
        text = "" if token in self._stop_tokens else self._new(self._stream.push(token))
        if token in self._marks:
            # What the decoder holds back comes before it, unless it is a cut character.
            rest = self._stream.finish()
            if not rest.endswith("\N{REPLACEMENT CHARACTER}"):
                text, self._early = text + self._new(rest), rest
            text += self._marks[token]
        return self._buffer.push(text)

    def finish(self) -> str:
        """The rest. Nothing after a stop string: the buffer lets no more through."""
        return self._buffer.push(self._new(self._stream.finish())) + self._buffer.finish()

    def _new(self, text: str) -> str:
        """``text`` without what was let through before the decoder gave it."""
        known = next((n for n in range(min(len(text), len(self._early)), 0, -1) if text[:n] == self._early[:n]), 0)
        self._early = self._early[known:]
        return text[known:]

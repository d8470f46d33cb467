"""What the worker does for one request: parts of its answers, one after the other, all through the runtime's one loop."""

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.runtime import Finish, Processor, Runtime, Step
from edgekit.runtime.constrain import token_bytes
from edgekit.server.problems import refuse
from edgekit.server.requests import ChatRequest, TextRequest
from edgekit.server.tools import Call

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class TokenLog:
    """A token as text (U+FFFD for what is no character by itself) and bytes, with its natural log-probability."""

    text: str
    bytes: bytes
    logprob: float
    top: tuple["TokenLog", ...] = ()


@dataclass(frozen=True)
class Part:
    """A piece of the ``choice``-th answer: text, calls of tools, log-probabilities of the tokens behind the text, and why it ends."""

    choice: int
    text: str = ""
    calls: tuple[Call, ...] = ()
    logs: tuple[TokenLog, ...] = ()
    reason: Reason | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens. cached: of the prompts, those that did not have to be computed."""

    prompt: int
    cached: int
    completion: int


Parts = Generator[Part | Usage, None, None]


class Vocabulary:
    """Tokens as bytes, for log-probabilities. Made when first asked for, on the worker's thread: a second for 200,000 tokens."""

    def __init__(self) -> None:
        self._bytes: list[bytes] = []

    def log(self, runtime: Runtime, step: Step) -> TokenLog:
        return TokenLog(*self._spelled(runtime, step.token), step.logprob, tuple(self._one(runtime, *top) for top in step.top))

    def _one(self, runtime: Runtime, token: int, logprob: float) -> TokenLog:
        return TokenLog(*self._spelled(runtime, token), logprob)

    def _spelled(self, runtime: Runtime, token: int) -> tuple[str, bytes]:
        if not self._bytes:
            tokens = runtime.manifest.tokens
            self._bytes = token_bytes(runtime.tokenizer, tokens.vocab_size, tokens.stop)
        raw = self._bytes[token] or (runtime.tokenizer.backend.id_to_token(token) or "").encode()
        return raw.decode("utf-8", errors="replace"), raw


@dataclass(frozen=True)
class Shared:
    """What all requests have in common. told: see Tally. most: tokens that an answer may have, None for what the context holds."""

    vocabulary: Vocabulary
    told: Callable[[Usage], None]
    most: int | None


class Tally:
    """Tokens of all answers of a request so far. told: hears of each as it is computed, whether anyone still waits for it or not."""

    def __init__(self, told: Callable[[Usage], None]) -> None:
        self.prompt = self.cached = self.completion = 0
        self._told = told

    def count(self, steps: Generator[Step, None, None], prompt: int = 0) -> Generator[Step, None, None]:
        """``steps``, counted as they come. prompt: its tokens, 0 where they were counted before. Closing it closes them."""
        with contextlib.closing(steps):
            for step in steps:
                cached = max(0, prompt - step.computed)
                self._told(Usage(prompt, cached, 1))
                self.prompt, self.cached, self.completion, prompt = self.prompt + prompt, self.cached + cached, self.completion + 1, 0
                yield step

    def usage(self) -> Usage:
        return Usage(self.prompt, self.cached, self.completion)


@dataclass(frozen=True)
class Asked:
    """What all answers of a request have in common.

    limit: most tokens of one, None for what the context holds. top: alternatives that log-probabilities come with, None without any.
    schema: of the answer.
    """

    request: ChatRequest | TextRequest
    limit: int | None
    top: int | None
    schema: Mapping[str, object] | None
    shared: Shared

    def part(self, runtime: Runtime, choice: int, step: Step) -> Part:
        """``step`` without its end. The stop token has no text and no log-probability."""
        silent = self.top is None or step.token in runtime.manifest.tokens.stop
        return Part(choice, step.text, logs=() if silent else (self.shared.vocabulary.log(runtime, step),))


def text_work(request: TextRequest, shared: Shared) -> Callable[[Runtime], Parts]:
    """Of a completion."""
    asked = Asked(request, shared.most if request.max_tokens is None else request.max_tokens, request.logprobs, None, shared)
    return functools.partial(_text_parts, asked, request)


def chat_asked(request: ChatRequest, shared: Shared) -> Asked:
    form = request.response_format
    schema: Mapping[str, object] | None = None
    if form is not None and form.type != "text":
        schema = {"type": "object"} if form.json_schema is None else form.json_schema.schema
    top = (request.top_logprobs or 0) if request.logprobs else None
    return Asked(request, shared.most if request.limit is None else request.limit, top, schema, shared)


def chat_parts(asked: Asked, messages: list[dict[str, object]], runtime: Runtime) -> Parts:
    """Of a chat completion without tools."""
    tally = Tally(asked.shared.told)
    ids = runtime.encode(runtime.render(messages))
    for choice in range(asked.request.answers):
        yield from _answer(asked, runtime, ids, choice, tally, first=choice == 0, anew=True)
    yield tally.usage()


def _text_parts(asked: Asked, request: TextRequest, runtime: Runtime) -> Parts:
    tally = Tally(asked.shared.told)
    for i, prompt in enumerate(request.prompts):
        ids = runtime.encode(prompt, add_bos=True) if isinstance(prompt, str) else list(prompt)
        for n in range(request.answers):
            choice = i * request.answers + n
            if request.echo:
                yield Part(choice, prompt if isinstance(prompt, str) else _decoded(runtime, ids))
            yield from _answer(asked, runtime, ids, choice, tally, first=n == 0, anew=False)
    yield tally.usage()


def _decoded(runtime: Runtime, ids: Sequence[int]) -> str:
    size = runtime.manifest.tokens.vocab_size
    if any(not 0 <= token < size for token in ids):
        raise refuse(f"prompt: a token id is outside the vocabulary of {size}", param="prompt")
    return runtime.tokenizer.decode(ids)


def _answer(
    asked: Asked, runtime: Runtime, ids: list[int], choice: int, tally: Tally, *, first: bool, anew: bool
) -> Generator[Part, None, None]:
    steps = runtime.generate(
        ids,
        sampling=asked.request.sampling(choice),
        max_tokens=asked.limit,
        stop=asked.request.stops,
        processors=processors(asked.request, len(ids), runtime.manifest.tokens.vocab_size),
        json_schema=asked.schema,
        top_logprobs=asked.top or 0,
        anew=anew,
    )
    for step in tally.count(steps, len(ids) if first else 0):
        yield asked.part(runtime, choice, step)
        if step.finish is not None:
            yield Part(choice, reason=reason(step.finish))


def reason(finish: Finish) -> Reason:
    """OpenAI has no word of its own for a full context."""
    return "stop" if finish == "stop" else "length"


def processors(request: ChatRequest | TextRequest, prompt: int, vocabulary: int) -> list[Processor]:
    """OpenAI's presence and frequency penalties, over what follows the first ``prompt`` tokens, and its logit_bias. Raises Refused."""
    made: list[Processor] = []
    presence, frequency = request.presence_penalty or 0.0, request.frequency_penalty or 0.0
    if presence or frequency:

        def penalize(tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
            seen, times = np.unique(np.asarray(tokens[prompt:], np.intp), return_counts=True)
            logits[seen] -= (presence + frequency * times).astype(np.float32)
            return logits

        made.append(penalize)
    if request.logit_bias:
        ids = np.array([int(token) for token in request.logit_bias], np.intp)
        if ids.max() >= vocabulary:
            raise refuse(f"logit_bias: token {ids.max()} is outside the vocabulary of {vocabulary}", param="logit_bias")
        biases = np.array(list(request.logit_bias.values()), np.float32)

        def bias(_: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
            np.add.at(logits, ids, biases)
            return logits

        made.append(bias)
    return made

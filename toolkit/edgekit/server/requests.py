"""The JSON of a request into checked records. What would change an answer and is not offered is refused, never ignored."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeVar

from edgekit.records import RecordError, parse
from edgekit.runtime import Sampling
from edgekit.server.problems import refuse
from edgekit.server.settings import Limits

T = TypeVar("T")
DEEP = 64
"""Lists and objects in each other, as many as a chat template may be given."""
STOPS, STOP_LENGTH, TOOLS, TOP_CHAT, TOP_TEXT, TOP_K = 16, 1000, 128, 20, 5, 1 << 31
SEEDS = 1 << 63
COLD = 1e-4
"""A temperature below it is greedy: float32 could not hold logits divided by it."""
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NOT_DONE = {
    "audio": "answers are text",
    "function_call": "functions are called by tools and tool_choice",
    "functions": "functions are called by tools and tool_choice",
    "modalities": "answers are text",
    "moderation": "nothing is moderated here",
    "prediction": "nothing is predicted here; edge run has --lookup",
    "prompt_cache_options": "of what is cached there is nothing to choose",
    "prompt_cache_retention": "of what is cached there is nothing to choose",
    "reasoning_effort": "this server has no say in how long a model thinks",
    "service_tier": "there is one tier",
    "store": "nothing is stored here",
    "suffix": "text is only continued",
    "verbosity": "this server has no say in how much a model writes",
    "web_search_options": "nothing is looked up here",
}
"""Why fields of OpenAI's may only ask for what is done anyway."""
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Part:
    """refusal: in place of text where the type says so."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class CalledFunction:
    """parsed_arguments: OpenAI's client adds it to what it parsed itself."""

    name: str
    arguments: str
    parsed_arguments: object = None


@dataclass(frozen=True)
class Called:
    """A tool call of an earlier answer. index: of a streamed one, as clients keep it."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


@dataclass(frozen=True)
class Said:
    """One message. What clients echo of an answer's empty fields (``refusal``, ``audio``) may be there as null; ``parsed`` is their own."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[Called, ...] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: tuple[object, ...] | None = None
    reasoning: None = None
    reasoning_content: None = None
    parsed: object = None


@dataclass(frozen=True)
class Function:
    name: str
    description: str | None = None
    parameters: Mapping[str, object] | None = None
    strict: bool | None = None


@dataclass(frozen=True)
class Tool:
    type: Literal["function"]
    function: Function


@dataclass(frozen=True)
class NamedFunction:
    name: str


@dataclass(frozen=True)
class Named:
    type: Literal["function"]
    function: NamedFunction


@dataclass(frozen=True)
class Schema:
    name: str
    schema: Mapping[str, object]
    description: str | None = None
    strict: bool | None = None


@dataclass(frozen=True)
class Format:
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


@dataclass(frozen=True)
class StreamOptions:
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


@dataclass(frozen=True)
class CacheOptions:
    mode: Literal["implicit"] | None = None


@dataclass(frozen=True)
class _Common:
    """user, metadata, store and the like say something about the client; they change nothing here."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    user: str | None = None

    @property
    def answers(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def wants_usage(self) -> bool:
        """In a stream; otherwise it is always told."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, choice: int) -> Sampling:
        """Of the ``choice``-th answer: each has a seed of its own. OpenAI's default temperature is 1. Raises UsageError.

        At 0 the likeliest token is all that any filter or draw leaves: as with OpenAI, they may be there.
        """
        given = 1.0 if self.temperature is None else self.temperature
        penalty = 1.0 if self.repetition_penalty is None else self.repetition_penalty
        if 0 <= given < COLD:
            return Sampling(repetition_penalty=penalty)
        return Sampling(
            temperature=given,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=penalty,
            seed=None if self.seed is None else self.seed % (2 * SEEDS) + choice,
        )


@dataclass(frozen=True)
class ChatRequest(_Common):
    """From ``audio`` on: fields of OpenAI's that may be null, or ask for what is done anyway; see NOT_DONE."""

    messages: tuple[Said, ...] = ()
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: Format | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: Literal["none", "auto", "required"] | Named | None = None
    parallel_tool_calls: bool | None = None
    metadata: Mapping[str, object] | None = None
    store: Literal[False] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    audio: None = None
    function_call: Literal["none"] | None = None
    functions: None = None
    modalities: tuple[Literal["text"], ...] | None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    reasoning_effort: Literal["none", "medium"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


@dataclass(frozen=True)
class TextRequest(_Common):
    prompt: str | tuple[object, ...] = field(default="")
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """Texts and lists of token ids; ``check_text`` has seen to it that there is nothing else."""
        given = self.prompt
        one = isinstance(given, str) or all(isinstance(item, int) for item in given)
        return [given] if one else given  # type: ignore[list-item, return-value]


def read_json(body: bytes) -> object:
    """Strict JSON in UTF-8 whose texts are whole characters, at most DEEP deep. Raises Refused."""
    try:
        text = body.decode("utf-8")
    except ValueError as error:
        raise refuse(f"the body is not JSON in UTF-8: {str(error)[:200]}", code="invalid_json") from None
    return strict_json(text, "the body", code="invalid_json")


def strict_json(text: str, what: str, *, param: str | None = None, code: str | None = None) -> object:
    """As ``read_json``, of a text. what: it is, for a message."""
    try:
        data: object = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise refuse(f"{what} is not JSON in UTF-8: {str(error)[:200]}", param=param, code=code) from None
    waiting = [(data, 0)]
    while waiting:
        here, depth = waiting.pop()
        if depth > DEEP:
            raise refuse(f"{what} has lists and objects more than {DEEP} deep in each other", param=param, code=code)
        if isinstance(here, str) and _HALF.search(here):
            raise refuse(f"{what} holds half a character (a lone surrogate)", param=param, code=code)
        if isinstance(here, dict):
            waiting += [(item, depth + 1) for pair in here.items() for item in pair]
        elif isinstance(here, list):
            waiting += [(item, depth + 1) for item in here]
    return data


def read_chat(data: object, model: str, limits: Limits) -> ChatRequest:
    """Raises Refused, naming the parameter."""
    request = _parse(ChatRequest, data)
    _check_common(request, request.answers, model, limits)
    both = request.max_tokens is not None and request.max_completion_tokens is not None
    if both and request.max_tokens != request.max_completion_tokens:
        raise refuse("max_tokens and max_completion_tokens differ; give one", param="max_completion_tokens")
    _check_tokens(request.limit, "max_completion_tokens" if request.max_tokens is None else "max_tokens", limits)
    if not 1 <= len(request.messages) <= limits.messages:
        raise refuse(f"messages: 1 to {limits.messages} are taken, found {len(request.messages)}", param="messages")
    if request.top_logprobs and not request.logprobs:
        raise refuse("top_logprobs needs logprobs to be true", param="top_logprobs")
    _check_range(request.top_logprobs, 0, TOP_CHAT, "top_logprobs")
    if request.response_format is not None and (request.response_format.type == "json_schema") != (
        request.response_format.json_schema is not None
    ):
        raise refuse("response_format: json_schema goes with the type json_schema", param="response_format")
    _check_tools(request)
    return request


def read_text(data: object, model: str, limits: Limits) -> TextRequest:
    """Raises Refused, naming the parameter."""
    if isinstance(data, Mapping) and "prompt" not in data:
        raise refuse("missing key 'prompt'", param="prompt")
    request = _parse(TextRequest, data)
    _check_prompt(request.prompt)
    _check_common(request, request.answers * len(request.prompts), model, limits)
    _check_tokens(request.max_tokens, "max_tokens", limits)
    _check_range(request.logprobs, 0, TOP_TEXT, "logprobs")
    if request.best_of not in (None, request.answers):
        raise refuse("best_of: of as many as n there is nothing to choose, and more are not made; leave it out", param="best_of")
    if request.echo and request.logprobs is not None:
        raise refuse("echo with logprobs would need those of the prompt, which are not computed", param="echo")
    return request


def _parse(into: type[T], data: object) -> T:
    try:
        return parse(into, data, unknown="refuse")
    except RecordError as error:
        text = str(error)
        named = re.match(r"(\w[\w.\[\]]*): |(?:missing|unknown) key '([^']*)'", text)
        param = (named[1] or named[2]) if named else None
        reason = NOT_DONE.get(re.split(r"[.\[]", param or "")[0])
        raise refuse(text if reason is None else f"{text}: {reason}", param=param) from None


def _check_common(request: _Common, answers: int, model: str, limits: Limits) -> None:
    if request.model != model:
        raise refuse(
            f"there is no model {request.model[:100]!r} here; this server has {model!r}", param="model", code="model_not_found", status=404
        )
    if request.stream_options is not None and not request.stream:
        raise refuse("stream_options needs stream to be true", param="stream_options")
    _check_range(request.n, 1, limits.choices, "n")
    if answers > limits.choices:
        raise refuse(f"n times prompts is {answers}; at most {limits.choices} answers are given to a request", param="n")
    _check_range(request.temperature, 0, 2, "temperature")
    _check_range(request.presence_penalty, -2, 2, "presence_penalty")
    _check_range(request.frequency_penalty, -2, 2, "frequency_penalty")
    _check_range(request.repetition_penalty, 0.01, 100, "repetition_penalty")
    _check_range(request.top_k, 0, TOP_K, "top_k")
    _check_range(request.min_p, 0, 1, "min_p")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise refuse(f"top_p has to be above 0 and at most 1, found {request.top_p}", param="top_p")
    _check_range(request.seed, -SEEDS, SEEDS - 1, "seed")
    if len(request.stops) > STOPS or any(not 1 <= len(text) <= STOP_LENGTH for text in request.stops):
        raise refuse(f"stop: at most {STOPS} texts of 1 to {STOP_LENGTH:,} characters are taken", param="stop")
    for token, bias in (request.logit_bias or {}).items():
        if not re.fullmatch(r"[0-9]{1,9}", token) or not -100 <= bias <= 100:
            raise refuse(f"logit_bias: token ids with numbers from -100 to 100 are taken, found {token[:20]!r}: {bias}", param="logit_bias")


def _check_tokens(wanted: int | None, name: str, limits: Limits) -> None:
    if wanted is not None and wanted < 1:
        raise refuse(f"{name} has to be at least 1, found {wanted}", param=name)
    if wanted is not None and limits.tokens is not None and wanted > limits.tokens:
        raise refuse(f"{name} is {wanted}; this server gives at most {limits.tokens} tokens", param=name)


def _check_range(value: float | None, least: float, most: float, name: str) -> None:
    if value is not None and not least <= value <= most:
        raise refuse(f"{name} has to be from {least} to {most}, found {value}", param=name)


def _check_prompt(prompt: str | tuple[object, ...]) -> None:
    """A text, token ids, or a list of either."""
    if isinstance(prompt, str) or (prompt and all(map(_is_prompt, prompt))) or _is_prompt(prompt):
        return
    raise refuse("prompt: wanted a text, a list of texts, a list of token ids, or a list of these", param="prompt")


def _is_prompt(item: object) -> bool:
    """Of several: a text, or token ids (numbers that are no bool)."""
    return isinstance(item, str) or (isinstance(item, (list, tuple)) and len(item) > 0 and all(type(token) is int for token in item))


def _check_tools(request: ChatRequest) -> None:
    names = [tool.function.name for tool in request.tools or ()]
    if len(names) > TOOLS:
        raise refuse(f"tools: at most {TOOLS} are taken, found {len(names)}", param="tools")
    if wrong := next((name for name in names if not NAME.fullmatch(name)), None):
        raise refuse(f"tools: {wrong[:80]!r} is no name: letters, digits, _ and -, at most 64", param="tools")
    if "" in names or len(set(names)) < len(names):
        raise refuse("tools: every tool needs a name of its own", param="tools")
    choice = request.tool_choice
    if choice not in (None, "none") and not names:
        raise refuse("tool_choice needs tools", param="tool_choice")
    if request.parallel_tool_calls is False and not names:
        raise refuse("parallel_tool_calls needs tools", param="parallel_tool_calls")
    if isinstance(choice, Named) and choice.function.name not in names:
        raise refuse(f"tool_choice: there is no tool {choice.function.name[:80]!r}", param="tool_choice")
    if names and choice != "none" and request.response_format is not None and request.response_format.type != "text":
        raise refuse("an answer is a tool call or has a response_format; for both ask twice", param="response_format")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large")
    return value

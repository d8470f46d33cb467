"""What ``edge run`` and ``edge chat`` do with a Runtime: show one answer as it comes, or hold a conversation."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from edgekit import console
from edgekit.errors import ContextOverflow, TemplateError, UsageError
from edgekit.runtime import Runtime, Sampling
from edgekit.runtime.generate import Finish, Step
from edgekit.runtime.grammars import LIMIT as FORM_LIMIT

Show = Callable[[str], None]
HELP = "/reset forgets the conversation, /exit leaves, Ctrl-C ends an answer"


@dataclass(frozen=True)
class Answer:
    """What came of the steps, also of those that Ctrl-C cut short. ``ttft`` is seconds from the call to the first token."""

    text: str
    finish: Finish | Literal["interrupted"]
    steps: tuple[Step, ...]
    ttft: float

    @property
    def prefill(self) -> tuple[int, float]:
        """Tokens and seconds of the engine before the first token."""
        return (self.steps[0].computed, self.steps[0].seconds) if self.steps else (0, 0.0)

    @property
    def decode(self) -> tuple[int, float]:
        """Tokens and seconds of the engine after the first token."""
        return len(self.steps[1:]), sum(step.seconds for step in self.steps[1:])

    @property
    def passes(self) -> int:
        """How often the engine ran after the first token: as often as there are further tokens, less often where lookup guessed some."""
        return sum(step.computed > 0 for step in self.steps[1:])

    def as_json(self) -> dict[str, object]:
        """The document of ``edge run --json``."""
        return {
            "text": self.text,
            "finish": self.finish,
            "tokens": [step.token for step in self.steps],
            "prefill": _speed(*self.prefill),
            "decode": {**_speed(*self.decode), "passes": self.passes},
            "seconds_to_first_token": round(self.ttft, 4),
        }

    def as_line(self) -> str:
        """The line of ``--stats``."""
        (new, before), (more, after) = self.prefill, self.decode
        guessed = f" ({more / self.passes:.2f} a pass)" if self.passes < more else ""
        return (
            f"{more + bool(self.steps)} tokens, {_rate(more, after):.1f} tokens/s{guessed}; "
            f"prefill {new} tokens, {_rate(new, before):.1f} tokens/s; first token after {self.ttft:.2f} s; ended by {self.finish}"
        )


def read_prompt(given: str | None, stdin: TextIO) -> str:
    """The prompt itself, or stdin for ``-`` and for none where stdin is piped, without its last line feed. Raises UsageError."""
    if given is None and stdin.isatty():
        raise UsageError('there is no prompt; give one: edge run DIR "PROMPT", or pipe it in')
    try:
        if given is None or given == "-":
            given = stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
        given.encode("utf-8")
    except UnicodeError as error:
        raise UsageError(f"the prompt is not UTF-8: {error}") from None
    if not given:
        raise UsageError('the prompt is empty; give one: edge run DIR "PROMPT", or pipe it in')
    return given


def make_sampling(temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float, seed: int | None) -> Sampling:
    """The options as Sampling. Raises UsageError for what would change nothing, because without a temperature nothing is drawn."""
    given = {"--top-k": top_k > 0, "--top-p": top_p < 1, "--min-p": min_p > 0, "--seed": seed is not None}
    idle = [option for option, used in given.items() if used]
    if idle and not temperature:
        raise UsageError(f"{', '.join(idle)} would change nothing: the likeliest token is taken each time; add --temperature, such as 0.8")
    return Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)


@dataclass(frozen=True)
class Form:
    """What the answer has to be valid under; at most one of them."""

    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None


def read_form(json_schema: Path | None, regex: str | None, grammar: Path | None) -> Form:
    """The options with their files' content. Raises UsageError for a file that cannot be read."""
    return Form(_content(json_schema, "--json-schema"), regex, _content(grammar, "--grammar"))


def _content(path: Path | None, option: str) -> str | None:
    if path is None:
        return None
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(FORM_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{option} {path} cannot be read: {error}") from None


def start(system: str | None) -> list[dict[str, str]]:
    """The messages before the first question."""
    return [] if system is None else [{"role": "system", "content": system}]


def steps_for(
    runtime: Runtime,
    prompt: str,
    sampling: Sampling,
    *,
    system: str | None,
    raw: bool,
    max_tokens: int | None,
    stop: Sequence[str],
    lookup: int,
    form: Form,
) -> Iterator[Step]:
    """Steps of the answer to ``prompt``, or of its continuation when ``raw``. Raises UsageError, TemplateError, ContextOverflow."""
    if not raw:
        messages = [*start(system), {"role": "user", "content": prompt}]
        return runtime.chat(
            messages,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            lookup=lookup,
            json_schema=form.json_schema,
            regex=form.regex,
            grammar=form.grammar,
        )
    if system is not None:
        raise UsageError("--system has no place in raw text; leave out --raw or --system")
    return runtime.generate(
        prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        stop=stop,
        lookup=lookup,
        json_schema=form.json_schema,
        regex=form.regex,
        grammar=form.grammar,
    )


def take(steps: Iterator[Step], show: Show) -> Answer:
    """Takes all steps, showing each piece of text as it comes. Ctrl-C ends it with what there is."""
    began, ttft = time.perf_counter(), 0.0
    taken: list[Step] = []
    finish: Finish | Literal["interrupted"] = "interrupted"
    try:
        for step in steps:
            ttft = ttft or time.perf_counter() - began
            taken.append(step)
            show(step.text)
            finish = step.finish or finish
    except KeyboardInterrupt:
        finish = "interrupted"
    return Answer("".join(step.text for step in taken), finish, tuple(taken), ttft)


def converse(
    runtime: Runtime,
    sampling: Sampling,
    *,
    system: str | None,
    max_tokens: int | None,
    stop: Sequence[str],
    lookup: int,
    stats: bool,
    show: Show,
    read: Callable[[], str],
) -> None:
    """Reads questions until ``read`` raises EOFError, /exit, or two Ctrl-C in a row; every answer stays in the conversation."""
    messages = start(system)
    interrupted = False
    while True:
        try:
            line = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted:
                return
            interrupted = True
            _note("Ctrl-C again leaves")
            continue
        interrupted = False
        if line.strip() in ("/exit", "/quit"):
            return
        if line.strip() == "/reset":
            messages = start(system)
            _note("forgotten")
        elif line.startswith("/"):
            _note(HELP)
        elif line.strip():
            messages.append({"role": "user", "content": line})
            answer = _reply(runtime, messages, sampling, max_tokens, stop, lookup, show)
            interrupted = answer is not None and answer.finish == "interrupted"
            if stats and answer is not None:
                _note(answer.as_line())


def _reply(
    runtime: Runtime,
    messages: list[dict[str, str]],
    sampling: Sampling,
    max_tokens: int | None,
    stop: Sequence[str],
    lookup: int,
    show: Show,
) -> Answer | None:
    """The answer, added to ``messages``; None, and the question taken back, where there is none."""
    try:
        answer = take(runtime.chat(messages, sampling=sampling, max_tokens=max_tokens, stop=stop, lookup=lookup), show)
    except (ContextOverflow, TemplateError) as error:
        messages.pop()
        _note(f"edge: error: {error}; /reset begins anew")
        return None
    show("\n")
    if answer.finish == "context":
        _note("the context is full; /reset begins anew")
    if answer.text:
        messages.append({"role": "assistant", "content": answer.text})
    else:
        messages.pop()
    return answer


def ask() -> str:
    """One line from the terminal, with editing where the platform has it; from a pipe, as UTF-8, without a prompt sign.

    Raises EOFError at the end, UsageError for what is no text.
    """
    try:
        if not sys.stdin.isatty():
            line = sys.stdin.buffer.readline().decode("utf-8")
            if not line:
                raise EOFError
            return line.rstrip("\r\n")
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (importing it gives input() its editing)
        return input("> ")
    except UnicodeError as error:
        raise UsageError(f"the input is not UTF-8: {error}") from None


def _note(text: str) -> None:
    console.notice(text)


def _speed(tokens: int, seconds: float) -> dict[str, float]:
    return {"tokens": tokens, "seconds": round(seconds, 4), "tokens_per_second": round(_rate(tokens, seconds), 2)}


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0

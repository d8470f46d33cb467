"""Answers that may call tools: free text up to a call's opening, the call as constrained JSON, text again."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass

from edgekit.errors import ContextOverflow, UsageError
from edgekit.runtime import Runtime
from edgekit.server.answering import Asked, Part, Parts, Reason, Tally, TokenLog, processors, reason
from edgekit.server.messages import template_tools
from edgekit.server.requests import ChatRequest, Named
from edgekit.server.tools import ToolSyntax, call_schema, read_calls, with_tools


@dataclass(frozen=True)
class Calling:
    """How one request's tools may be called. prompt: rendered. forced: the answer begins with a call. single: and has only one.

    token: the id of the opening where it is a special token, which never shows as text; None where it is text.
    """

    syntax: ToolSyntax
    schema: Mapping[str, object]
    prompt: str
    forced: bool
    single: bool
    token: int | None


@dataclass
class _Told:
    """An answer so far. said: all text after the prompt, calls included. spent: its tokens."""

    said: str = ""
    spent: int = 0
    calls: int = 0


def tool_parts(asked: Asked, messages: list[dict[str, object]], request: ChatRequest, syntax: ToolSyntax, runtime: Runtime) -> Parts:
    """Of a chat completion with tools. A tool's schema that cannot be enforced is refused before the answer begins (UsageError)."""
    tools = list(request.tools or ())
    wanted = request.tool_choice
    offered = [tool for tool in tools if tool.function.name == wanted.function.name] if isinstance(wanted, Named) else tools
    single = isinstance(wanted, Named) or request.parallel_tool_calls is False
    token = runtime.tokenizer.backend.token_to_id(syntax.opening)
    calling = Calling(
        syntax,
        call_schema(syntax, offered, single=single),
        runtime.render(with_tools(syntax, messages, tools), tools=None if syntax.in_system else template_tools(tools)),
        wanted not in (None, "auto"),
        single,
        token if token in runtime.tokenizer.silent else None,
    )
    ids = runtime.encode(calling.prompt)
    runtime.generate(ids, json_schema=calling.schema).close()
    tally = Tally(asked.shared.told)
    for choice in range(request.answers):
        yield from _answer(asked, calling, runtime, choice, tally)
    yield tally.usage()


def _answer(asked: Asked, calling: Calling, runtime: Runtime, choice: int, tally: Tally) -> Generator[Part, None, None]:
    """One answer. Where a call cannot be completed within the limit any more, it ends with ``length`` before it."""
    told = _Told()
    while True:
        if told.calls or not calling.forced:
            ended = yield from _text(asked, calling, runtime, choice, tally, told)
            if ended is not None:
                yield Part(choice, reason="tool_calls" if told.calls and ended == "stop" else ended)
                return
        first = not told.spent
        try:
            text = _call(asked, calling, runtime, choice, tally, told)
        except (UsageError, ContextOverflow):
            if first:
                raise
            yield Part(choice, reason="length")
            return
        calls = tuple(read_calls(calling.syntax, text))
        yield Part(choice, calls=calls)
        told.calls += len(calls)
        if calling.single or calling.syntax.several or calling.syntax.quoted or told.spent == asked.limit:
            yield Part(choice, reason="tool_calls")
            return


def _text(asked: Asked, calling: Calling, runtime: Runtime, choice: int, tally: Tally, told: _Told) -> Generator[Part, None, Reason | None]:
    """Text up to the opening of a call; returns None there, or why the answer ended. White space before a call is not told."""
    if told.spent == asked.limit:
        return "length"
    ids = runtime.tokenizer.encode(calling.prompt + told.said)
    marks = () if calling.token is not None else (calling.syntax.opening,)
    steps = runtime.generate(
        ids,
        sampling=asked.request.sampling(choice),
        max_tokens=None if asked.limit is None else asked.limit - told.spent,
        stop=(*asked.request.stops, *marks),
        processors=processors(asked.request, len(ids) - told.spent, runtime.manifest.tokens.vocab_size),
        top_logprobs=asked.top or 0,
        anew=not told.said,
    )
    blank = ""
    logs: tuple[TokenLog, ...] = ()
    for step in tally.count(steps, len(ids) if not told.spent and choice == 0 else 0):
        told.said += step.text
        told.spent += 1
        opened = step.stopped_by in marks or (step.token == calling.token and calling.token is not None)
        part = asked.part(runtime, choice, step)
        blank, logs = blank + part.text, (*logs, *part.logs)
        if blank.strip() or (step.finish is not None and not opened and not told.calls):
            yield Part(choice, blank, logs=logs)
            blank, logs = "", ()
        if opened:
            return None
        if step.finish is not None:
            return reason(step.finish)
    raise RuntimeError("the steps ended without a finish")


def _call(asked: Asked, calling: Calling, runtime: Runtime, choice: int, tally: Tally, told: _Told) -> str:
    """The JSON of a call. Stop strings do not hold in it: they would cut it. Raises UsageError, ContextOverflow."""
    if told.spent == asked.limit:
        raise UsageError("no token is left for a call")
    syntax = calling.syntax
    told.said += "" if syntax.quoted else syntax.opening + syntax.between
    ids = runtime.tokenizer.encode(calling.prompt + told.said)
    steps = runtime.generate(
        ids,
        sampling=asked.request.sampling(choice),
        max_tokens=None if asked.limit is None else asked.limit - told.spent,
        processors=processors(asked.request, len(ids) - told.spent, runtime.manifest.tokens.vocab_size),
        json_schema=calling.schema,
    )
    text = ""
    for step in tally.count(steps, len(ids) if not told.spent and choice == 0 else 0):
        text += step.text
        told.spent += 1
    told.said += text + syntax.closing
    return text

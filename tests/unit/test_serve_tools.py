"""Tool calls as each model family writes them, by a session that says what it is told to."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgekit
from edgekit.engines.null.session import NullSession
from edgekit.errors import UsageError
from edgekit.runtime import Runtime
from edgekit.runtime.chat import ChatTemplate
from edgekit.server.answering import Part, Shared, Usage, Vocabulary, chat_asked
from edgekit.server.bodies import ChatShape, Origin
from edgekit.server.calling import tool_parts
from edgekit.server.messages import template_messages
from edgekit.server.problems import Refused
from edgekit.server.requests import read_chat
from edgekit.server.settings import Limits
from edgekit.server.tools import SYNTAXES, ToolSyntax, tool_syntax
from tiny_artifact import build_tiny

pytest.importorskip("llguidance")
TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tools }}\n{% endfor %}"
)
ADD = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": ADD}}, {"type": "function", "function": {"name": "now"}}]
SYNTAX = {syntax.name: syntax for syntax in SYNTAXES}


class Speaker(NullSession):
    """Whatever was said so far, it wants to go on to the end of ``script``, and then to stop."""

    def __init__(self, runtime: Runtime, script: str) -> None:
        super().__init__(runtime.manifest.tokens.vocab_size, 4000)
        self._runtime, self._script, self._held = runtime, script, list[int]()

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self._held = [*self._held[: self.position], *tokens]
        logits = super().forward(tokens)
        said = self._runtime.tokenizer.backend.decode(self._held, skip_special_tokens=False)
        rest = self._script[len(said) :] if self._script.startswith(said) else ""
        wanted = self._runtime.tokenizer.encode(rest)[0] if rest else self._runtime.manifest.tokens.stop[0]
        logits[wanted] = 100
        return logits


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with edgekit.load(build_tiny(tmp_path_factory.mktemp("null"), "null")) as runtime:
        yield runtime


def speaking(plain: Runtime, syntax: ToolSyntax, answer: str) -> Runtime:
    """A runtime whose model answers ``answer`` to what ``answered`` asks."""
    manifest = replace(plain.manifest, context=replace(plain.manifest.context, rope_switch=None, length=4000))
    template = ChatTemplate(TEMPLATE, {})
    probe = Runtime(manifest, plain.tokenizer, template, NullSession(manifest.tokens.vocab_size, 4000))
    prompts: list[str] = []  # as rendered, whatever way the tools get into it
    render = probe.render

    def remember(*args: Any, **more: Any) -> str:
        prompts.append(render(*args, **more))
        return prompts[-1]

    probe.render = remember  # type: ignore[method-assign]
    next(parts_of(probe, syntax, {}))
    return Runtime(manifest, plain.tokenizer, template, Speaker(probe, prompts[0] + answer))


def parts_of(runtime: Runtime, syntax: ToolSyntax, more: dict[str, Any]) -> Iterator[Part | Usage]:
    body = {"model": "m", "messages": [{"role": "user", "content": "1 + 1?"}], "tools": TOOLS, "temperature": 0, **more}
    request = read_chat(body, "m", Limits())
    asked = chat_asked(request, Shared(Vocabulary(), lambda _: None, None))
    return tool_parts(asked, template_messages(request.messages), request, syntax, runtime)


def answered(plain: Runtime, syntax: ToolSyntax, answer: str, **more: Any) -> tuple[str, list[tuple[str, Any]], str | None]:
    """Text, calls and reason, which a stream's chunks add up to as well."""
    parts = list(parts_of(speaking(plain, syntax, answer), syntax, more))
    usage = parts[-1]
    assert isinstance(usage, Usage) and usage.completion > 0 and usage.prompt > 0
    pieces = [part for part in parts if isinstance(part, Part)]
    shape = ChatShape(Origin("m", "p", "k"), usage=False, logs=False)
    chunks: list[Any] = [chunk for part in pieces if (chunk := shape.chunk(part)) is not None]
    whole: Any = shape.whole(pieces, usage)
    message = whole["choices"][0]["message"]
    calls = message.get("tool_calls", [])
    streamed = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert [call["index"] for call in streamed] == list(range(len(calls)))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == (message["content"] or "")
    assert all(len(call["id"]) == 9 and call["id"].isalnum() for call in calls)
    found = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    return message["content"] or "", found, whole["choices"][0]["finish_reason"]


def written(syntax: ToolSyntax, *calls: tuple[str, dict[str, object]]) -> str:
    """What a model of the family writes."""
    each = [json.dumps({"name": name, syntax.arguments: arguments}) for name, arguments in calls]
    if syntax.several:
        return syntax.opening + syntax.between + "[" + ", ".join(each) + "]" + syntax.closing
    return "\n".join(("" if syntax.quoted else syntax.opening + syntax.between) + call + syntax.closing for call in each)


@pytest.mark.parametrize("name", list(SYNTAX))
@pytest.mark.parametrize("before", ["", "Let me see. "])
def test_a_call_is_read_as_its_family_writes_it(plain: Runtime, name: str, before: str) -> None:
    syntax = SYNTAX[name]
    text, calls, reason = answered(plain, syntax, before + written(syntax, ("add", {"a": 12})))
    assert (text, calls, reason) == (before.rstrip(), [("add", {"a": 12})], "tool_calls")


@pytest.mark.parametrize("name", ["hermes", "mistral", "phi4"])
def test_several_calls_of_one_answer(plain: Runtime, name: str) -> None:
    answer = written(SYNTAX[name], ("add", {"a": 1}), ("now", {}))
    assert answered(plain, SYNTAX[name], answer) == ("", [("add", {"a": 1}), ("now", {})], "tool_calls")
    assert answered(plain, SYNTAX[name], answer, parallel_tool_calls=False)[1] == [("add", {"a": 1})]


@pytest.mark.parametrize("name", list(SYNTAX))
def test_an_answer_without_a_call_is_text(plain: Runtime, name: str) -> None:
    assert answered(plain, SYNTAX[name], "It is 2 <tool or so.") == ("It is 2 <tool or so.", [], "stop")


def test_a_special_token_opens_a_call_too(plain: Runtime) -> None:
    syntax = replace(SYNTAX["mistral"], opening="<|user|>")
    assert plain.tokenizer.backend.token_to_id("<|user|>") in plain.tokenizer.silent
    assert answered(plain, syntax, "So: " + written(syntax, ("add", {"a": 3}))) == ("So:", [("add", {"a": 3})], "tool_calls")


def test_what_is_no_call_of_a_tool_becomes_one(plain: Runtime) -> None:
    """The constraint leads: a name that is not there, or arguments of another type, cannot be said."""
    wrong = '<tool_call>\n{"name": "subtract", "arguments": {"a": "x"}}\n</tool_call>'
    _, calls, reason = answered(plain, SYNTAX["hermes"], wrong, max_tokens=400)
    assert reason == "tool_calls" and calls[0][0] in ("add", "now")


def test_a_call_that_does_not_fit_is_not_begun(plain: Runtime) -> None:
    text, calls, reason = answered(plain, SYNTAX["hermes"], "a b c " + written(SYNTAX["hermes"], ("add", {"a": 1})), max_tokens=24)
    assert (text.strip(), calls, reason) == ("a b c", [], "length")
    with pytest.raises(UsageError, match="ends within 3 tokens"):
        answered(plain, SYNTAX["hermes"], "", tool_choice="required", max_tokens=3)


def test_a_named_tool_is_the_one_that_is_called(plain: Runtime) -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    assert answered(plain, SYNTAX["hermes"], "no, thanks", tool_choice=choice) == ("", [("now", {})], "tool_calls")


def test_stop_strings_hold_in_the_text_only(plain: Runtime) -> None:
    answer = "one two " + written(SYNTAX["hermes"], ("add", {"a": 1}))
    assert answered(plain, SYNTAX["hermes"], answer, stop="two") == ("one ", [], "stop")
    assert answered(plain, SYNTAX["hermes"], answer, stop="arguments")[1] == [("add", {"a": 1})]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "hermes"),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", "mistral"),
        ("{{ message['tools'] }}<|tool|>", "phi4"),
        ('{% if tools %}{"name": function name, "parameters": dictionary}{{ \'"parameters": \' }}', "llama3"),
        ("{{ messages }}", None),
        ("{% if tools %}call(){% endif %}", None),
    ],
)
def test_the_family_is_told_by_its_template(source: str, name: str | None) -> None:
    found = tool_syntax(source)
    assert (None if found is None else found.name) == name


def test_earlier_calls_reach_the_template_as_objects() -> None:
    call = {"id": "abc", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    body = {"model": "m", "messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    (made,) = template_messages(read_chat(body, "m", Limits()).messages)
    assert made == {"role": "assistant", "content": "", "tool_calls": [{**call, "function": {"name": "add", "arguments": {"a": 1}}}]}
    call["function"] = {"name": "add", "arguments": "[1]"}
    with pytest.raises(Refused, match="JSON object"):
        template_messages(read_chat(body, "m", Limits()).messages)

"""Tool calls as each model family writes them, by a session that says what it is told to."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jsonschema
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
from edgekit.server.requests import read_chat, read_text
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


def parameters_of(schema: Any) -> list[dict[str, Any]]:
    function = {"name": "go"} if schema is None else {"name": "go", "parameters": schema}
    return [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {},
        {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"type": ["object", "null"], "properties": {"a": {"enum": [1]}}},
        {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"b": {"enum": [2]}}, "required": ["b"]}]},
        {"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"c": {"$ref": "#/$defs/y"}}}, "y": {"type": "boolean"}}},
        {"description": "Says nothing of what it takes."},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["hermes", "mistral"])
def test_arguments_are_always_an_object(plain: Runtime, name: str, schema: Any) -> None:
    """Also of a model that would rather say 3."""
    syntax = SYNTAX[name]
    answer = written(syntax, ("go", {})).replace("{}", "3")
    more = {"tools": parameters_of(schema), "tool_choice": "required", "max_tokens": 300, "parallel_tool_calls": False}
    _, calls, reason = answered(plain, syntax, answer, **more)
    assert reason == "tool_calls"
    ((called, arguments),) = calls
    assert called == "go" and isinstance(arguments, dict)
    if not schema:
        assert arguments == {}
    else:
        jsonschema.validate(arguments, schema)


@pytest.mark.parametrize("kind", ["string", "array", "integer", ["null", "array"], None, 7])
def test_arguments_that_can_be_no_object_are_refused(plain: Runtime, kind: Any) -> None:
    with pytest.raises(Refused, match="arguments are an object, and the parameters of 'go' are of type"):
        answered(plain, SYNTAX["hermes"], "", tools=parameters_of({"type": kind}))


def said_back(message: dict[str, Any]) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}, message]}
    return template_messages(read_chat(body, "m", Limits()).messages)[1]


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    "message", [{"content": "so"}, {"content": ""}, {"content": None, "tool_calls": [CALL]}, {"content": "x", "tool_calls": [CALL]}]
)
def test_what_the_server_says_it_takes_back(message: dict[str, Any]) -> None:
    """As OpenAI's client writes it, with and without its empty fields, streamed or parsed."""
    chat = pytest.importorskip("openai.types.chat")
    own = {"role": "assistant", "refusal": None, **message}
    expected = said_back(own)
    whole = chat.ChatCompletionMessage.model_validate(own)
    parsed = chat.ParsedChatCompletionMessage[Any].model_validate({**own, "parsed": {"a": 1}})
    for made in (whole, parsed):
        for options in ({}, {"exclude_none": True}, {"exclude_unset": True}):
            assert said_back(made.model_dump(**options)) == expected
    streamed = [{**call, "index": i} for i, call in enumerate(message.get("tool_calls", []))]
    assert said_back({**own, **({"tool_calls": streamed} if streamed else {})}) == expected
    assert said_back({**own, "reasoning_content": None, "reasoning": None, "annotations": [], "audio": None}) == expected


def test_a_refusal_is_what_the_assistant_said() -> None:
    assert said_back({"role": "assistant", "content": None, "refusal": "no"})["content"] == "no"
    part = {"type": "refusal", "refusal": "never"}
    assert said_back({"role": "assistant", "content": [part, {"type": "text", "text": "!"}]})["content"] == "never!"
    for wrong in (
        {"role": "user", "content": [part]},
        {"role": "user", "content": "a", "refusal": "b"},
        {"role": "assistant", "content": [{"type": "text"}]},
    ):
        with pytest.raises(Refused, match=r"messages\[1\]"):
            said_back(wrong)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('{"a": "\\ud800"}', "half a character"),
        ('{"\\udfff": 1}', "half a character"),
        ('{"a": ' + "[" * 900 + "]" * 900 + "}", "deep in each other"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "too large"),
        ("3", "JSON object"),
        ("{", "is not JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_arguments_that_come_are_checked_as_a_body_is(arguments: str, problem: str) -> None:
    call = {**CALL, "function": {"name": "add", "arguments": arguments}}
    with pytest.raises(Refused, match=problem) as caught:
        said_back({"role": "assistant", "content": None, "tool_calls": [call]})
    assert (caught.value.problem.status, caught.value.problem.param) == (400, "messages[1].tool_calls[0]")


def test_arguments_as_deep_as_they_may_come_reach_the_template(plain: Runtime) -> None:
    deep = '{"a": ' + "[" * 62 + "]" * 62 + "}"
    message = said_back({"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": {"name": "add", "arguments": deep}}]})
    template = ChatTemplate("{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor %}", {})
    assert template.render([message]) == deep


@pytest.mark.parametrize(
    "field",
    [
        {"service_tier": None}, {"service_tier": "auto"},
        {"service_tier": "default"}, {"reasoning_effort": None}, {"reasoning_effort": "none"},
        {"audio": None}, {"modalities": None}, {"modalities": ["text"]},
        {"prediction": None}, {"store": False}, {"store": None}, {"verbosity": None},
        {"verbosity": "medium"}, {"web_search_options": None}, {"functions": None}, {"function_call": None}, {"function_call": "none"},
        {"moderation": None}, {"prompt_cache_options": None}, {"prompt_cache_options": {}}, {"prompt_cache_retention": "in_memory"},
        {"tools": None}, {"tools": []}, {"tool_choice": None},
        {"tool_choice": "none"}, {"parallel_tool_calls": None}, {"parallel_tool_calls": True},
        {"top_logprobs": None}, {"top_logprobs": 0},
        {"stream_options": None}, {"response_format": None}, {"response_format": {"type": "text"}},
        {"stop": None}, {"stop": []}, {"logit_bias": None}, {"logit_bias": {}},
        {"n": None}, {"metadata": None}, {"user": None}, {"seed": None},
        {"temperature": 0, "top_p": 0.5, "seed": 3, "top_k": 4, "min_p": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_ask_for_nothing_are_taken(field: dict[str, Any]) -> None:
    read_chat({"model": "m", "messages": [{"role": "user", "content": "hi"}], **field}, "m", Limits()).sampling(0)


@pytest.mark.parametrize(
    "field",
    [
        {"service_tier": "flex"}, {"reasoning_effort": "high"},
        {"audio": {"voice": "a", "format": "wav"}}, {"modalities": ["text", "audio"]},
        {"prediction": {"type": "content", "content": "x"}}, {"store": True},
        {"verbosity": "low"}, {"web_search_options": {}}, {"moderation": {}},
        {"functions": [{"name": "f"}]}, {"function_call": "auto"},
        {"prompt_cache_options": {"mode": "explicit"}}, {"prompt_cache_retention": "24h"},
        {"parallel_tool_calls": False}, {"tool_choice": "required"}, {"top_logprobs": 1}, {"stream_options": {"include_usage": True}},
        {"max_tokens": 0}, {"max_completion_tokens": 0}, {"stop": ""},
        {"stop": ["a", ""]}, {"temperature": 0, "top_p": 0}, {"min_p": 2}, {"n": 0},
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_ask_for_what_is_not_done_are_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        read_chat({"model": "m", "messages": [{"role": "user", "content": "hi"}], **field}, "m", Limits())
    assert (caught.value.problem.param or "").split(".")[0].split("[")[0] == list(field)[-1]


def test_every_field_of_openais_is_known() -> None:
    """Null wherever their client may send null."""
    params = pytest.importorskip("openai.types.chat.completion_create_params")
    fields = set(params.CompletionCreateParamsBase.__annotations__) - {"messages", "model"}
    read_chat({"model": "m", "messages": [{"role": "user", "content": "hi"}], **dict.fromkeys(fields)}, "m", Limits())
    text = pytest.importorskip("openai.types.completion_create_params")
    fields = set(text.CompletionCreateParamsBase.__annotations__) - {"prompt", "model"}
    read_text({"model": "m", "prompt": "hi", **dict.fromkeys(fields)}, "m", Limits())
    read_text({"model": "m", "prompt": "hi", "n": 2, "best_of": 2, "suffix": ""}, "m", Limits())
    for field in ({"best_of": 3}, {"suffix": "x"}):
        with pytest.raises(Refused) as caught:
            read_text({"model": "m", "prompt": "hi", **field}, "m", Limits())
        assert caught.value.problem.param == next(iter(field))

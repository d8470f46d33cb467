"""Chat templates: what they may do, what they may not, and that an error names the line."""

import contextlib
import functools
import json
from collections import UserDict
from dataclasses import replace
from datetime import datetime
from itertools import product
from pathlib import Path

import jinja2.ext
import jinja2.sandbox
import pytest

from chat_templates import CHATS, TEMPLATES, TOOLS
from checkpoints import write_json
from edgekit.artifact import ChatVector, Message, ToolVector
from edgekit.confine import Confined, Cost
from edgekit.errors import ArtifactError, TemplateError, UsageError
from edgekit.runtime import chat
from edgekit.runtime.chat import VECTOR_TIME, WORK, ChatTemplate, check_template, open_template, special_tokens
from edgekit.runtime.templates import ChatTemplates, check_templates
from manifests import manifest as minimal_manifest

USER = [{"role": "user", "content": "hi"}]
SHARED = Confined(WORK)
"""A process for all of them: one takes a tenth of a second to start."""


@functools.cache
def compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, SHARED)


def render(source: str, messages: object = USER, **options: object) -> str:
    return compiled(source).render(messages, **options)


def test_what_a_template_is_given() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert render(source) == "<s>[user] hi</s>[assistant]"
    assert render(source, add_generation_prompt=False) == "<s>[user] hi</s>"
    assert render(source, tools=[{"name": "é<"}]) == '<s>[user] hi</s>[{"name": "é<"}][assistant]'


def test_whitespace_is_treated_as_transformers_does() -> None:
    assert render("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\ny\n") == "x\ny"


def test_loop_controls_namespaces_and_generation_blocks() -> None:
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% set ns = namespace(n=1) %}{% for i in range(3) %}{% set ns.n = ns.n * 2 %}{% endfor %}{{ ns.n }}") == "8"
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "hi!"


def test_the_clock_is_the_callers() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}", now=datetime(2031, 5, 4)) == "04 May 2031"
    assert render("{{ strftime_now('%Y') }}") >= "2026"


def test_a_refusal_is_the_templates_own_words() -> None:
    with pytest.raises(TemplateError, match=r"refuses these messages: system role not supported \(line 2\)"):
        render("{% if true %}\n{{ raise_exception('system role not supported') }}{% endif %}")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("a\nb\n{% if %}", "line 3"),
        ("{% for m in messages %}", "line 1"),
        ("\n{{ nothing.at.all }}", "line 2"),
        ("\n\n\n{{ 1 / 0 }}", "line 4"),
        ("{{ 'a' + 1 }}", "line 1"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "line 1"),
        ("{{ messages | nosuchfilter }}", "line 1"),
    ],
)
def test_a_broken_template_names_the_line(source: str, line: str) -> None:
    with pytest.raises(TemplateError, match=line):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].content.format.__self__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ namespace(__class__=1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ self._TemplateReference__context.parent }}",
        "{{ lipsum() }}",
        "{% include 'secret' %}",
        "{% import 'os' as os %}",
    ],
)
def test_nothing_outside_can_be_reached(source: str) -> None:
    """Refused, or undefined, which prints nothing."""
    with contextlib.suppress(TemplateError):
        assert render(source) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
        "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_what_would_take_all_memory_is_stopped_early(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "COST", Cost(seconds=0.5, memory=chat.COST.memory))
    with pytest.raises(TemplateError):
        ChatTemplate(source, {}).render(USER)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_jinjas_own_sandbox(name: str) -> None:
    """In another process too, for templates of real families and for a walk through the language."""
    odd = (
        "{{ [1, 'a', {'b': (2, 3)}] }}{{ {'k': messages[0].role} }}{{ messages[1:] | length }}{{ 'x' ~ 1 ~ none ~ [1] }}"
        "{{ 1 < 2 <= 2 }}{{ 'a' in 'cat' }}{{ 2 not in [1] }}{% for a, b in {'x': 1}.items() if b == 1 %}{{ loop.index }}"
        "{{ a }}{% endfor %}"
        "{% macro f(x, y='z') %}<{{ x ~ y }}{{ caller() if caller }}>{% endmacro %}{{ f(1) }}{% call f(2) %}c{% endcall %}"
        "{{ messages | map(attribute='role') | join(', ') }}{{ 'a,b'.split(',') | reverse | list }}{{ '%05.1f' % 3.14159 }}"
        "{{ '{:>4}|{a}'.format('x', a=1) }}{{ ','.join(['a', 'b']) }}{{ [3, 1, 2] | sort | first }}{{ 'role' in messages[0] }}"
        "{% set t %}in {{ name }}{% endset %}{{ t | upper | trim }}{% for i in [[1, [2]], 3] recursive %}"
        "{{ loop(i) if i is iterable else i }}"
        "{% endfor %}{{ messages | selectattr('role', 'eq', 'user') | list | length }}{{ 'ab' * 3 + 'c' }}{{ (1, 2)[::-1] }}"
        "{{ 'x' | center(5) }}{{ 'a\\nb' | indent(2) }}{{ [1, 2, 3] | batch(2) | list }}{{ 1.234 | round(1) }}"
        "{{ {'a': 1} | tojson(indent=1) }}"
        "{{ [1, 2] | sum }}{{ 'a b' | title | wordcount }}{{ namespace(a=1).a }}{{ 'user' in messages | map(attribute='role') }}"
    )
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    plain.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    plain.globals["raise_exception"] = lambda message: 1 / 0
    for source in (TEMPLATES[name], odd):
        for messages, tools, ask in product(CHATS, (None, TOOLS), (True, False)):
            variables = {"messages": messages, "tools": tools, "add_generation_prompt": ask, "bos_token": "<s>", "eos_token": "</s>"}
            try:
                wanted = plain.from_string(source).render(variables, strftime_now=VECTOR_TIME.strftime)
            except ZeroDivisionError:
                with pytest.raises(TemplateError, match="refuses"):
                    render(source, messages, tools=tools, add_generation_prompt=ask)
            else:
                assert render(source, messages, tools=tools, add_generation_prompt=ask, now=VECTOR_TIME) == wanted


def test_only_plain_data_gets_in() -> None:
    assert render("{{ messages[0].content }}", [UserDict(role="user", content="x")]) == "x"
    assert render("{{ messages[0].content[0].text }}", [{"role": "user", "content": ({"type": "text", "text": "x"},)}]) == "x"
    with pytest.raises(UsageError, match=r"messages\[0\]\.content: .* not PosixPath|not WindowsPath"):
        render("", [{"role": "user", "content": Path("x")}])


@pytest.mark.parametrize(
    "content",
    [
        "a" * 10_000_001,
        ["a"] * 200_000,
        functools.reduce(lambda inner, _: [inner], range(80), "a"),
        functools.reduce(lambda inner, _: [inner, inner], range(40), "a"),
        {("a", "b"): 1},
    ],
)
def test_what_is_given_has_bounds_too(content: object) -> None:
    with pytest.raises(UsageError, match="messages"):
        render("{{ messages }}", [{"role": "user", "content": content}])


def test_any_plain_data_arrives_as_it_is() -> None:
    """The other process is another interpreter: keys that are numbers, halves of characters and numbers that JSON has not get there."""
    odd = {"n": {1: 2, None: 3.5}, "big": 1 << 90, "inf": float("inf"), "half": "\ud800"}
    assert render("{{ messages[0].half }}", [{"role": "user", **odd}]) == "\ud800"
    assert (
        render("{{ messages[0].n }} {{ messages[0].big }} {{ messages[0].inf }}", [{"role": "user", **odd}]) == f"{odd['n']} {1 << 90} inf"
    )


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": ["a"]}]
    with pytest.raises(TemplateError):
        render("{{ messages[0].content.append('b') }}", messages)
    assert messages == [{"role": "user", "content": ["a"]}]


def test_special_tokens_come_plain_or_as_objects_from_either_file(tmp_path: Path) -> None:
    write_json(tmp_path / "special_tokens_map.json", {"bos_token": {"content": "<old>"}, "unk_token": "<unk>", "additional": ["x"]})
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": {"content": "<s>", "rstrip": 0}, "eos_token": None, "add_bos_token": 1})
    assert special_tokens(tmp_path) == {"bos_token": "<s>", "unk_token": "<unk>"}
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}é", encoding="utf-8")
    assert open_template(tmp_path, "chat_template.jinja").render([]) == "<s>é"
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json"):
        special_tokens(tmp_path)


def test_conformance_vectors_are_compared_at_a_fixed_date() -> None:
    template = ChatTemplate("{{ messages[0].content }} {{ strftime_now('%Y-%m-%d') }}", {})
    check_template(template, [ChatVector((Message("user", "x"),), f"x {VECTOR_TIME:%Y-%m-%d}")])
    with pytest.raises(ArtifactError, match="the manifest says 'y'"):
        check_template(template, [ChatVector((Message("user", "x"),), "y")])


def both(default: str, tools: str | None = None) -> ChatTemplates:
    return ChatTemplates(ChatTemplate(default, {}), None if tools is None else ChatTemplate(tools, {}))


def test_chats_with_tools_take_the_template_for_them() -> None:
    """As transformers' get_chat_template does: also for an empty list of tools, not for none."""
    templates = both("{{ messages[0].content }}", "{{ tools | length }}{{ messages[0].content }}")
    assert [templates.render(USER, tools=tools) for tools in (None, [], TOOLS)] == ["hi", "0hi", "1hi"]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content }}",
        "{% if false %}{{ tools }}{% endif %}{{ messages[0].content }}",
        "{% set tools = none %}{{ tools }}",
        "{% for tool in tools if tool.missing %}{{ tool }}{% endfor %}",
        "{{ strftime_now('%H:%M:%S') }}",
    ],
)
def test_tools_that_a_template_does_not_show_are_an_error(source: str) -> None:
    with pytest.raises(TemplateError, match="does not show tools to the model"):
        both(source).render(USER, tools=TOOLS)
    with pytest.raises(TemplateError, match="does not show tools to the model"):
        both("{{ tools }}", source).render(USER, tools=TOOLS)
    both(source).render(USER, tools=[])


def test_a_template_may_take_a_chat_with_tools_only() -> None:
    source = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}x"
    assert both(source).render(USER, tools=TOOLS) == "x"
    with pytest.raises(TemplateError, match="no tools"):
        both(source).render(USER)


def test_vectors_with_tools_are_compared() -> None:
    manifest = minimal_manifest()
    vector = ToolVector((Message("user", "x"),), json.dumps(TOOLS), "1x")
    told = replace(manifest, conformance=replace(manifest.conformance, chat=(), tools=(vector,)))
    check_templates(both("{{ tools | length }}{{ messages[0].content }}"), told)
    with pytest.raises(ArtifactError, match="with tools the chat template renders '1, x'"):
        check_templates(both("{{ tools | length }}, {{ messages[0].content }}"), told)

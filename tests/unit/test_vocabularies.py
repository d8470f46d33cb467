"""Answers in a form on vocabularies of real models: whatever the schema, the logits and the limit, other libraries find them valid."""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import lark
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_constrain import CODE, CONTEXT, SUM, Drawn, texts

import edgekit
from edgekit.errors import UsageError
from edgekit.runtime import Runtime, Sampling, Step
from edgekit.runtime.constrain import Forms, token_bytes
from edgekit.runtime.tokenizer import open_tokenizer
from tiny_artifact import build_tiny
from vocabularies import STOP, VOCABULARIES, byte_level

PADDING = 37
"""Ids behind the vocabulary's end, for which the logits have numbers all the same."""
LETTERS = "abcdefghilnorstu"
REGEXES = ["yes|no", "[a-z]{2,5}( [a-z]+)*!?", r"\d{3}-\d{4}", "[^a]{1,9}", "(?s).{3,30}", "é!|你好+", r"\p{L}+\.", "[\\x00-\\x1f]?a+"]


@pytest.fixture(scope="module", params=list(VOCABULARIES))
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    name = request.param
    yield runtime_of(VOCABULARIES[name](tmp_path_factory.mktemp(name)), STOP[name], tmp_path_factory.mktemp("null"))


def runtime_of(directory: Path, stop: int, folder: Path) -> Runtime:
    """A runtime with the tokenizer of ``directory``, whose logits know more ids than it."""
    tokenizer = open_tokenizer(directory)
    size = tokenizer.backend.get_vocab_size() + PADDING
    with edgekit.load(build_tiny(folder, "null", "llama")) as plain:
        manifest = replace(
            plain.manifest,
            tokens=replace(plain.manifest.tokens, vocab_size=size, stop=(stop,), bos=None, add_bos=False),
            context=replace(plain.manifest.context, length=CONTEXT, rope_switch=None),
        )
    made = Runtime(manifest, tokenizer, None, Drawn(size, CONTEXT, seed=0, kind=0))
    made._forms = Forms(tokenizer, size, (stop,))
    return made


def drawing(runtime: Runtime, seed: int, kind: int) -> Runtime:
    made = Runtime(runtime.manifest, runtime.tokenizer, None, Drawn(runtime.manifest.tokens.vocab_size, CONTEXT, seed=seed, kind=kind))
    made._forms = runtime._forms
    return made


def answered(runtime: Runtime, limit: int, sampling: Sampling, **form: Any) -> list[Step] | None:
    """The steps; None where it was refused before the first."""
    try:
        steps = runtime.generate([4, 5], sampling=sampling, max_tokens=limit, **form)
    except UsageError as error:
        assert "within" in str(error)
        return None
    taken = list(steps)
    assert 1 <= len(taken) <= limit
    forms = runtime._forms
    assert forms is not None
    assert b"".join(forms.bytes[step.token] for step in taken).decode() == texts(taken), "what was matched is what is shown"
    return taken


names = st.text(LETTERS, min_size=1, max_size=5)
leaves: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [True, {"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"type": "number", "minimum": -3, "exclusiveMaximum": 12.5}]
    ),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, st.integers(0, 4), st.integers(0, 30)),
    st.builds(lambda values: {"enum": values}, st.lists(st.one_of(names, st.integers(-9, 99), st.none()), min_size=1, max_size=4)),
    st.just({"type": "string", "pattern": "^[a-e]{2,3}(-[0-9]+)?$"}),
    st.just({"type": "string", "format": "date"}),
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def record(properties: dict[str, Any], needed: int, more: Any) -> dict[str, Any]:
        required = list(properties)[:needed]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": more}

    def array(items: Any, least: int, most: int | None) -> dict[str, Any]:
        return {"type": "array", "items": items, "minItems": least, **({} if most is None else {"maxItems": least + most})}

    return st.one_of(
        st.builds(
            record, st.dictionaries(names, inner, max_size=4), st.integers(0, 4), st.sampled_from([False, True, {"type": "integer"}])
        ),
        st.builds(array, inner, st.integers(0, 2), st.one_of(st.none(), st.integers(0, 3))),
        st.builds(lambda arms: {"anyOf": arms}, st.lists(inner, min_size=1, max_size=3)),
    )


schemas = st.recursive(leaves, nested, max_leaves=8)
samplings = st.one_of(
    st.just(Sampling()),
    st.builds(Sampling, temperature=st.floats(0.3, 3), seed=st.integers(0, 1 << 30), top_k=st.sampled_from([0, 3])),
)
kinds, seeds, limits = st.integers(0, 2), st.integers(0, 1 << 40), st.integers(1, 120)


@settings(max_examples=20, deadline=None)
@given(schema=schemas, seed=seeds, kind=kinds, limit=limits, sampling=samplings)
def test_any_schema_is_kept(vocabulary: Runtime, schema: Any, seed: int, kind: int, limit: int, sampling: Sampling) -> None:
    steps = answered(drawing(vocabulary, seed, kind), limit, sampling, json_schema=schema)
    if steps is not None:
        text = texts(steps)
        jsonschema.validate(json.loads(text), schema)
        check_white_space(text)


def check_white_space(text: str) -> None:
    """At most one space, or a new line and four spaces or a tab a level, between the tokens of JSON."""
    depth = 0
    for part in re.findall(r'"(?:\\.|[^"\\])*"|\s+|[^\s"]', text):
        depth += (part in "[{") - (part in "]}") if len(part) == 1 else 0
        if part.isspace():
            assert part == " " or re.fullmatch(rf"\n( {{0,{4 * depth}}}|\t{{0,{depth}}})", part), text


@settings(max_examples=20, deadline=None)
@given(regex=st.sampled_from(REGEXES), seed=seeds, kind=kinds, limit=limits, sampling=samplings)
def test_an_expression_is_kept(vocabulary: Runtime, regex: str, seed: int, kind: int, limit: int, sampling: Sampling) -> None:
    steps = answered(drawing(vocabulary, seed, kind), limit, sampling, regex=regex)
    if steps is not None:
        text = texts(steps)
        # llguidance knows a newer Unicode than this Python may: what is no character to Python may stand for a digit or a letter, alone.
        new = "".join({c for c in text if unicodedata.category(c) == "Cn"})
        letter, digit = rf"(?:[^\W\d_]|[{new}])" if new else r"[^\W\d_]", rf"[\d{new}]"
        assert re.fullmatch(regex.replace(r"\p{L}", letter).replace(r"\d{", f"{digit}{{"), text)


@settings(max_examples=8, deadline=None)
@given(grammar=st.sampled_from([SUM, CODE]), seed=seeds, kind=kinds, limit=st.integers(1, 40), sampling=samplings)
def test_a_grammar_is_kept(vocabulary: Runtime, grammar: str, seed: int, kind: int, limit: int, sampling: Sampling) -> None:
    steps = answered(drawing(vocabulary, seed, kind), limit, sampling, grammar=grammar)
    if steps is not None:
        lark.Lark(grammar, parser="earley").parse(texts(steps))


@pytest.mark.parametrize("indent", [None, 2, 4, "\t"], ids=["line", "two", "four", "tab"])
def test_usual_layouts_stay_possible(vocabulary: Runtime, indent: Any) -> None:
    """What the mask allows token by token, as a model that wants to write it would."""
    value = {"a": 1, "b": [1, {"c": [True]}], "e": {}}
    text = json.dumps(value, indent=indent)
    forms = vocabulary._forms
    assert forms is not None
    wanted = forms.spelling.spell(text.encode(), 200)
    if wanted is None:  # the poor one has no tab
        assert indent == "\t"
        return
    steps = vocabulary.generate([4], json_schema={"type": "object"}, max_tokens=300, processors=[leading([4], wanted)])
    assert texts(list(steps)) == text


def leading(prompt: list[int], wanted: list[int]) -> Any:
    """A processor that wants ``wanted`` above all."""

    def process(tokens: Any, logits: Any) -> Any:
        said = len(tokens) - len(prompt)
        if said < len(wanted):
            logits[wanted[said]] = 1e9
        return logits

    return process


def test_white_space_without_end_is_not_to_be_had(vocabulary: Runtime) -> None:
    """Of a model that would write nothing else."""
    forms = vocabulary._forms
    assert forms is not None

    def blank(_: Any, logits: Any) -> Any:
        logits[forms.blank > 0] += 1e6
        return logits

    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": [1, 2]}}, "required": ["a", "b"]}
    text = texts(list(vocabulary.generate([4], json_schema=schema, max_tokens=60, processors=[blank])))
    jsonschema.validate(json.loads(text), schema)
    check_white_space(text)


def test_a_grammar_with_a_schema_in_it_is_bounded_too(vocabulary: Runtime) -> None:
    forms = vocabulary._forms
    assert forms is not None

    def blank(_: Any, logits: Any) -> Any:
        logits[forms.blank > 0] += 1e6
        return logits

    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    grammar = f'start: "a=" item\nitem: %json {json.dumps(schema)}\n'
    text = texts(list(vocabulary.generate([4], grammar=grammar, max_tokens=200, processors=[blank])))
    assert json.loads(text.removeprefix("a="))["a"] == 1
    assert max(map(len, re.findall(r"\s+", text)), default=0) <= 33


def test_what_no_token_writes_is_refused_before_the_engine_runs(vocabulary: Runtime) -> None:
    forms = vocabulary._forms
    assert forms is not None
    lacking = [n for n in range(0x20) if not forms.spelling.reachable >> n & 1]
    for byte in lacking[:3]:
        with pytest.raises(UsageError, match=f"no token for the byte {byte:#x}"):
            vocabulary.generate([4], regex=f"a\\x{byte:02x}", max_tokens=50)
        assert texts(list(vocabulary.generate([4], regex=f"a|\\x{byte:02x}", max_tokens=50))) == "a"


def test_bytes_that_only_longer_tokens_hold(tmp_path: Path) -> None:
    """é has no token of its own: it can be had with what follows it, and not alone."""
    every = [bytes([n]) for n in range(0x80)] + ["é!".encode(), "é?a".encode(), b"aa", b"aa"[:1] + b"b"]
    runtime = runtime_of(byte_level(tmp_path / "t", every, ["<end>"]), 0, tmp_path / "null")
    assert texts(list(runtime.generate([4], regex="é!"))) == "é!"
    assert texts(list(runtime.generate([4], regex="(é|aé)[!?]a?", max_tokens=3))) in ("é!", "é!a", "é?a", "aé!", "aé!a", "aé?a")
    assert texts(list(runtime.generate([4], json_schema={"enum": ["é", "é!"]}))) == '"é!"'
    with pytest.raises(UsageError, match="no text of this regular expression"):
        runtime.generate([4], regex="é")


@pytest.mark.parametrize("stop", ["{0}", "b{0}", "b\n{0}", "{0}a", "\n{0}a", "b\n"])
def test_a_stop_text_that_names_a_special_token(vocabulary: Runtime, stop: str) -> None:
    """Also where the decoder still holds back what came before it (a line feed is a token for a byte in Llama's vocabularies)."""
    forms = vocabulary._forms
    assert forms is not None
    special = vocabulary.tokenizer.backend.id_to_token(1)
    spelled = [forms.spelling.spell(text, 9) for text in (b"ab\n", b"ab")]
    script = [*(spelled[0] or ()), 1, *(spelled[1] or ()), 2]
    steps = list(vocabulary.generate([4], stop=stop.format(special), max_tokens=12, processors=[leading([4], script)]))
    shown = {"{0}": "ab\n", "b{0}": None, "b\n{0}": "a", "{0}a": "ab\n", "\n{0}a": "ab", "b\n": "a"}[stop]
    assert steps[-1].stopped_by == (None if shown is None else stop.format(special))
    assert texts(steps) == ("ab\nab" if shown is None else shown)


def test_no_token_is_half_of_something(vocabulary: Runtime) -> None:
    """Bytes are what the token adds: special, unused and missing ids add none."""
    tokens = vocabulary.manifest.tokens
    found = token_bytes(vocabulary.tokenizer, tokens.vocab_size, tokens.stop)
    assert found[-PADDING:] == [b""] * PADDING
    assert all(not found[token] for token in vocabulary.tokenizer.silent)

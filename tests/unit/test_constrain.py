"""Answers in a given form: valid whatever the logits are, the way they are drawn and the limit; checked by other libraries."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import lark
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgekit
from command import Edge
from edgekit.engines.null.session import NullSession
from edgekit.errors import EngineMissing, UsageError
from edgekit.runtime import Runtime, Sampling, Step, grammars
from edgekit.runtime.constrain import Forms, Guide, constraint, token_bytes
from edgekit.runtime.tokenizer import open_tokenizer
from tiny_artifact import build_tiny
from tokenizer_folders import llama

CONTEXT = 400
TREE: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "left": {"$ref": "#/$defs/more"}, "right": {"$ref": "#/$defs/more"}},
            "required": ["v", "left", "right"],
            "additionalProperties": False,
        },
        "more": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, Any] = {
    "anything": True,
    "object": {"type": "object"},
    "record": {
        "type": "object",
        "properties": {
            "device": {"enum": ["light", "thermostat", "blind"]},
            "value": {"type": "integer", "minimum": -5, "maximum": 30},
            "note": {"type": "string", "minLength": 3, "maxLength": 9},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,4}$"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["device", "value", "tags"],
        "additionalProperties": False,
    },
    "tree": TREE,
    "list": {"type": "array", "items": {"type": "number"}},
    "either": {"anyOf": [{"type": "string", "pattern": "^x{30}$"}, {"type": "boolean"}, {"const": {"a": [1, None]}}]},
    "open": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"], "additionalProperties": {"type": "string"}},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "number", "exclusiveMinimum": 0}}, "required": ["b"]},
        ]
    },
    "date": {"type": "string", "format": "date-time"},
}
REGEXES = [
    r"[a-z]+\.com",
    r" leading space",
    r"(ab|cd){3,7}",
    r"[0-9]{3}-[0-9]{4}",
    r"[^a]*a",
    r"(yes|no)( [^ ]+)?",
    r"é+|[一-龥]{2}",
    r".{0,20}!",
]
SUM = 'start: sum\nsum: product | sum "+" product\nproduct: atom | product "*" atom\natom: NUMBER | "(" sum ")"\nNUMBER: /[0-9]+/\n'
CODE = (
    'start: line+\nline: NAME "=" value ";" "\\n"\nvalue: NAME | call | /"[^"\\n]*"/\n'
    'call: NAME "(" [value ("," value)*] ")"\nNAME: /[a-z]+/\n'
)


class Drawn(NullSession):
    """Logits of any size: uniform, heavy on a few tokens, or all equal."""

    def __init__(self, vocab_size: int, context: int, *, seed: int, kind: int) -> None:
        super().__init__(vocab_size, context, seed=seed.to_bytes(8, "little"))
        self.kind = kind

    def _logits(self, state: bytes) -> NDArray[np.float32]:
        logits = super()._logits(state)
        if self.kind == 1:
            return np.sign(logits) * np.abs(logits) ** 12 * np.float32(1e20)
        return np.zeros_like(logits) if self.kind == 2 else logits


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("constrain"), "null", "llama")


@pytest.fixture(scope="module")
def plain(artifact: Path) -> Iterator[Runtime]:
    with edgekit.load(artifact) as runtime:
        yield replace_context(runtime)


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    out = tmp_path_factory.mktemp("phi") / "tiny-phi"
    edgekit.build("tiny-phi", target="cpu", output=out, verify=False)
    with edgekit.load(out) as runtime:
        yield runtime


def replace_context(runtime: Runtime) -> Runtime:
    manifest = replace(runtime.manifest, context=replace(runtime.manifest.context, length=CONTEXT, rope_switch=None))
    return Runtime(manifest, runtime.tokenizer, runtime._template, runtime.session)


def drawing(runtime: Runtime, seed: int, kind: int) -> Runtime:
    """The runtime with other logits; what was prepared for its tokenizer is kept."""
    made = Runtime(
        runtime.manifest, runtime.tokenizer, runtime._template, Drawn(runtime.manifest.tokens.vocab_size, CONTEXT, seed=seed, kind=kind)
    )
    if runtime._forms is None:
        runtime._forms = Forms(runtime.tokenizer, runtime.manifest.tokens.vocab_size, runtime.manifest.tokens.stop)
    made._forms = runtime._forms
    return made


def texts(steps: Sequence[Step]) -> str:
    return "".join(step.text for step in steps)


def answer(runtime: Runtime, limit: int, sampling: Sampling, **form: Any) -> str | None:
    """The text, None where the limit was refused."""
    try:
        steps = runtime.chat([{"role": "user", "content": "hi"}], sampling=sampling, max_tokens=limit, **form)
    except UsageError as error:
        assert "within" in str(error)
        return None
    taken = list(steps)
    assert 1 <= len(taken) <= limit
    return texts(taken)


samplings = st.one_of(
    st.just(Sampling()),
    st.builds(
        Sampling,
        temperature=st.floats(0.1, 5),
        seed=st.integers(0, 1 << 30),
        top_k=st.sampled_from([0, 1, 5]),
        top_p=st.sampled_from([0.4, 1.0]),
    ),
    st.builds(Sampling, repetition_penalty=st.floats(0.5, 3)),
)
kinds, seeds, limits = st.integers(0, 2), st.integers(0, 1 << 40), st.integers(1, 250)


@pytest.mark.parametrize("name", SCHEMAS)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, kind=kinds, limit=limits, sampling=samplings)
def test_any_logits_give_json_that_is_valid(plain: Runtime, name: str, seed: int, kind: int, limit: int, sampling: Sampling) -> None:
    text = answer(drawing(plain, seed, kind), limit, sampling, json_schema=SCHEMAS[name])
    if text is not None:
        jsonschema.validate(json.loads(text), SCHEMAS[name])


@pytest.mark.parametrize("regex", REGEXES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, kind=kinds, limit=limits, sampling=samplings)
def test_any_logits_give_text_that_the_expression_matches(
    plain: Runtime, regex: str, seed: int, kind: int, limit: int, sampling: Sampling
) -> None:
    text = answer(drawing(plain, seed, kind), limit, sampling, regex=regex)
    if text is not None:
        assert re.fullmatch(regex, text)


@pytest.mark.parametrize("grammar", [SUM, CODE], ids=["sum", "code"])
@settings(max_examples=15, deadline=None)
@given(seed=seeds, kind=kinds, limit=st.integers(1, 40), sampling=samplings)
def test_any_logits_give_text_that_lark_parses(plain: Runtime, grammar: str, seed: int, kind: int, limit: int, sampling: Sampling) -> None:
    text = answer(drawing(plain, seed, kind), limit, sampling, grammar=grammar)
    if text is not None:
        lark.Lark(grammar, parser="earley").parse(text)


@pytest.mark.parametrize("style", ["prepend", "metaspace", "bytelevel"])
@settings(max_examples=15, deadline=None)
@given(seed=seeds, kind=kinds, limit=limits)
def test_every_kind_of_vocabulary_writes_what_was_matched(
    plain: Runtime, families: dict[str, Runtime], style: str, seed: int, kind: int, limit: int
) -> None:
    """Spaces at the beginning, byte tokens, characters cut by a token, special and added tokens in the vocabulary."""
    runtime = drawing(families[style], seed, kind)
    regex = r" +the [li\u00e9\u4f60 \U0001f469]*<tool>?( [a-z]+)?"
    steps = list(runtime.generate([1, 5], regex=regex, max_tokens=limit + 20))
    assert re.fullmatch(regex, texts(steps))
    forms = families[style]._forms
    assert forms is not None
    assert b"".join(forms.bytes[s.token] for s in steps).decode() == texts(steps)


@pytest.fixture(scope="module")
def families(plain: Runtime, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runtime]:
    made = {"bytelevel": plain}
    for style in ("prepend", "metaspace"):
        tokenizer = open_tokenizer(llama(tmp_path_factory.mktemp(style), style))
        tokens = replace(plain.manifest.tokens, vocab_size=tokenizer.backend.get_vocab_size() + 3, stop=(2, 1))
        made[style] = Runtime(replace(plain.manifest, tokens=tokens), tokenizer, None, plain.session)
    return made


def test_bytes_of_tokens_are_what_decoding_gives(families: dict[str, Runtime]) -> None:
    for runtime in families.values():
        tokenizer, size = runtime.tokenizer, runtime.manifest.tokens.vocab_size
        found = token_bytes(tokenizer, size, runtime.manifest.tokens.stop)
        before = tokenizer.encode("a")
        for ids in ([5, 6, 7], range(300, min(340, size)), before):
            pieces = b"".join(found[i] for i in ids).decode(errors="replace")
            assert pieces == tokenizer.decode([*before, *(i for i in ids if found[i])]).removeprefix(tokenizer.decode(before))
        assert all(not found[i] for i in (*tokenizer.silent, *runtime.manifest.tokens.stop))


@settings(max_examples=15, deadline=None)
@given(seed=seeds, kind=kinds, sampling=samplings, most=st.integers(1, 8))
def test_lookup_changes_nothing(plain: Runtime, seed: int, kind: int, sampling: Sampling, most: int) -> None:
    runtime = drawing(plain, seed, kind)
    prompt = plain.tokenizer.encode('{"device": "light", "value": 3, "tags": ["on", "on"]} ' * 2)
    one, other = (
        list(runtime.generate(prompt, sampling=sampling, max_tokens=80, lookup=n, json_schema=SCHEMAS["record"])) for n in (0, most)
    )
    assert [(s.token, s.text, s.finish, s.logprob) for s in other] == [(s.token, s.text, s.finish, s.logprob) for s in one]


def test_a_limit_that_is_too_small_is_refused_before_the_engine_runs(plain: Runtime) -> None:
    """The shortest record takes as many tokens as are then allowed: the answer is that record."""
    runtime = drawing(plain, 1, 0)
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
    least = len(plain.tokenizer.encode('{"on":true}'))
    with pytest.raises(UsageError, match=rf"no text of this JSON schema was found that ends within {least - 1} tokens; allow more"):
        runtime.generate("x", json_schema=schema, max_tokens=least - 1)
    assert runtime.session.position == 0
    tight = list(runtime.generate("x", json_schema=schema, max_tokens=least))
    assert (texts(tight), len(tight), tight[-1].finish) == ('{"on":true}', least, "stop")


def test_the_context_is_a_limit_too(plain: Runtime) -> None:
    runtime = drawing(plain, 2, 0)
    steps = list(runtime.generate([5] * (CONTEXT - 60), json_schema=SCHEMAS["record"]))
    assert steps[-1].finish in ("stop", "context")
    jsonschema.validate(json.loads(texts(steps)), SCHEMAS["record"])
    with pytest.raises(UsageError, match="shorter prompt"):
        runtime.generate([5] * (CONTEXT - 10), json_schema=SCHEMAS["record"])


def test_how_it_ends(plain: Runtime) -> None:
    """Complete: stop, without asking the engine for a stop token. Cut at a point where more could have come: length."""
    runtime = drawing(plain, 3, 2)
    assert [(s.text, s.finish) for s in runtime.generate("x", regex="!", max_tokens=5)] == [("!", "stop")]
    assert [s.finish for s in runtime.generate("x", regex="!*", max_tokens=3)][-1] in ("stop", "length")
    last = list(runtime.generate("x", regex="[!?]{3}!*", max_tokens=3))[-1]
    assert last.finish == "length"


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ({"json_schema": "{"}, "no JSON"),
        ({"json_schema": "[1]"}, "an object or true; found list"),
        ({"json_schema": {"a": {1, 2}}}, "no JSON"),
        ({"json_schema": "[" * 100_000}, "no JSON"),
        ({"json_schema": {"type": "nope"}}, "Invalid type: nope"),
        ({"json_schema": {"not": {"type": "string"}}}, r'cannot be enforced: .*\["not"\]'),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"type": "string", "format": "colour"}}, "Unknown format: colour"),
        ({"json_schema": {"$ref": "https://example.org/schema"}}, "does not fetch"),
        ({"json_schema": {"x-guidance": {"lenient": True}, "not": {}}}, "x-guidance"),
        ({"json_schema": False}, "it is false"),
        ({"json_schema": {"properties": {"a": {"minProperties": 2}}}}, "minProperties above 1"),
        (
            {"json_schema": {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}, "$ref": "#/$defs/a"}},
            "no text of",
        ),
        ({"json_schema": {"type": "string", "const": "\ud800"}}, "half a character"),
        ({"json_schema": {"properties": {f"k{i}": {} for i in range(10_000)}}}, "too long to compile: it has 10000 names"),
        ({"json_schema": {"required": [f"k{i}" for i in range(10_000)]}}, "too long to compile"),
        ({"json_schema": {"anyOf": [{"properties": {f"k{i}": {} for i in range(500)}}] * 10}}, "too long to compile"),
        ({"json_schema": {"enum": [{f"k{i}": 1 for i in range(10_000)}]}}, "too long to compile"),
        ({"json_schema": {"prefixItems": [{"type": "integer"}] * 10_000}}, "too long to compile: it has 10002 lists and objects"),
        ({"json_schema": {"patternProperties": {f"^a{i}": {} for i in range(300)}}}, "too long to compile: it has 300 patternProperties"),
        ({"json_schema": {"multipleOf": 999_983}}, "too long to compile: it has .* multipleOf"),
        ({"json_schema": {"multipleOf": 0.999983}}, "too long to compile"),
        ({"json_schema": {"allOf": [{"multipleOf": n} for n in (97, 101, 103)]}}, "too long to compile"),
        ({"json_schema": {"properties": {str(n): {"multipleOf": 9973} for n in range(5)}}}, "too long to compile"),
        ({"grammar": 'start: %json {"multipleOf": 999983}'}, "too long to compile"),
        ({"regex": "("}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": 3}, "found int"),
        ({"regex": "a\0"}, "NUL"),
        ({"regex": "\ud800"}, "half a character"),
        ({"regex": "a" * 2_000_000}, "at most"),
        ({"regex": "a{5000}"}, "no text of this regular expression .* within 95 tokens"),
        ({"grammar": "start: nope"}, "unknown name"),
        ({"grammar": 'start: start "a"'}, "no text of this grammar"),
        ({"grammar": "start: <|end|>"}, "special tokens"),
        ({"grammar": "start: <[5]>"}, "special tokens"),
        ({"grammar": "start: a\na[max_tokens=3]: /.*/"}, "attributes"),
        ({"grammar": 'start: a\na[stop="x"]: /.*/'}, "attributes"),
        ({"grammar": 'start: A\nA: ~"a"'}, "complement"),
        ({"grammar": 'start: %json {"x-guidance": {"item_separator": "x"}}'}, "x-guidance"),
        ({"grammar": 'start: %json {"minProperties": 2}'}, "minProperties above 1"),
        ({"grammar": "start: %json {"}, "no JSON"),
        ({"grammar": "start: %json false"}, "it is false"),
        ({"regex": "a", "grammar": "start: /a/"}, "regex and grammar are given"),
        ({"regex": "a", "stop": "a"}, "stop string"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_a_form_is_refused_at_once(plain: Runtime, form: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        plain.generate("x", max_tokens=100, **form)


def test_many_optional_properties_can_be_had(plain: Runtime) -> None:
    schema = {"type": "object", "properties": {f"k{i}": {"multipleOf": 0.25} for i in range(500)}, "additionalProperties": False}
    with pytest.raises(UsageError, match="too long"):
        plain.generate("x", json_schema={**schema, "properties": {f"k{i}": {"multipleOf": 25} for i in range(500)}})
    schema["properties"] = {f"k{i}": {"type": "integer"} for i in range(500)}
    jsonschema.validate(json.loads(texts(list(plain.generate("x", json_schema=schema, max_tokens=60)))), schema)


def test_a_search_ends_where_nobody_waits_any_more(plain: Runtime) -> None:
    """The server's worker says so where --timeout has passed or the client is gone."""
    runtime = drawing(plain, 1, 0)
    asked: list[int] = []

    def given_up() -> bool:
        asked.append(1)
        return len(asked) > 5

    runtime.given_up = given_up
    with pytest.raises(UsageError, match="given up"):
        runtime.generate("x", regex="(ab){200}", max_tokens=9)
    assert len(asked) == 6


def test_json_is_nested_no_deeper_than_it_can_be_taken_back(plain: Runtime) -> None:
    tokens = plain.manifest.tokens
    wanted = constraint(json_schema={"type": "array"}, regex=None, grammar=None)
    assert wanted is not None
    guide = Guide(wanted, Forms(plain.tokenizer, tokens.vocab_size, tokens.stop), 5000)
    bracket = plain.tokenizer.backend.token_to_id("[")
    for _ in range(64):
        assert guide.mask()[bracket] and guide.take(bracket)
    assert not guide.take(bracket)


def test_processors_may_choose_but_not_break(plain: Runtime) -> None:
    def only(token: int) -> Any:
        def process(tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
            logits[np.arange(logits.size) != token] = -np.inf
            return logits

        return process

    yes = plain.tokenizer.encode("!")[0]
    assert texts(list(plain.generate("x", regex="[!?]{2}", processors=[only(yes)]))) == "!!"
    with pytest.raises(UsageError, match="processors left no token"):
        list(plain.generate("x", regex=r"\?", processors=[only(yes)]))


def test_a_guide_takes_the_known_way_when_nothing_else_is_left(plain: Runtime) -> None:
    """Ten bs after an a do not fit, the mask cannot know it, and ``take`` says so."""
    tokens = plain.manifest.tokens
    wanted = constraint(json_schema=None, regex="ab{10}|c", grammar=None)
    assert wanted is not None
    guide = Guide(wanted, Forms(plain.tokenizer, tokens.vocab_size, tokens.stop), 3)
    a, c = (plain.tokenizer.encode(letter)[0] for letter in "ac")
    assert guide.mask()[[a, c]].all()
    assert not guide.take(a)
    assert guide.planned() == c
    assert guide.take(c)
    assert guide.finished


@pytest.mark.parametrize("key", ["id", r"\u0069d", r"i\u0064"])
def test_a_key_of_the_schema_cannot_come_again_in_disguise(plain: Runtime, key: str) -> None:
    """JSON's readers take the last of two equal keys, so the second could be of another type."""
    tokens = plain.manifest.tokens
    wanted = constraint(json_schema=SCHEMAS["open"], regex=None, grammar=None)
    assert wanted is not None
    guide = Guide(wanted, Forms(plain.tokenizer, tokens.vocab_size, tokens.stop), 90)
    for token in plain.tokenizer.encode(f'{{"id":1,"{key}'):
        if not guide.mask()[token]:
            return
        assert guide.take(token)
    assert not guide.mask()[plain.tokenizer.encode('"')[0]]


def test_without_a_stop_token_it_is_refused(plain: Runtime) -> None:
    with pytest.raises(UsageError, match="no stop token"):
        Forms(plain.tokenizer, plain.manifest.tokens.vocab_size, ())


def test_without_the_library_it_says_what_to_install(plain: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    grammars.llguidance.cache_clear()
    with pytest.raises(EngineMissing, match=r"edgekit\[grammar\]"):
        plain.generate("x", regex="a")
    grammars.llguidance.cache_clear()


def test_the_library_is_loaded_only_when_it_is_needed(artifact: Path) -> None:
    code = (
        "import sys, edgekit\nwith edgekit.load(sys.argv[1]) as runtime:\n"
        "    runtime.complete('x', max_tokens=2)\nassert 'llguidance' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "toolkit")}
    subprocess.run([sys.executable, "-c", code, str(artifact)], env=environment, check=True)


def test_tiny_phi_answers_in_the_form(phi: Runtime) -> None:
    """Its own JSON where that fits the schema; a schema that asks for something else gets it all the same."""
    prompt = [{"role": "user", "content": "turn on the kitchen light"}]
    free = json.loads(phi.complete(prompt).text)
    own = {"type": "object", "properties": {key: {"type": "string"} for key in free}, "required": list(free), "additionalProperties": False}
    kept = phi.complete(prompt, json_schema=own)
    assert (json.loads(kept.text), kept.finish) == (free, "stop")
    for seed in range(5):
        warm = Sampling(temperature=1.5, seed=seed)
        for limit in (40, 60, 200):
            text = phi.complete(prompt, json_schema=SCHEMAS["record"], max_tokens=limit, sampling=warm, lookup=4).text
            jsonschema.validate(json.loads(text), SCHEMAS["record"])
    assert re.fullmatch("(yes|no)!", phi.complete(prompt, regex="(yes|no)!").text)


def test_the_command_takes_files_and_an_expression(edge: Edge, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"enum": ["on", "off"]}), encoding="utf-8")
    (tmp_path / "g.lark").write_text('start: "on" | "off"', encoding="utf-8")
    assert json.loads(edge("run", str(artifact), "hi", "--json-schema", str(tmp_path / "s.json")).out) in ("on", "off")
    assert edge("run", str(artifact), "hi", "--grammar", str(tmp_path / "g.lark"), "--raw").out.strip() in ("on", "off")
    assert edge("run", str(artifact), "hi", "--regex", "o(n|ff)").out.strip() in ("on", "off")
    for options in (["--grammar", str(tmp_path / "none")], ["--regex", "("], ["--regex", "a", "--json-schema", str(tmp_path / "s.json")]):
        ended = edge("run", str(artifact), "hi", *options)
        assert (ended.code, ended.out) == (2, "")

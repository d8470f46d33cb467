"""Schemas, expressions and grammars of users as llguidance takes them: bounded, and refused where it could not keep what they say."""

import functools
import importlib
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from edgekit.errors import EngineMissing, UsageError
from edgekit.runtime.layout import pattern

LIMIT = 1 << 20
"""Characters of a schema, expression or grammar."""
REFERENCES, RULES = 128, 250
"""Of a schema, of a grammar. llguidance follows them recursively, and a long chain of them overruns the stack and ends the process: of
8 MB between 1,000 and 3,000, of 1 MB, as a thread may have, between 128 and 256 references and between 256 and 512 rules."""
SUBSCHEMAS, NAMES, PATTERNS, MULTIPLE = 5000, 1000, 64, 10_000
"""Of a schema: objects and lists in it; the root of the sum of the squares of how many names its objects have; patternProperties; the sum
of its multipleOf without their decimal points (what they have in common, where they may meet in one number). Compiling grows with the
square of an object's names (1,000: 1 s, 10,000: three minutes), the cube of the patterns and with multipleOf, and cannot be broken off."""
LEVELS, LEVELS_WITHIN = 64, 8
"""That JSON may be indented by: an answer of its own (where layout.py sees to its depth besides), and inside of a grammar."""
ESCAPES = '"\\bfnrt'
"""After a backslash in JSON. With \\u a key could be spelled so that llguidance does not know it for one that the schema has a rule for."""

Kind = Literal["JSON schema", "regular expression", "grammar"]


@functools.cache
def llguidance() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise EngineMissing('an answer in a given form needs llguidance; install it: pip install "edgekit[grammar]"') from None


def from_regex(regex: object) -> str:
    """Raises UsageError, EngineMissing."""
    made: str = llguidance().LLMatcher.grammar_from_regex(_bounded("regular expression", regex))
    return made


def from_schema(schema: object) -> str:
    """Given as text or as what JSON parses to. Raises UsageError, EngineMissing."""
    try:
        parsed = json.loads(_bounded("JSON schema", schema)) if isinstance(schema, str) else schema
        text = json.dumps(parsed, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"the JSON schema is no JSON: {str(error)[:200]}") from None
    _check_schema(parsed, text)
    given = _bounded("JSON schema", text) if isinstance(parsed, Mapping) else "{}"
    try:
        made: str = llguidance().LLMatcher.grammar_from_json_schema(given, overrides=_options(LEVELS))
    except ValueError as error:  # its reader of JSON allows fewer levels than newer Pythons' do
        raise UsageError(f"this JSON schema cannot be enforced: {str(error)[:200]}") from None
    return made


def _options(levels: int) -> dict[str, str]:
    """Of llguidance, for JSON."""
    return {"json_allowed_escapes": ESCAPES, "whitespace_pattern": pattern(levels)}


def _check_schema(parsed: object, text: str) -> None:
    """A schema may not bring options of its own (``x-guidance``): they can make JSON of it that is none, or leave out what it demands. A
    key may come twice (JSON's readers take the last), so ``minProperties`` could not be kept."""
    if not isinstance(parsed, (Mapping, bool)):
        raise UsageError(f"a JSON schema is an object or true; found {type(parsed).__name__}")
    if isinstance(parsed, Mapping) and "x-guidance" in parsed:
        raise UsageError("the JSON schema has the key 'x-guidance', which changes what the others mean; take it out")
    if parsed is False:
        raise UsageError("this JSON schema cannot be enforced: it is false, which nothing is valid under")
    _check_references("JSON schema", text)
    _check_parts(parsed, meeting='"allOf"' in text or '"$ref"' in text)


def _bounded(kind: Kind, text: object) -> str:
    if not isinstance(text, str):
        raise UsageError(f"a {kind} is text; found {type(text).__name__}")
    if len(text) > LIMIT:
        raise UsageError(f"the {kind} has {len(text):,} characters; at most {LIMIT:,} are read")
    if "\0" in text or re.search("[\ud800-\udfff]", text):
        raise UsageError(f"the {kind} holds NUL or half a character")
    return text


def _check_references(kind: Kind, text: str) -> None:
    count = text.count('"$ref"') + text.count('"$dynamicRef"')
    if count > REFERENCES:
        raise UsageError(f"the {kind} has {count:,} references; at most {REFERENCES} are followed")


def _check_parts(schema: object, *, meeting: bool) -> None:
    """Raises UsageError for what could not be kept, and for more than can be compiled in a second or two. meeting: of several schemas for
    one value."""
    count = squares = patterns = 0
    multiples = [1]
    waiting = [schema]  # not by recursion: newer Pythons' json reads more levels than calls may be nested
    while waiting:
        found = waiting.pop()
        if isinstance(found, (Mapping, list, tuple)):
            count += 1
            waiting += found.values() if isinstance(found, Mapping) else found
        if not isinstance(found, Mapping):
            continue
        least, required, pattern_properties = found.get("minProperties"), found.get("required"), found.get("patternProperties")
        if isinstance(least, (int, float)) and least > 1:
            raise UsageError("this JSON schema cannot be enforced: minProperties above 1; name the keys in required")
        squares += max(len(found), len(required) if isinstance(required, (list, tuple)) else 0) ** 2
        patterns += len(pattern_properties) if isinstance(pattern_properties, Mapping) else 0
        multiples.append(_digits(found.get("multipleOf")))
    for what, size, most in (
        ("names of properties (the root of the sum of their squares by object)", math.isqrt(squares), NAMES),
        ("lists and objects in it", count, SUBSCHEMAS),
        ("patternProperties", patterns, PATTERNS),
        ("as its multipleOf, taken together", math.lcm(*multiples) if meeting else sum(multiples), MULTIPLE),
    ):
        if size > most:
            raise UsageError(f"this JSON schema would take too long to compile: it has {min(size, 10**9)} {what}; at most {most} are taken")


def _digits(multiple: object) -> int:
    """0.25 as 25: that many states an automaton for it has. More than MULTIPLE is as good as anything more."""
    if isinstance(multiple, bool) or not isinstance(multiple, (int, float)) or multiple <= 0:
        return 1
    digits = Decimal(repr(multiple)).normalize().as_tuple().digits if isinstance(multiple, float) else ()
    return min(MULTIPLE + 1, int("".join(map(str, digits))) if digits else int(multiple))


_PIECE = re.compile(r'(?P<literal>"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/)|(?P<json>%json\s*)')
_RULE = re.compile(r"[\w\]]\s*:")
_ATTRIBUTES = re.compile(r"(?m)^\s*[?!]*[\w-]+\s*\[[^\]\n]*\]\s*:")


def from_lark(grammar: object) -> str:
    """Refuses what would make the text that is shown another than the one that was matched, or match what is no text. Raises UsageError,
    EngineMissing."""
    text = _bounded("grammar", grammar)
    if "x-guidance" in text:
        raise UsageError("the grammar holds a JSON schema with the key 'x-guidance', which changes what the others mean; take it out")
    _check_references("grammar", text)
    whole, rest = _with_options(text)
    if len(found_rules := _RULE.findall(rest)) > RULES:
        raise UsageError(f"the grammar has {len(found_rules):,} rules; at most {RULES} are followed")
    if found := _ATTRIBUTES.search(rest):
        raise UsageError(f"the grammar gives a rule attributes ({found[0].strip()}), which edgekit does not take; leave out what is in [ ]")
    if "<[" in rest or re.search(r"<[\w|]", rest):
        raise UsageError("the grammar names special tokens (<...>), which are never part of an answer's text; take them out")
    if re.search(r"~(?!\s*\d)", rest):
        raise UsageError("the grammar has a complement (~), which also matches what is no UTF-8; write it as a regular expression /[^...]/")
    made: str = llguidance().LLMatcher.grammar_from_lark(whole)
    return made


def _with_options(text: str) -> tuple[str, str]:
    """The grammar with our options in the JSON schemas it holds (``%json {...}``), and what of it is neither literal nor schema."""
    whole, rest, at = "", "", 0
    while (piece := _PIECE.search(text, at)) is not None:
        rest += text[at : piece.start()] + '""'
        whole += text[at : piece.start()]
        at = piece.end()
        if piece["json"] is None:
            whole += piece[0]
            continue
        try:
            schema, at = json.JSONDecoder().raw_decode(text, at)
            written = _bounded("JSON schema", json.dumps(schema, allow_nan=False, ensure_ascii=False))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"a JSON schema in the grammar is no JSON: {str(error)[:200]}") from None
        _check_schema(schema, written)
        whole += "%json " + json.dumps({**({} if schema is True else schema), "x-guidance": _options(LEVELS_WITHIN)}, ensure_ascii=False)
    return whole + text[at:], rest + text[at:]

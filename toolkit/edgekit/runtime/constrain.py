"""Answers in a given form: a JSON schema, a regular expression or a Lark grammar, by llguidance (https://github.com/guidance-ai/llguidance).

The answer is valid to its end, also where ``max_tokens`` or the context cuts in: at every step a text is known that completes the answer
within the tokens that are left (closing.py). A token after which no such text is found is not taken; where nothing else is left, the known
text is written out. A limit within which no valid answer is found is refused before the engine runs.
"""

import functools
import importlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineMissing, UsageError
from edgekit.runtime.closing import END, LONGEST, Spelling, first, following
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.text_work import byte_level

LIMIT = 1 << 20
"""Characters of a schema, expression or grammar."""
REFERENCES, RULES = 128, 250
"""Of a schema, of a grammar. llguidance follows them recursively, and a long chain of them overruns the stack and ends the process: of
8 MB between 1,000 and 3,000, of 1 MB, as a thread may have, between 128 and 256 references and between 256 and 512 rules."""
ESCAPES = '"\\bfnrt'
"""After a backslash in JSON. With \\u a key could be spelled so that llguidance does not know it for one that the schema has a rule for."""
FIRST_EFFORT, EFFORT = 4000, 400
"""Texts looked at to find a way to the end: from the beginning, and after a token. Some 30 microseconds each."""

Kind = Literal["JSON schema", "regular expression", "grammar"]


@dataclass(frozen=True)
class Constraint:
    """What an answer has to be, in words (``kind``) and for llguidance."""

    kind: Kind
    grammar: str


class Forms:
    """What constraints need of one artifact's tokenizer: its tokens as bytes. Costs about a second for 200,000 tokens; keep it.

    stop: ids that end an answer. Raises EngineMissing when llguidance is not installed, UsageError when there is no stop token.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop: Collection[int]) -> None:
        self.library = _llguidance()
        if not stop:
            raise UsageError("the artifact has no stop token, so an answer in a given form could not end; build it again")
        self.stop = np.array(sorted(stop), np.intp)
        self.vocab_size = vocab_size
        self.bytes = token_bytes(tokenizer, vocab_size, stop)
        self.spelling = Spelling({text: token for token, text in enumerate(self.bytes) if 0 < len(text) <= LONGEST})
        self.usable = np.array([bool(text) for text in self.bytes])
        if missing := [n for n in (*range(0xC0), *range(0xC2, 0xF5)) if bytes([n]) not in self.spelling.tokens]:
            raise UsageError(f"the tokenizer has no token for the byte {missing[0]:#x}, so it cannot write every text")
        self.tokens = _tokens(self.library, self.bytes, self.spelling)
        single = [bytes([n]) for n in range(END)]
        self.single = _tokens(self.library, single, Spelling({text: n for n, text in enumerate(single)}))


def constraint(*, json_schema: Mapping[str, object] | bool | str | None, regex: str | None, grammar: str | None) -> Constraint | None:
    """The one that is given, None without any. Raises UsageError for more than one, or for what cannot be one; EngineMissing."""
    given = [kind for kind, value in (("json_schema", json_schema), ("regex", regex), ("grammar", grammar)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are given, and an answer can have only one form")
    if json_schema is not None:
        return Constraint("JSON schema", _from_schema(json_schema))
    if regex is not None:
        return Constraint("regular expression", _llguidance().LLMatcher.grammar_from_regex(_bounded("regular expression", regex)))
    if grammar is not None:
        return Constraint("grammar", _from_lark(_bounded("grammar", grammar)))
    return None


class Guide:
    """Leads one answer of at most ``limit`` tokens. For each token ask ``mask``, then ``take`` the one that was chosen.

    Raises UsageError: the constraint is malformed, asks for what llguidance does not implement (which it names), matches nothing, or no
    answer within ``limit`` is found.
    """

    def __init__(self, wanted: Constraint, forms: Forms, limit: int) -> None:
        self._kind, self._forms, self._left = wanted.kind, forms, limit
        self._tokens = _matcher(forms, forms.tokens, wanted)
        self._single = _matcher(forms, forms.single, wanted)
        self._finished = False
        plan = first(self._single, forms.spelling, limit, FIRST_EFFORT)
        if plan is None:
            raise UsageError(
                f"no text of this {self._kind} was found that ends within {limit:,} tokens; allow more (max_tokens, or a shorter prompt), "
                "or check that it matches anything at all"
            )
        self._plan = plan

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing could follow but a stop token."""
        return self._finished

    def mask(self) -> NDArray[np.bool_]:
        """Which tokens may come next, bool [vocab]. Stop tokens only where the answer may end."""
        packed = np.frombuffer(self._tokens.compute_bitmask(), np.uint8)
        self._check(self._tokens)
        bits = np.unpackbits(packed, count=self._forms.vocab_size, bitorder="little")
        allowed: NDArray[np.bool_] = (bits > 0) & self._forms.usable
        allowed[self._forms.stop] = self._tokens.is_accepting()
        return allowed

    def take(self, token: int) -> bool:
        """Whether ``token``, which the mask allows, leaves an answer that can be completed within the limit. If so it is the next."""
        text = self._forms.bytes[token]
        if not text:  # a stop token
            self._finished = True
            return True
        left = self._left - 1
        after = self._single.deep_copy()
        after.consume_tokens(list(text))
        self._check(after)
        plan = self._plan[len(text) :] if self._plan.startswith(text) else None
        if plan is None or self._forms.spelling.spell(plan, left) is None:
            plan = following(after, self._plan, self._forms.spelling, left, EFFORT)
        if plan is None:
            return False
        self._tokens.consume_token(token)
        self._check(self._tokens)
        self._single, self._plan, self._left = after, plan, left
        self._finished = self._tokens.is_accepting() and self._tokens.is_stopped()
        return True

    def planned(self) -> int:
        """A token that ``take`` surely takes: the next on the known way to the end."""
        if not self._plan:
            return int(self._forms.stop[0])
        spelled = self._forms.spelling.spell(self._plan, self._left)
        if not spelled:
            raise RuntimeError("the way to the end of the answer is longer than what is left")
        return spelled[0]

    def _check(self, matcher: Any) -> None:
        """llguidance keeps its errors to itself until asked."""
        if matcher.is_error():
            raise UsageError(f"this {self._kind} became too much for llguidance: {_brief(matcher.get_error())}; make it simpler")


def token_bytes(tokenizer: Tokenizer, vocab_size: int, stop: Collection[int]) -> list[bytes]:
    """What each token adds to a text; empty for what an answer in a form may not hold: stop and added tokens and ids without text.

    As edgekit's own decoder has it (llguidance reads a Metaspace decoder's tokens wrongly), inside a text: not where a decoder strips
    a leading space.
    """
    backend = tokenizer.backend
    named = {token: piece for piece, token in backend.get_vocab().items()}
    pieces = [named.get(token) for token in range(vocab_size)]
    none = {*stop, *backend.get_added_tokens_decoder()}
    if (backend.decoder or {}).get("type") == "ByteLevel":
        table = byte_level()
        return [
            b"" if piece is None or token in none or not set(piece) <= table.keys() else bytes(table[c] for c in piece)
            for token, piece in enumerate(pieces)
        ]
    before = tokenizer.encode("a")
    start = len(tokenizer.decode(before))
    texts = backend.decode_batch([[*before, token] for token in range(vocab_size)], skip_special_tokens=True)
    plain = [b"" if piece is None or token in none else texts[token][start:].encode() for token, piece in enumerate(pieces)]
    for token in tokenizer.bytes_:
        plain[token] = b"" if token in none else bytes.fromhex((pieces[token] or "")[3:5])
    return plain


@functools.cache
def _llguidance() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise EngineMissing('an answer in a given form needs llguidance; install it: pip install "edgekit[grammar]"') from None


@dataclass(frozen=True)
class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    eos_token_id: int
    spelling: Spelling
    bos_token_id: None = None

    def __call__(self, text: bytes | str) -> list[int]:
        """Of what can only come next; any tokens will do, but without them llguidance takes it for written."""
        raw = text.encode() if isinstance(text, str) else text
        return self.spelling.spell(raw, len(raw)) or []


def _tokens(library: Any, texts: Sequence[bytes], spelling: Spelling) -> Any:
    """An LLTokenizer of ``texts`` and a token of its own, behind them, for the end. Which tokens end an answer is none of its business."""
    end = len(texts)
    vocabulary = _Vocabulary([*texts, b"<end>"], [end], end, spelling)
    return library.LLTokenizer(library.TokenizerWrapper(vocabulary), n_vocab=end + 1)


def _matcher(forms: Forms, tokens: Any, wanted: Constraint) -> Any:
    made = forms.library.LLMatcher(tokens, wanted.grammar, log_level=0)
    problem = made.get_error() if made.is_error() else "; ".join(made.get_grammar_warnings())
    if problem:
        raise UsageError(f"this {wanted.kind} cannot be enforced: {_brief(problem)}")
    return made


def _brief(problem: str) -> str:
    text = " ".join(problem.split("<state>")[0].split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def _bounded(kind: Kind, text: object) -> str:
    if not isinstance(text, str):
        raise UsageError(f"a {kind} is text; found {type(text).__name__}")
    if len(text) > LIMIT:
        raise UsageError(f"the {kind} has {len(text):,} characters; at most {LIMIT:,} are read")
    if "\0" in text or re.search("[\ud800-\udfff]", text):
        raise UsageError(f"the {kind} holds NUL or half a character")
    return text


def _from_schema(schema: object) -> str:
    """Given as text or as what JSON parses to. The schema may not bring options of its own (``x-guidance``): they can make JSON of it that
    is none, or leave out what it demands. A key may come twice (JSON's readers take the last), so ``minProperties`` could not be kept."""
    try:
        parsed = json.loads(_bounded("JSON schema", schema)) if isinstance(schema, str) else schema
        text = json.dumps(parsed, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"the JSON schema is no JSON: {str(error)[:200]}") from None
    if not isinstance(parsed, (Mapping, bool)):
        raise UsageError(f"a JSON schema is an object or true; found {type(parsed).__name__}")
    if isinstance(parsed, Mapping) and "x-guidance" in parsed:
        raise UsageError("the JSON schema has the key 'x-guidance', which changes what the others mean; take it out")
    _check_references("JSON schema", text)
    if _counts_keys(parsed):
        raise UsageError("this JSON schema cannot be enforced: minProperties above 1; name the keys in required")
    if parsed is False:
        raise UsageError("this JSON schema cannot be enforced: it is false, which nothing is valid under")
    given = _bounded("JSON schema", text) if isinstance(parsed, Mapping) else "{}"
    try:
        made: str = _llguidance().LLMatcher.grammar_from_json_schema(given, overrides={"json_allowed_escapes": ESCAPES})
    except ValueError as error:  # its reader of JSON allows fewer levels than newer Pythons' do
        raise UsageError(f"this JSON schema cannot be enforced: {str(error)[:200]}") from None
    return made


def _check_references(kind: Kind, text: str) -> None:
    count = text.count('"$ref"') + text.count('"$dynamicRef"')
    if count > REFERENCES:
        raise UsageError(f"the {kind} has {count:,} references; at most {REFERENCES} are followed")


def _counts_keys(schema: object) -> bool:
    waiting = [schema]  # not by recursion: newer Pythons' json reads more levels than calls may be nested
    while waiting:
        found = waiting.pop()
        if isinstance(found, Mapping):
            least = found.get("minProperties")
            if isinstance(least, (int, float)) and least > 1:
                return True
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
    return False


_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/')
_RULE = re.compile(r"[\w\]]\s*:")
_ATTRIBUTES = re.compile(r"(?m)^\s*[?!]*[\w-]+\s*\[[^\]\n]*\]\s*:")


def _from_lark(text: str) -> str:
    """Refuses what would make the text that is shown another than the one that was matched, or match what is no text."""
    if "x-guidance" in text:
        raise UsageError("the grammar holds a JSON schema with the key 'x-guidance', which changes what the others mean; take it out")
    rest = _LITERAL.sub('""', text)
    if "%json" in rest and "\\u" in text:
        raise UsageError("the grammar holds a JSON schema and an escape \\u; write the character itself")
    _check_references("grammar", text)
    if len(found_rules := _RULE.findall(rest)) > RULES:
        raise UsageError(f"the grammar has {len(found_rules):,} rules; at most {RULES} are followed")
    if found := _ATTRIBUTES.search(rest):
        raise UsageError(f"the grammar gives a rule attributes ({found[0].strip()}), which edgekit does not take; leave out what is in [ ]")
    if "<[" in rest or re.search(r"<[\w|]", rest):
        raise UsageError("the grammar names special tokens (<...>), which are never part of an answer's text; take them out")
    if re.search(r"~(?!\s*\d)", rest):
        raise UsageError("the grammar has a complement (~), which also matches what is no UTF-8; write it as a regular expression /[^...]/")
    made: str = _llguidance().LLMatcher.grammar_from_lark(text)
    return made

"""Answers in a given form: a JSON schema, a regular expression or a Lark grammar, by llguidance (https://github.com/guidance-ai/llguidance).

The answer is valid to its end, also where ``max_tokens`` or the context cuts in: at every step a text is known that completes the answer
within the tokens that are left (closing.py). A token after which no such text is found is not taken; where nothing else is left, the known
text is written out. A limit within which no valid answer is found is refused before the engine runs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UsageError
from edgekit.runtime.closing import END, LONGEST, GivenUp, Spelling, TooMuch, first, following
from edgekit.runtime.grammars import Kind, from_lark, from_regex, from_schema, llguidance
from edgekit.runtime.layout import DEEPEST, Layout, blank
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.text_work import byte_level

ITEMS, STEP_ITEMS = 10_000, 250_000
"""Of llguidance's parser: its own 2,000 and 50,000 refuse an object of 500 optional properties. A step may take some 12 ms."""
FIRST_EFFORT, EFFORT = 4000, 400
"""Texts looked at to find a way to the end: from the beginning, and after a token. Some 30 microseconds each."""


@dataclass(frozen=True)
class Constraint:
    """What an answer has to be, in words (``kind``) and for llguidance."""

    kind: Kind
    grammar: str


SINGLE = Spelling({bytes([n]): n for n in range(END)})
"""A vocabulary of all single bytes."""


class Forms:
    """What constraints need of one artifact's tokenizer: its tokens as bytes. Costs about a second for 200,000 tokens; keep it.

    stop: ids that end an answer. Raises EngineMissing when llguidance is not installed, UsageError when there is no stop token.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop: Collection[int]) -> None:
        self.library = llguidance()
        self.limits = self.library.LLParserLimits(max_items_in_row=ITEMS, step_max_items=STEP_ITEMS)
        if not stop:
            raise UsageError("the artifact has no stop token, so an answer in a given form could not end; build it again")
        self.stop = np.array(sorted(stop), np.intp)
        self.vocab_size = vocab_size
        self.bytes = token_bytes(tokenizer, vocab_size, stop)
        self.spelling = Spelling({text: token for token, text in enumerate(self.bytes) if 0 < len(text) <= LONGEST})
        self.usable = np.array([bool(text) for text in self.bytes])
        self.blank = np.array([blank(text) for text in self.bytes])
        # llguidance has to be able to spell whatever can only come next; what it spells with these is never chosen.
        lacking = [bytes([n]) for n in range(END) if bytes([n]) not in self.spelling.tokens]
        every = {**self.spelling.tokens, **{text: vocab_size + i for i, text in enumerate(lacking)}}
        self.tokens = _tokens(self.library, [*self.bytes, *lacking], Spelling(every))
        self.single = _tokens(self.library, list(SINGLE.tokens), SINGLE)


def constraint(*, json_schema: Mapping[str, object] | bool | str | None, regex: str | None, grammar: str | None) -> Constraint | None:
    """The one that is given, None without any. Raises UsageError for more than one, or for what cannot be one; EngineMissing."""
    given = [kind for kind, value in (("json_schema", json_schema), ("regex", regex), ("grammar", grammar)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are given, and an answer can have only one form")
    if json_schema is not None:
        return Constraint("JSON schema", from_schema(json_schema))
    if regex is not None:
        return Constraint("regular expression", from_regex(regex))
    if grammar is not None:
        return Constraint("grammar", from_lark(grammar))
    return None


class Guide:
    """Leads one answer of at most ``limit`` tokens. For each token ask ``mask``, then ``take`` the one that was chosen.

    given_up: ends a search in the middle.
    Raises UsageError: the constraint is malformed, asks for what llguidance does not implement (which it names), matches nothing, or no
    answer within ``limit`` is found.
    """

    def __init__(self, wanted: Constraint, forms: Forms, limit: int, given_up: GivenUp = lambda: False) -> None:
        self._kind, self._forms, self._left, self._given_up = wanted.kind, forms, limit, given_up
        self._tokens = _matcher(forms, forms.tokens, wanted)
        self._single = _matcher(forms, forms.single, wanted)
        self._finished = False
        self._layout = Layout() if wanted.kind == "JSON schema" else None
        try:
            plan = first(self._single, forms.spelling, limit, FIRST_EFFORT, given_up)
        except TooMuch as error:
            raise self._too_much(str(error)) from None
        if plan is None:
            raise UsageError(f"no text of this {self._kind} was found that ends within {limit:,} tokens; {self._advice(limit)}")
        if self._layout is not None and self._layout.after(plan) is None:
            raise UsageError(f"this {self._kind} cannot be enforced: it needs more than {DEEPEST} lists and objects, one in the other")
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
        if self._layout is not None and not self._layout.quoted:
            allowed &= self._forms.blank <= self._layout.room
        allowed[self._forms.stop] = self._tokens.is_accepting()
        if not allowed.any():  # what llguidance would spell with bytes that the vocabulary lacks, tokens that reach further spell
            allowed[self.planned()] = True
        return allowed

    def take(self, token: int) -> bool:
        """Whether ``token``, which the mask allows, leaves an answer that can be completed within the limit. If so it is the next."""
        text = self._forms.bytes[token]
        if not text:  # a stop token
            self._finished = True
            return True
        layout = None if self._layout is None else self._layout.after(text)
        if self._layout is not None and layout is None:
            return False
        left = self._left - 1
        after = self._single.deep_copy()
        after.consume_tokens(list(text))
        self._check(after)
        plan = self._plan[len(text) :] if self._plan.startswith(text) else None
        if plan is None or self._forms.spelling.spell(plan, left) is None:
            plan = following(after, self._plan, self._forms.spelling, left, EFFORT, self._given_up)
        if plan is None or (layout is not None and layout.after(plan) is None):
            return False
        self._tokens.consume_token(token)
        self._check(self._tokens)
        self._single, self._plan, self._left, self._layout = after, plan, left, layout
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

    def _advice(self, limit: int) -> str:
        """What to do where no text was found."""
        spelling = self._forms.spelling
        text = first(self._single, SINGLE, limit * LONGEST, FIRST_EFFORT, self._given_up)
        if text is not None and (lacking := sorted({byte for byte in text if not spelling.reachable >> byte & 1})):
            return f"the tokenizer has no token for the byte {lacking[0]:#x}, which such a text may need; leave it out of the {self._kind}"
        return "allow more (max_tokens, or a shorter prompt), or check that it matches anything at all"

    def _check(self, matcher: Any) -> None:
        """llguidance keeps its errors to itself until asked."""
        if matcher.is_error():
            raise self._too_much(matcher.get_error())

    def _too_much(self, problem: str) -> UsageError:
        return UsageError(f"this {self._kind} became too much for llguidance: {_brief(problem)}; make it simpler")


def token_bytes(tokenizer: Tokenizer, vocab_size: int, stop: Collection[int]) -> list[bytes]:
    """What each token adds to a text; empty for what an answer in a form may not hold: stop and added tokens and ids without text.

    As edgekit's own decoder has it (llguidance reads a Metaspace decoder's tokens wrongly), inside a text: not where a decoder strips
    a leading space.
    """
    backend = tokenizer.backend
    named = {token: piece for piece, token in backend.get_vocab().items()}
    pieces = [named.get(token) for token in range(vocab_size)]
    none = {*stop, *backend.get_added_tokens_decoder()}
    if _is_byte_level(backend.decoder or {}):
        table = byte_level()
        return [
            b"" if piece is None or token in none or not set(piece) <= table.keys() else bytes(table[c] for c in piece)
            for token, piece in enumerate(pieces)
        ]
    before = tokenizer.encode("a")
    start = len(tokenizer.decode(before))
    texts = backend.decode_batch([[*before, token] for token in range(vocab_size)], skip_special_tokens=True)
    plain = [b"" if piece is None or token in none else texts[token][start:].encode() for token, piece in enumerate(pieces)]
    cut = "\N{REPLACEMENT CHARACTER}".encode()
    for token, piece in enumerate(pieces):
        if token in tokenizer.bytes_:
            plain[token] = b"" if token in none else bytes.fromhex((piece or "")[3:5])
        elif cut in plain[token] and "\N{REPLACEMENT CHARACTER}" not in (piece or ""):  # what it adds depends on what follows
            plain[token] = b""
    return plain


def _is_byte_level(decoder: Mapping[str, Any]) -> bool:
    """Alone, or in a sequence with what changes nothing."""
    kinds = [part["type"] for part in decoder["decoders"]] if decoder.get("type") == "Sequence" else [decoder.get("type")]
    return "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}


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
    made = forms.library.LLMatcher(tokens, wanted.grammar, log_level=0, limits=forms.limits)
    problem = made.get_error() if made.is_error() else "; ".join(made.get_grammar_warnings())
    if problem:
        raise UsageError(f"this {wanted.kind} cannot be enforced: {_brief(problem)}")
    return made


def _brief(problem: str) -> str:
    text = " ".join(problem.split("<state>")[0].split())
    return text if len(text) <= 300 else f"{text[:297]}..."

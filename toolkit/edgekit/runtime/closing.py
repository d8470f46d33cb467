"""How a text that a grammar has begun can be brought to an end, and in how many tokens.

llguidance says what may come next and nothing of how far the end is. So a text that would complete the document is searched for byte by
byte, with a matcher for single bytes. What is found is a plan that surely works, not always the shortest there is.

A vocabulary may lack bytes (SmolLM2's has no token for U+0004, others have some bytes only inside of longer tokens): a text counts as found
only where tokens spell all of it.
"""

import functools
import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from edgekit.errors import UsageError

LONGEST = 16
"""Bytes of the tokens that a plan is spelled with."""
END = 256
"""The byte matcher's token for the end of the text."""
REUSED = 64
"""Bytes at the beginning of an old plan that may turn out superfluous."""
BYTES = 1 << 16
"""Longest plan that is looked for."""
ALIKE = 3
"""Texts of one length and with the same next bytes that are followed further."""
PATIENCE = 8
"""Times that the same choice is taken where nothing tells one place from another, before it is the turn of the next."""


GivenUp = Callable[[], bool]
"""Whether nobody waits for the answer any more: asked at every step of a search."""


class TooMuch(Exception):
    """llguidance's word for why it went no further."""


@dataclass(frozen=True)
class Spelling:
    """Which token stands for which bytes (at most LONGEST of them)."""

    tokens: Mapping[bytes, int]

    @functools.cached_property
    def reachable(self) -> int:
        """Bit n is set where some token holds the byte n."""
        return functools.reduce(int.__or__, (1 << byte for byte in set().union(*self.tokens)), 0)

    def spell(self, text: bytes, most: int) -> list[int] | None:
        """Tokens for ``text``, the longest first; None where there are none, or more than ``most``."""
        spelled: list[int] = []
        at = 0
        while at < len(text):
            size = next((n for n in range(min(LONGEST, len(text) - at), 0, -1) if text[at : at + n] in self.tokens), 0)
            if len(spelled) == most:
                return None
            if not size:
                return self._fewest(text, most)
            spelled.append(self.tokens[text[at : at + size]])
            at += size
        return spelled

    def _fewest(self, text: bytes, most: int) -> list[int] | None:
        """The fewest tokens for ``text``, where the longest first lead nowhere."""
        best: list[tuple[int, int] | None] = [(0, 0)]  # up to each place: how many tokens, and the size of the last
        for end in range(1, len(text) + 1):
            ways = [
                (before[0] + 1, size)
                for size in range(1, min(LONGEST, end) + 1)
                if (before := best[end - size]) is not None and text[end - size : end] in self.tokens
            ]
            best.append(min(ways, default=None))
        spelled: list[int] = []
        end = len(text)
        while end:
            last = best[end]
            if last is None or last[0] + len(spelled) > most:
                return None
            spelled.append(self.tokens[text[end - last[1] : end]])
            end -= last[1]
        return spelled[::-1]


def first(matcher: Any, spelling: Spelling, most: int, effort: int, given_up: GivenUp) -> bytes | None:
    """Bytes that complete what ``matcher`` (an LLMatcher for single bytes) begins, of at most ``most`` tokens.

    effort: texts that are looked at before it gives up. Raises TooMuch, and UsageError where ``given_up``.
    """
    found = _dive(matcher, spelling, min(BYTES, most * LONGEST), given_up)
    if found is not None and spelling.spell(found, most) is not None:
        return found
    return _search(matcher, b"", spelling, most, effort, given_up)


def following(matcher: Any, old: bytes, spelling: Spelling, most: int, effort: int, given_up: GivenUp) -> bytes | None:
    """As ``first``, after a token. old: what would have completed the text before it.

    Where there is a way, but the one straight ahead is too long, no other is looked for: the limit is near, and ``old`` leads there.
    """
    for tail in dict.fromkeys(old[skipped:] for skipped in range(min(len(old), REUSED) + 1)):
        if _completes(matcher, tail) and spelling.spell(tail, most) is not None:
            return tail
    try:
        found = _dive(matcher, spelling, min(BYTES, most * LONGEST), given_up)
    except TooMuch:
        return None
    if found is None or spelling.spell(found, len(found)) is None:
        return _search(matcher, old, spelling, most, effort, given_up)
    return found if spelling.spell(found, most) is not None else None


def _completes(matcher: Any, text: bytes) -> bool:
    if not text:  # where nothing can follow, llguidance takes no end either
        return bool(matcher.is_accepting())
    return bool(matcher.validate_tokens([*text, END]) == len(text) + 1)


def _dive(matcher: Any, spelling: Spelling, limit: int, given_up: GivenUp) -> bytes | None:
    """Straight ahead, always by the byte that looks most like an end; where the same choice comes again and again, another by turns."""
    here, text = matcher.deep_copy(), bytearray()
    seen: Counter[bytes] = Counter()
    while not here.is_accepting():
        _check(given_up)
        step = here.compute_ff_bytes()
        if not step:
            mask = _mask(here, spelling)
            choices = _choices(mask)
            if not choices:
                return None
            step = choices[seen[mask] // PATIENCE % len(choices)].to_bytes(1, "little")
            seen[mask] += 1
        text += step
        if len(text) > limit:
            return None
        if not here.consume_tokens(list(step)):
            raise TooMuch(here.get_error())
    return bytes(text)


def _search(matcher: Any, old: bytes, spelling: Spelling, most: int, effort: int, given_up: GivenUp) -> bytes | None:
    """The shortest text first. Where the next bytes are new every one of them is tried, else a few."""
    order = count()
    known: set[bytes] = set()
    alike: Counter[tuple[int, bytes]] = Counter()
    queue: list[tuple[int, int, bytes, Any]] = [(0, next(order), b"", matcher)]
    while queue and effort > 0:
        _check(given_up)
        size, _, text, here = heapq.heappop(queue)
        effort -= 1
        tails = dict.fromkeys((b"", *(old[skipped:] for skipped in range(min(len(old), 4)))))
        for tail in tails if size <= LONGEST else (b"",):
            if _completes(here, tail) and spelling.spell(text + tail, most) is not None:
                return text + tail
        mask = _mask(here, spelling)
        alike[size, mask] += 1
        if size >= min(BYTES, most * LONGEST) or alike[size, mask] > ALIKE:
            continue
        choices = _choices(mask) if mask in known else _allowed(mask)
        known.add(mask)
        for byte in choices:
            after = here.deep_copy()
            if after.consume_token(byte):
                step = bytes([byte]) + after.compute_ff_bytes()
                if len(step) > 1 and not after.consume_tokens(list(step[1:])):
                    continue
                heapq.heappush(queue, (size + len(step), next(order), text + step, after))
    return None


def _check(given_up: GivenUp) -> None:
    if given_up():
        raise UsageError("the answer was given up before it began")


def _mask(matcher: Any, spelling: Spelling) -> bytes:
    """The bytes that may come next and that some token holds: bit n % 8 of byte n // 8."""
    mask: bytes = matcher.compute_bitmask()
    return (int.from_bytes(mask, "little") & spelling.reachable).to_bytes(len(mask), "little")


# What ends something comes first, what begins something last; of a run of alike characters only a few are tried.
_ORDER = (
    *(
        b"}])>\"'`;,:",
        b"0123456789",
        b"nftabcdeghijklmopqrsuvwxyz",
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        b"_.-+*=|&!?@#$%^~/",
        b"[{(<",
        b" \n\t\r",
    ),
    bytes(n for n in range(END) if n >= 0x80 or (n < 0x20 and n not in b"\n\t\r")) + b"\\\x7f",
)
_FEW, _BROAD = 6, 40
_QUOTES = b"\"'`"


@functools.lru_cache(maxsize=4096)
def _choices(mask: bytes) -> bytes:
    """Some of the bytes that ``mask`` (bit n % 8 of byte n // 8) allows, in the order to try them. Where nearly all are, it is inside of
    something that a quote may end."""
    allowed = _allowed(mask)
    quotes = bytes(n for n in _QUOTES if n in allowed) if len(allowed) > _BROAD else b""
    groups = [bytes(n for n in group if n in allowed and n not in quotes) for group in _ORDER]
    return quotes + b"".join(group if i == 0 or len(group) <= _FEW else group[:1] + group[-1:] for i, group in enumerate(groups))


def _allowed(mask: bytes) -> bytes:
    return bytes(n for n in range(END) if mask[n >> 3] >> (n & 7) & 1)

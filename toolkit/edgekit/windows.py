"""How a text is cut for measuring: as llama-perplexity does it, the first half of a window is context, the rest is scored."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.errors import UsageError

BEYOND = 128
"""Tokens by which the long window passes the LongRoPE switch; all of them are scored."""


@dataclass(frozen=True)
class Effort:
    """tokens: of text, cut into windows of ``length``. switch: the longest LongRoPE switch that one more window is laid across."""

    tokens: int
    length: int
    switch: int


QUICK = Effort(512, 256, 512)
"""A few hundred tokens: half a minute for a model of 4 billion weights on two cores."""
FULL = Effort(8192, 512, 1 << 30)


@dataclass(frozen=True)
class Window:
    """A sequence and how many of its last positions are scored (the token after each is part of the sequence)."""

    part: str
    tokens: tuple[int, ...]
    scored: int

    @property
    def given(self) -> tuple[int, ...]:
        return self.tokens[:-1]

    @property
    def following(self) -> tuple[int, ...]:
        """The token that really came after each scored position."""
        return self.tokens[-self.scored :]


def windows(ids: Sequence[int], bos: Sequence[int], context: int, switch: int | None, effort: Effort) -> list[Window]:
    """Windows within the LongRoPE switch ("short"), and one that ends beyond it ("long") where effort and context allow.

    bos: what every window begins with. Raises UsageError for a text without one whole window.
    """
    length = min(effort.length, context, switch or context)
    step = length - len(bos)
    cut = [ids[at : at + step] for at in range(0, len(ids), step)] if step > 0 else []
    short = [Window("short", (*bos, *piece), (length + 1) // 2) for piece in cut[: effort.tokens // length] if len(piece) == step]
    if not short or length < 4:
        raise UsageError(f"the text has {len(ids)} tokens; a window takes {length}: give a longer text")
    if switch is None or switch > effort.switch or switch + 2 > context:
        return short
    end = min(switch + BEYOND, context)
    repeated = list(ids) * -(-end // len(ids))  # what was said before may be said again; only positions beyond the switch count
    return [*short, Window("long", (*bos, *repeated[: end - len(bos)]), end - switch - 1)]

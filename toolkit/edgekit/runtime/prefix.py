"""The tokens that a session's cache holds, and how the cache gets from one sequence to the next with the least work."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.runtime.session import Session

_BLOCK = 1024
"""Tokens compared at a time."""


class PrefixCache:
    """Computes logits after whole sequences, reusing the longest prefix that the session still holds.

    switch: the LongRoPE original length (``manifest.context.rope_switch``), None for a model without. Up to ``switch`` tokens a sequence
    uses the short factors, beyond it the long ones, for ALL its positions (Ding et al. 2024; transformers without a cache does the same).
    Cached keys were rotated with the factors of their own call. So when a sequence lies on the other side of the switch than
    the cached one, nothing is reused: it is computed again from its first token.
    """

    def __init__(self, session: Session, *, switch: int | None = None) -> None:
        self._session = session
        self._switch = switch
        self._held: list[int] = []
        self._long = False

    @property
    def held(self) -> tuple[int, ...]:
        """The tokens whose keys and values are in the session's cache."""
        return tuple(self._held)

    def extend_to(self, tokens: Sequence[int]) -> tuple[NDArray[np.float32], int]:
        """The logits after ``tokens`` (at least one), float32 [vocab], and how many of the tokens had to be computed for it.

        Raises ContextOverflow when the session cannot hold them. Whatever is raised, KeyboardInterrupt included, the next call works.
        """
        rows, computed = self.extend_with(tokens, ())
        return rows[0], computed

    def extend_with(self, tokens: Sequence[int], draft: Sequence[int]) -> tuple[NDArray[np.float32], int]:
        """As ``extend_to``, with logits after each token of a ``draft`` that may follow ``tokens`` as well, float32 [1 + n, vocab].

        n is less than the draft's length where the draft would cross the LongRoPE switch: it is cut there, since one call computes all of
        its tokens with the factors of the longest sequence. The session then holds the draft too; the next call takes back what
        turned out wrong.
        """
        if not tokens:
            raise ValueError("at least one token is needed")
        long = self._switch is not None and len(tokens) > self._switch
        if self._switch is not None and not long:
            draft = draft[: self._switch - len(tokens)]
        wanted = [*tokens, *draft]
        # The last token before the draft is always computed: its logits are not kept.
        reused = min(_common(self._held, wanted), len(tokens) - 1) if long == self._long else 0
        del self._held[reused:]
        # Not by what this class believes: an interrupted call may have left more in the cache than it knows of.
        if self._session.position != reused:
            self._session.rewind(reused)
        new = wanted[reused:]
        rows = self._session.forward_last(new, 1 + len(draft)) if draft else self._session.forward(new)[np.newaxis]
        self._held, self._long = wanted, long
        return rows, len(new)

    def clear(self) -> None:
        """Forgets everything."""
        self._held = []
        self._session.rewind(0)


def _common(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix."""
    if a == b[: len(a)]:  # the usual case: the sequence grew
        return len(a)
    # Slices compare many times faster than numbers one by one, which matters where drafts are taken back at every step.
    end = min(len(a), len(b))
    near = next((i for i in range(0, end, _BLOCK) if a[i : i + _BLOCK] != b[i : i + _BLOCK]), 0)
    return next((i for i in range(near, end) if a[i] != b[i]), end)

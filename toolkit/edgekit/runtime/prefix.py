"""The tokens that a session's cache holds, and how the cache gets from one sequence to the next with the least work."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.runtime.session import Session

_BLOCK = 1024
"""Tokens compared at a time."""


class PrefixCache:
    """Computes logits after whole sequences, reusing the longest prefix that the session still holds and that makes no difference.

    Logits are a function of the tokens and of how many of them are ``prompt``, bit for bit, whatever was computed before and whichever call
    was interrupted. Where rows are the same alone and among others (``Session.grain`` 1) any common prefix is reused. Elsewhere the
    computation is always this one: the prompt in pieces of ``grain`` tokens from the first on, what follows one by one; so only whole
    pieces of a prompt, and an answer that goes on, are reused, and an earlier answer is computed again as part of a prompt.

    switch: the LongRoPE original length (``manifest.context.rope_switch``), None for a model without. Up to ``switch`` tokens a sequence
    uses the short factors, beyond it the long ones, for ALL its positions (Ding et al. 2024; transformers without a cache does the same).
    Cached keys were rotated with the factors of their own call. So when a sequence lies on the other side of the switch than
    the cached one, nothing is reused: it is computed again from its first token, up to the switch as if all were prompt.
    """

    def __init__(self, session: Session, *, switch: int | None = None) -> None:
        self._session = session
        self._switch = switch
        self._held: list[int] = []
        self._long = False
        self._whole = 0  # leading tokens of _held that were computed in whole pieces
        self._begun: int | None = None  # tokens of _held computed as prompt, all further ones one by one; None where it was otherwise

    @property
    def held(self) -> tuple[int, ...]:
        """The tokens whose keys and values are in the session's cache, as far as they are known."""
        return tuple(self._held)

    @property
    def drafts(self) -> bool:
        """Whether a draft leaves the logits what they are without."""
        return self._session.grain == 1

    def extend_to(self, tokens: Sequence[int], *, prompt: int | None = None, exact: bool = True) -> tuple[NDArray[np.float32], int]:
        """The logits after ``tokens`` (at least one), float32 [vocab], and how many of the tokens had to be computed for it.

        prompt: how many of them are; None for all.
        exact:  False reuses the longest prefix even where logits then differ in the engine's rounding.
        Raises ContextOverflow when the session cannot hold them. Whatever is raised, KeyboardInterrupt included, the next call works.
        """
        rows, computed = self.extend_with(tokens, (), prompt=prompt, exact=exact)
        return rows[0], computed

    def extend_with(
        self, tokens: Sequence[int], draft: Sequence[int], *, prompt: int | None = None, exact: bool = True
    ) -> tuple[NDArray[np.float32], int]:
        """As ``extend_to``, with logits after each token of a ``draft`` that may follow ``tokens`` as well, float32 [1 + n, vocab].

        n is less than the draft's length where the draft would cross the LongRoPE switch: it is cut there, since one call computes all of
        its tokens with the factors of the longest sequence. The session then holds the draft too; the next call takes back what
        turned out wrong. Raises ValueError for an exact draft where there is none (``drafts``).
        """
        if not tokens:
            raise ValueError("at least one token is needed")
        grain = self._session.grain
        exact = exact and grain > 1
        if exact and draft:
            raise ValueError("this engine rounds the tokens of a draft otherwise than one by one")
        long = self._switch is not None and len(tokens) > self._switch
        if self._switch is not None and not long:
            draft = draft[: self._switch - len(tokens)]
        wanted = [*tokens, *draft]
        begun = len(tokens) if prompt is None else min(prompt, len(tokens))
        if long and self._switch is not None:
            begun = max(begun, self._switch + 1)
        together = begun if exact else len(wanted)
        common = _common(self._held, wanted) if long == self._long else 0
        # The last token before the draft is always computed: its logits are not kept.
        reused = self._exactly(common, begun, len(tokens)) if exact else min(common, len(tokens) - 1)
        whole = min(self._whole, reused) // grain * grain
        # If this call is interrupted, only whole pieces are sure to be what they would be anew.
        del self._held[reused if grain == 1 else whole :]
        self._begun, self._whole = None, whole
        # Not by what this class believes: an interrupted call may have left more in the cache than it knows of.
        if self._session.position != reused:
            self._session.rewind(reused)
        rows = self._compute(wanted, reused, together, 1 + len(draft))
        if reused == whole:
            self._whole = together // grain * grain
        self._held, self._long, self._begun = wanted, long, begun if exact else None
        return rows, len(wanted) - reused

    def _exactly(self, common: int, begun: int, length: int) -> int:
        """Of ``common`` tokens that are held, how many may be reused for ``length`` of which ``begun`` are prompt."""
        if common == len(self._held) and common < length and self._begun == begun:
            return common
        return min(common, self._whole, begun - 1) // self._session.grain * self._session.grain

    def _compute(self, tokens: list[int], held: int, together: int, last: int) -> NDArray[np.float32]:
        """The logits after the ``last`` last of ``tokens``; ``held`` are there, up to ``together`` come at once, then one by one."""
        if last > 1:
            return self._session.forward_last(tokens[held:], last)
        logits = self._session.forward(tokens[held:together]) if held < together else None
        for at in range(max(held, together), len(tokens)):
            logits = self._session.forward(tokens[at : at + 1])
        assert logits is not None
        return logits[np.newaxis]

    def clear(self) -> None:
        """Forgets everything."""
        self._held, self._whole, self._begun = [], 0, None
        self._session.rewind(0)


def _common(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix."""
    if a == b[: len(a)]:  # the usual case: the sequence grew
        return len(a)
    # Slices compare many times faster than numbers one by one, which matters where drafts are taken back at every step.
    end = min(len(a), len(b))
    near = next((i for i in range(0, end, _BLOCK) if a[i : i + _BLOCK] != b[i : i + _BLOCK]), 0)
    return next((i for i in range(near, end) if a[i] != b[i]), end)

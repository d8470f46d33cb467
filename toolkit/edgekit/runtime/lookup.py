"""Drafts for speculative decoding without a second model: what followed the last few tokens where they stood before.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding; ``prompt_lookup_num_tokens`` of
transformers): an answer that copies from its prompt (extraction, editing, code) can be guessed from the prompt. The engine computes a
whole draft in one call, which reads the weights once; the tokens that the sampler chooses anyway are kept.
"""

from collections.abc import Collection, Sequence

import numpy as np

SHORTEST, LONGEST = 2, 8
"""Tokens that have to match. The longest match is followed, and the latest of equally long ones: the text most like what is being
written. A single token matches nearly everywhere and says little."""


class Lookup:
    """Finds drafts in one sequence, which grows at its end up to ``room`` tokens. Takes 8 bytes a token."""

    def __init__(self, room: int) -> None:
        self._tokens = np.empty(room, np.int64)
        self._known = 0

    def draft(self, tokens: Sequence[int], most: int, stop_tokens: Collection[int] = ()) -> list[int]:
        """Up to ``most`` tokens that may come after ``tokens``, which begins with what the last call was given. None of ``stop_tokens``:
        nothing would be computed after them.

        Empty where nothing matches. A draft may run on into itself, so a pattern that repeats is drafted at full length.
        """
        self._tokens[self._known : len(tokens)] = tokens[self._known :]
        self._known = len(tokens)
        at = self._following()
        found: list[int] = []
        while at is not None and len(found) < most:
            token = tokens[at] if at < len(tokens) else found[at - len(tokens)]
            if token in stop_tokens:
                break
            found.append(token)
            at += 1
        return found

    def _following(self) -> int | None:
        """Where that begins which followed the longest end of the sequence that stands in it a second time."""
        known = self._tokens[: self._known]
        ends = np.flatnonzero(known[:-1] == known[-1])
        at = None
        for size in range(2, min(LONGEST, known.size - 1) + 1):
            ends = ends[ends >= size - 1]
            ends = ends[known[ends - size + 1] == known[-size]]
            if not ends.size:
                break
            if size >= SHORTEST:
                at = int(ends[-1]) + 1
        return at

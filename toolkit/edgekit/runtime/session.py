"""The seam between the one generation loop and every engine."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Session(Protocol):
    """A loaded model with its KV cache, for one sequence. Adapters are thin: what users see lives in ``generate``.

    A session does not watch the LongRoPE switch: its graph picks the factors by the length after each call, and
    ``runtime.prefix`` decides when the sequence has to be computed anew.
    """

    @property
    def position(self) -> int:
        """Tokens in the cache."""

    @property
    def context(self) -> int:
        """Most tokens the cache can hold."""

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends ``tokens`` (at least one) and returns the logits after the last, float32 [vocab].

        The array is the caller's. Raises ContextOverflow, leaving the cache as it was, when they do not fit; ValueError without a token;
        EngineError when the engine fails or the session is closed.
        """

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        """As ``forward``, with the logits after each of the ``last`` last tokens, float32 [last, vocab]: row i is that after
        ``tokens[: len(tokens) - last + 1 + i]``. ``forward`` is its only row for ``last`` 1.

        Equal to calling ``forward`` token by token but for the engine's rounding, which may depend on how many tokens a call brings.
        Raises as ``forward`` does; ValueError too unless 1 <= last <= len(tokens).
        """

    def rewind(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens (0 <= length <= position; else ValueError)."""

    def close(self) -> None:
        """Frees the model. Calling it twice is allowed."""

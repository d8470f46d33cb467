"""Deterministic pseudo-logits: a pure function of the token sequence, equal on every platform."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit import strict_json
from edgekit.artifact import Manifest
from edgekit.errors import ArtifactError, EngineError
from edgekit.runtime.session import check_call, check_rewind

FILE = "null.json"


def open_session(directory: Path, manifest: Manifest, *, threads: int | None = None) -> "NullSession":
    """Opens what ``export`` wrote. ``threads`` changes nothing. Raises ArtifactError."""
    path = directory / FILE
    try:
        seed = bytes.fromhex(strict_json.load(path.read_text(encoding="utf-8"))["seed"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); build the artifact again") from None
    return NullSession(manifest.tokens.vocab_size, manifest.context.length, seed=seed, switch=manifest.context.rope_switch)


class NullSession:
    """See ``edgekit.runtime.session.Session``. Logits are uniform in [-8, 8).

    switch: as in a LongRoPE graph, what a token leaves in the cache depends on whether the sequence was longer than this after the
    call that brought it. So a sequence put together from both kinds gives other logits than one computed in one piece.
    """

    def __init__(self, vocab_size: int, context: int, *, seed: bytes = b"", switch: int | None = None) -> None:
        self._vocab_size = vocab_size
        self._context = context
        self._switch = switch
        self._states = [hashlib.sha256(seed).digest()]
        self._closed = False

    @property
    def position(self) -> int:
        return len(self._states) - 1

    @property
    def context(self) -> int:
        return self._context

    @property
    def grain(self) -> int:
        return 1

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See ``Session.forward``."""
        row: NDArray[np.float32] = self.forward_last(tokens, 1)[0]
        return row

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        """See ``Session.forward_last``."""
        return np.stack([self._logits(state) for state in self._append(tokens, last)])

    def _append(self, tokens: Sequence[int], last: int) -> list[bytes]:
        """The states after each of the ``last`` last of ``tokens``."""
        if self._closed:
            raise EngineError("the session is closed; open the artifact again")
        check_call(tokens, last, self.position, self._context)
        length = self.position + len(tokens)
        long = self._switch is not None and length > self._switch
        for token in tokens:
            self._states.append(hashlib.sha256(self._states[-1] + int(token).to_bytes(8, "little") + bytes([long])).digest())
        return self._states[-last:]

    def _logits(self, state: bytes) -> NDArray[np.float32]:
        random = np.random.Generator(np.random.PCG64(int.from_bytes(state, "little")))
        return random.random(self._vocab_size, dtype=np.float32) * np.float32(16) - np.float32(8)

    def rewind(self, length: int) -> None:
        """See ``Session.rewind``."""
        check_rewind(length, self.position)
        del self._states[length + 1 :]

    def close(self) -> None:
        """See ``Session.close``."""
        self._closed = True

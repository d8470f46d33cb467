"""What the profiler asks of the null engine."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Manifest
from edgekit.engines.null.session import NullSession, open_session
from edgekit.engines.observing import Operation
from edgekit.runtime.session import Session


def host_memory(manifest: Manifest) -> bool:
    """See ``Observer``."""
    return True


def cache_bytes(manifest: Manifest) -> int:
    """See ``Observer``. It holds a hash of 32 bytes a token, none by number."""
    return 0


def device_memory() -> tuple[int, str] | None:
    """See ``Observer``."""
    return None


def trace(directory: Path, manifest: Manifest, threads: int | None, work: Callable[[Session], None]) -> list[Operation]:
    """See ``Observer``. A call of ``forward`` is its one operator."""
    found: list[Operation] = []
    session = open_session(directory, manifest, threads=threads)
    work(_Watched(session, found))
    session.close()
    return found


class _Watched:
    """See ``edgekit.runtime.session.Session``."""

    def __init__(self, session: NullSession, found: list[Operation]) -> None:
        self._session = session
        self._found = found
        self.rewind = session.rewind
        self.close = session.close

    @property
    def position(self) -> int:
        return self._session.position

    @property
    def context(self) -> int:
        return self._session.context

    @property
    def grain(self) -> int:
        return self._session.grain

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self.forward_last(tokens, 1)[0]
        return row

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        began = time.perf_counter()
        rows = self._session.forward_last(tokens, last)
        self._found.append(Operation("hash", "Hash", began, time.perf_counter() - began))
        return rows

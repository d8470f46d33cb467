"""What an engine's ``profile`` module tells the profiler, beside the session that it measures."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from edgekit.artifact import Manifest
from edgekit.engines import ENGINES
from edgekit.runtime.session import Session


@dataclass(frozen=True)
class Operation:
    """One run of one operator. start, seconds: on the clock of ``time.perf_counter``. holds: it ran others, which are listed too."""

    name: str
    kind: str
    start: float
    seconds: float
    holds: bool = False


class Observer(Protocol):
    """A module."""

    def host_memory(self, manifest: Manifest) -> bool:
        """Whether what computes reads the weights from the memory whose bandwidth a CPU of the machine can measure."""

    def cache_bytes(self, manifest: Manifest) -> int:
        """Of one number in the KV cache."""

    def device_memory(self) -> tuple[int, str] | None:
        """Bytes that this process held on an accelerator at most, and what told; None where the engine has no such counter."""

    def trace(self, directory: Path, manifest: Manifest, threads: int | None, work: Callable[[Session], None]) -> list[Operation]:
        """Opens the artifact with the engine's own counters on, calls ``work``, and returns what ran, in order.

        Raises EngineError where the engine has no counters, and as ``open_session``.
        """


def observer(engine: str) -> Observer:
    """By the engine's name, one of ENGINES."""
    return cast(Observer, importlib.import_module(ENGINES[engine].profile))

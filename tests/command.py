"""Runs the ``edge`` command inside the test's process."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Edge = Callable[..., Ended]

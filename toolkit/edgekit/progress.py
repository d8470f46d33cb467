"""How long work tells how far it is: a plain callable, so that the library never prints."""

from typing import Protocol

COUNTED = ("equalize", "calibrate", "sensitivity")
"""How stages begin that count layers, matrices or the like; all others count bytes."""


class Progress(Protocol):
    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """``done`` of ``total`` bytes of ``stage`` (such as ``"quantize"``) are through; of a stage of ``COUNTED``, pieces of its work.
        ``total`` is 0 while it is not known.

        Called from the thread that does the work, never going back within a stage; a stage ends with ``done == total``.
        """


def silent(stage: str, done: int, total: int, /) -> None:
    """A Progress that tells nobody."""

"""Quantize a small language model once, ship the same INT4 weights to every edge engine, and run it there.

    import edgekit

    edgekit.build("tiny-phi", target="cpu", output="tiny-phi-cpu")
    with edgekit.load("tiny-phi-cpu") as runtime:
        for step in runtime.chat([{"role": "user", "content": "turn on the kitchen light"}]):
            print(step.text, end="", flush=True)

These names are the whole public API. Each is imported when it is first used, so ``import edgekit`` costs nothing.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.artifact import Manifest, load_artifact
    from edgekit.build import build
    from edgekit.catalog import catalogue
    from edgekit.errors import EdgekitError
    from edgekit.runtime import Runtime, load
    from edgekit.runtime.sampling import Sampling
    from edgekit.runtime.session import Session
    from edgekit.target import targets

__version__ = "0.1.0"
__all__ = ["EdgekitError", "Manifest", "Runtime", "Sampling", "Session", "build", "catalogue", "load", "load_artifact", "targets"]

_HOMES = {
    "EdgekitError": "edgekit.errors",
    "Manifest": "edgekit.artifact",
    "Runtime": "edgekit.runtime",
    "Sampling": "edgekit.runtime.sampling",
    "Session": "edgekit.runtime.session",
    "build": "edgekit.build",
    "catalogue": "edgekit.catalog",
    "load": "edgekit.runtime",
    "load_artifact": "edgekit.artifact",
    "targets": "edgekit.target",
}

# Nothing that edgekit imports may phone home. Set before any of it can be imported; a user's own setting stays.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


if not TYPE_CHECKING:  # a type checker would take every misspelt name for an object

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the file build.py would bind it as ``edgekit.build``, over the public function of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

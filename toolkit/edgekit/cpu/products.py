"""Whether the products of our own that a library holds (matmul.c) can run here, and whether they pay.

Device side: imports nothing of the build.
"""

import ctypes
import os
from pathlib import Path

from edgekit.errors import EngineMissing, UsageError

VERSION = 3
"""Of matmul.h; a library that was compiled from other sources is not used."""
OWN = "edgekit"


def chosen(library: Path, variable: str, stock: str, computes: bool) -> bool:
    """Whether they take the place of an engine's own. computes: whether they know all products of the artifact, in its precision, so that
    nothing but speed and memory depends on the choice. variable: of the environment, which may ask for OWN or ``stock``; by default what
    is faster here. Raises UsageError and EngineMissing for a wish that is none, or that this CPU cannot fulfil."""
    wish = os.environ.get(variable, "")
    if wish not in ("", OWN, stock):
        raise UsageError(f"{variable} is {wish!r}; it may be {OWN} or {stock}, or unset for what is faster here")
    if wish == OWN and not runs(library):
        raise EngineMissing(
            f"{variable} is {OWN}, but edgekit's products were not compiled when it was installed (a C compiler is needed, and x86-64), or "
            "this CPU lacks AVX2; unset it"
        )
    return wish != stock and computes and (wish == OWN or pays(library))


def runs(library: Path) -> bool:
    """Whether it was compiled, and this CPU can run it."""
    return _answer(library, "edgekit_matmul_runs")


def pays(library: Path) -> bool:
    """Whether it is faster here than the engines' own: with AVX-512 VNNI these read at the memory's speed by themselves, and multiply
    prompts faster than AVX2 can (docs/performance.md)."""
    return runs(library) and not _answer(library, "edgekit_matmul_has_vnni")


def _answer(path: Path, question: str) -> bool:
    try:
        library = ctypes.CDLL(str(path))
        if ctypes.c_int.in_dll(library, "edgekit_matmul_version").value != VERSION:
            return False
        return bool(getattr(library, question)())
    except (OSError, ValueError, AttributeError):
        return False

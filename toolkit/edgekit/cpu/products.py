"""Whether the products of our own that a library holds (matmul.c) can run here.

Device side: imports nothing of the build.
"""

import ctypes
import os
from pathlib import Path

from edgekit.errors import EngineMissing, UsageError

VERSION = 4
"""Of matmul.h; a library that was compiled from other sources is not used."""
OWN = "edgekit"


def chosen(library: Path, variable: str, stock: str, computes: bool) -> bool:
    """Whether they take the place of an engine's own. computes: whether they know all products of the artifact, in its precision.
    variable: of the environment, which may ask for OWN or ``stock``; by default ours wherever they run: with them a token is rounded the
    same alone and among others, so an answer does not depend on what was cached. Raises UsageError and EngineMissing for a wish that is
    none, or that this CPU cannot fulfil."""
    wish = os.environ.get(variable, "")
    if wish not in ("", OWN, stock):
        raise UsageError(f"{variable} is {wish!r}; it may be {OWN} or {stock}, or unset for {OWN} wherever it runs")
    if wish == OWN and not runs(library):
        raise EngineMissing(
            f"{variable} is {OWN}, but edgekit's products were not compiled when it was installed (a C compiler is needed, and x86-64), or "
            "this CPU lacks AVX2; unset it"
        )
    return wish != stock and computes and runs(library)


def runs(library: Path) -> bool:
    """Whether it was compiled, and this CPU can run it."""
    try:
        found = ctypes.CDLL(str(library))
        return ctypes.c_int.in_dll(found, "edgekit_matmul_version").value == VERSION and bool(found.edgekit_matmul_runs())
    except (OSError, ValueError, AttributeError):
        return False

"""edgekit's own MatMulNBits (operator.c, cpu/matmul.c), where it was compiled when edgekit was installed.

Device side: imports nothing of the build.
"""

import ctypes
import os
from pathlib import Path

from edgekit.artifact import Manifest
from edgekit.errors import EngineMissing, UsageError

LIBRARY = Path(__file__).with_name("_operator.so")
VERSION = 2
"""Of the library's interface; one that was compiled from other sources is not used."""
VARIABLE, OWN, STOCK = "EDGEKIT_ONNX_PRODUCTS", "edgekit", "onnxruntime"
"""What the environment may ask for; by default what is faster here."""
COMPUTED = {"provider": ("cpu",), "kv_dtype": ("float32", "int8"), "accuracy_level": (4,)}
"""Details of the artifacts whose products it computes: float32 inputs, in int8. Others are ONNX Runtime's alone."""


def chosen(manifest: Manifest) -> bool:
    """Whether it takes the place of ONNX Runtime's for this artifact: it computes in the same precision, so nothing but speed and memory
    depends on it. Raises UsageError and EngineMissing for a wish of the environment that is none, or that this CPU cannot fulfil."""
    wish = os.environ.get(VARIABLE, "")
    if wish not in ("", OWN, STOCK):
        raise UsageError(f"{VARIABLE} is {wish!r}; it may be {OWN} or {STOCK}, or unset for what is faster here")
    if wish == OWN and not runs():
        raise EngineMissing(
            f"{VARIABLE} is {OWN}, but edgekit's products were not compiled when it was installed (a C compiler is needed, and x86-64), or "
            "this CPU lacks AVX2; unset it"
        )
    return wish != STOCK and computes(manifest) and (wish == OWN or pays())


def runs(library: Path = LIBRARY) -> bool:
    """Whether it was compiled, and this CPU can run it."""
    return _answer(library, "edgekit_matmul_runs")


def pays(library: Path = LIBRARY) -> bool:
    """Whether it is faster here than ONNX Runtime's: with AVX-512 VNNI that one reads at the memory's speed by itself, and multiplies
    prompts faster than AVX2 can (docs/performance.md)."""
    return runs(library) and not _answer(library, "edgekit_matmul_has_vnni")


def computes(manifest: Manifest) -> bool:
    """Whether it knows the products of this artifact."""
    return all(manifest.engine.details.get(name) in values for name, values in COMPUTED.items())


def _answer(path: Path, question: str) -> bool:
    try:
        library = ctypes.CDLL(str(path))
        if ctypes.c_int.in_dll(library, "edgekit_matmul_version").value != VERSION:
            return False
        return bool(getattr(library, question)())
    except (OSError, ValueError, AttributeError):
        return False

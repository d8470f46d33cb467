"""edgekit's own MatMulNBits (operator.c, cpu/matmul.c), where it was compiled when edgekit was installed.

Device side: imports nothing of the build.
"""

import ctypes
from pathlib import Path

from edgekit.artifact import Manifest

LIBRARY = Path(__file__).with_name("_operator.so")
VERSION = 1
"""Of the library's interface; one that was compiled from other sources is not used."""
COMPUTED = {"provider": "cpu", "kv_dtype": "float32", "accuracy_level": 4}
"""Details of the artifacts whose products it computes: float32 inputs, in int8. Others are ONNX Runtime's alone."""


def runs(library: Path = LIBRARY) -> bool:
    """Whether it was compiled, and this CPU can run it."""
    return _answer(library, "edgekit_matmul_runs")


def pays(library: Path = LIBRARY) -> bool:
    """Whether it is faster here than ONNX Runtime's: with AVX-512 VNNI that one reads at the memory's speed by itself, and multiplies
    prompts twice as fast as AVX2 can (docs/performance.md)."""
    return runs(library) and not _answer(library, "edgekit_matmul_has_vnni")


def computes(manifest: Manifest) -> bool:
    """Whether it knows the products of this artifact."""
    return all(manifest.engine.details.get(name) == value for name, value in COMPUTED.items())


def _answer(path: Path, question: str) -> bool:
    try:
        library = ctypes.CDLL(str(path))
        if ctypes.c_int.in_dll(library, "edgekit_matmul_version").value != VERSION:
            return False
        return bool(getattr(library, question)())
    except (OSError, ValueError, AttributeError):
        return False

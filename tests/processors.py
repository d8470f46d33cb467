"""Other processors than the one at hand: what the suite is run as with ``pytest --as-processor NAME``.

Libraries choose kernels and precision by the processor. Those that can be told to leave instructions alone are told so; where OpenVINO
would compute in bfloat16 by itself (AMX, AVX-512 BF16), that is asked for in its place, which any AVX-512 processor can do.

    avx2      no instruction beyond AVX2: oneDNN in OpenVINO, NumPy, OpenBLAS
    avx512    AVX-512 without dot products of bytes
    bf16      bfloat16 wherever nobody asks OpenVINO for a precision
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

NEWER = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V4"
"""NumPy's names, of old and new releases; those that a release does not know are left out (``numpy_features``)."""
ENVIRONMENT: dict[str, Mapping[str, str]] = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OPENBLAS_CORETYPE": "SkylakeX"},
    "bf16": {},
}


def become(name: str) -> None:
    """To be called before any engine is imported; processes started later become the same, but for OpenVINO's bfloat16."""
    os.environ.update(ENVIRONMENT[name])
    if name == "avx2":
        os.environ["NPY_DISABLE_CPU_FEATURES"] = numpy_features()
    if name == "bf16":
        _compute_in_bfloat16()


def numpy_features() -> str:
    """Those of NEWER that NumPy dispatches by here: it warns of others. Found in a process of its own, as it reads the variable once."""
    code = "import numpy as np; c = np._core._multiarray_umath; print(*[f for f in c.__cpu_dispatch__ if c.__cpu_features__.get(f)])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return " ".join(feature for feature in found if feature in NEWER.split())


def _compute_in_bfloat16() -> None:
    import openvino

    core: Any = openvino.Core
    compile_model, get_property = core.compile_model, core.get_property

    @functools.wraps(compile_model)
    def compiled(self: Any, model: Any, device_name: Any = None, config: Any = None) -> Any:
        return compile_model(self, model, device_name, {"INFERENCE_PRECISION_HINT": "bf16", **(config or {})})

    core.compile_model = compiled
    core.get_property = _with_bf16(get_property)


def _with_bf16(get_property: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(get_property)
    def found(self: Any, *names: Any) -> Any:
        value = get_property(self, *names)
        return [*value, "BF16"] if names[-1] == "OPTIMIZATION_CAPABILITIES" else value

    return found

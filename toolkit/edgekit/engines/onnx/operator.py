"""edgekit's own MatMulNBits and GroupQueryAttention (operator.c, attention.c, cpu/), where they were compiled when edgekit was installed.

Device side: imports nothing of the build.
"""

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Manifest
from edgekit.cpu import products

if TYPE_CHECKING:
    import onnxruntime

LIBRARY = Path(__file__).with_name("_operator.so")
VARIABLE, STOCK = "EDGEKIT_ONNX_PRODUCTS", "onnxruntime"
"""What the environment may ask for instead of edgekit's."""
COMPUTED = {"provider": ("cpu",), "kv_dtype": ("float32", "int8"), "accuracy_level": (4,)}
"""Details of the artifacts whose products it computes: float32 inputs, in int8. Others are ONNX Runtime's alone."""


def chosen(manifest: Manifest) -> bool:
    """Whether it takes the place of ONNX Runtime's for this artifact. Raises as ``products.chosen``."""
    return products.chosen(LIBRARY, VARIABLE, STOCK, computes(manifest))


def computes(manifest: Manifest) -> bool:
    """Whether it knows the products of this artifact."""
    return all(manifest.engine.details.get(name) in values for name, values in COMPUTED.items())


def attends(manifest: Manifest) -> bool:
    """Whether attention is edgekit's as well: it knows a cache in float32."""
    return manifest.engine.details["kv_dtype"] == "float32"


def register(options: "onnxruntime.SessionOptions", manifest: Manifest) -> None:
    """Has a session that is opened with these options compute with them."""
    ctypes.CDLL(str(LIBRARY)).edgekit_operator_attends(int(attends(manifest)))  # of this thread
    options.register_custom_ops_library(str(LIBRARY))

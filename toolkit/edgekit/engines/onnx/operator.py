"""edgekit's own MatMulNBits (operator.c, cpu/matmul.c), where it was compiled when edgekit was installed.

Device side: imports nothing of the build.
"""

from pathlib import Path

from edgekit.artifact import Manifest
from edgekit.cpu import products

LIBRARY = Path(__file__).with_name("_operator.so")
VARIABLE, STOCK = "EDGEKIT_ONNX_PRODUCTS", "onnxruntime"
"""What the environment may ask for beside edgekit's; by default what is faster here."""
COMPUTED = {"provider": ("cpu",), "kv_dtype": ("float32", "int8"), "accuracy_level": (4,)}
"""Details of the artifacts whose products it computes: float32 inputs, in int8. Others are ONNX Runtime's alone."""


def chosen(manifest: Manifest) -> bool:
    """Whether it takes the place of ONNX Runtime's for this artifact. Raises as ``products.chosen``."""
    return products.chosen(LIBRARY, VARIABLE, STOCK, computes(manifest))


def computes(manifest: Manifest) -> bool:
    """Whether it knows the products of this artifact."""
    return all(manifest.engine.details.get(name) in values for name, values in COMPUTED.items())

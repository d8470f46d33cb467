"""Packing, and that ONNX Runtime reads these bytes as the weights they stand for."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.quant import (
    GROUPS,
    Format,
    QuantizedTensor,
    dequantize,
    pack_nibbles,
    pack_zero_points,
    quantize,
    unpack_nibbles,
    unpack_zero_points,
)

SPEC = Path(__file__).parents[2] / "docs" / "portable-int4.md"


def test_nibbles() -> None:
    assert pack_nibbles(np.array([1, 2, 3, 15], np.uint8)).tobytes() == bytes.fromhex("21f3")
    values = np.random.default_rng(0).integers(0, 16, (3, 5, 32)).astype(np.uint8)
    packed = pack_nibbles(values)
    assert packed.shape == (3, 5, 16) and packed.dtype == np.uint8
    assert (unpack_nibbles(packed) == values).all()
    every = np.arange(256, dtype=np.uint8)
    assert (pack_nibbles(unpack_nibbles(every)) == every).all()
    with pytest.raises(ValueError, match="even"):
        pack_nibbles(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize("groups", [1, 2, 5, 8])
def test_zero_points(groups: int) -> None:
    zeros = np.random.default_rng(0).integers(0, 16, (7, groups)).astype(np.uint8)
    packed = pack_zero_points(zeros)
    assert packed.shape == (7, (groups + 1) // 2)
    assert (unpack_zero_points(packed, groups) == zeros).all()
    assert groups % 2 == 0 or (packed[:, -1] < 16).all()


def read_by_onnxruntime(t: QuantizedTensor) -> NDArray[np.float32]:
    """A MatMulNBits of these bytes times the identity: the weights as the engine's kernel sees them, [N, K]."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    (n, k), bits = t.shape, t.format.bits
    initializers = {
        "B": t.codes,
        "scales": t.scales.astype(np.float32),
        "zero_points": pack_zero_points(t.zeros) if bits == 4 else t.zeros,
    }
    node = onnx.helper.make_node(
        "MatMulNBits", ["A", *initializers], ["Y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=t.format.group
    )
    graph = onnx.helper.make_graph(
        [node],
        "one_matmul",
        [onnx.helper.make_tensor_value_info("A", onnx.TensorProto.FLOAT, ["M", k])],
        [onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, ["M", n])],
        [onnx.numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"A": np.eye(k, dtype=np.float32)})[0].T)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("k", [256, 416, 300])
def test_onnxruntime_reads_the_same_weights(bits: int, group: int, k: int) -> None:
    w = np.random.default_rng(k).standard_normal((40, k)).astype(np.float32)
    t = quantize(w, Format(bits, group), name="w")
    assert (read_by_onnxruntime(t) == dequantize(t)).all()


def test_the_worked_example_of_the_specification() -> None:
    text = SPEC.read_text(encoding="utf-8")
    fields = {
        name: bytes.fromhex(digits)
        for name, digits in re.findall(r"^ *(codes|scales|zeros|zero_points) *= ((?:[0-9a-f]{2} ?)+)$", text, re.M)
    }
    k = np.arange(40)
    w = np.stack([((3 * k + 1) % 16 - 5) * 0.07421875, ((7 * k) % 40 - 17) / 100]).astype(np.float32)
    w[0, 32:] = np.where(k[32:] == 33, 0.375, 0)
    t = quantize(w, Format(4, 32), name="example", search=False)
    assert t.codes.tobytes() == fields["codes"]
    assert t.scales.astype("<f2").tobytes() == fields["scales"]
    assert t.zeros.tobytes() == fields["zeros"]
    assert pack_zero_points(t.zeros).tobytes() == fields["zero_points"]

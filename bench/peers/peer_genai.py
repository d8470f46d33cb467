"""The quantizer that onnxruntime-genai's builder calls (``MatMulNBitsQuantizer``), with the builder's settings and a few others.

Each matrix is a MatMul of its own and is read back by multiplying the identity with it in ONNX Runtime (float32 compute, so exactly): no
knowledge of the layout enters. The builder for ``-p int4 -e cpu``: float32 scales, block 32, symmetric, ``algo_config`` default, rtn
or k_quant; the embedding stays float32, but where it is tied shares the lm_head's integers. k_quant_mixed: 8 bits for lm_head, and for qkv
and down_proj of the layers that its formula names (``make_matmul_mixed_precision`` in builders/base.py).
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import onnxruntime
from common import F32, Job, Made, clock, run
from onnxruntime.quantization import matmul_nbits_quantizer as nbits

Settings = Callable[[], nbits.WeightOnlyQuantConfig | None]


def graph(weight: F32) -> onnx.ModelProto:
    """``Y = X @ weight.T``"""
    n, k = weight.shape
    constant = onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T), "W")
    node = onnx.helper.make_node("MatMul", ["X", "W"], ["Y"], name="matmul")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", width]) for name, width in (("X", k), ("Y", n)))
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y], [constant]), opset_imports=opsets, ir_version=10)


def one(weight: F32, settings: Settings, bits: int, group: int, symmetric: bool) -> tuple[F32, float, float]:
    """The weight as it comes back, its bits in the file, and the seconds."""
    with clock() as seconds:
        quantizer = nbits.MatMulNBitsQuantizer(
            graph(weight), bits=bits, block_size=group, is_symmetric=symmetric, accuracy_level=0, algo_config=settings()
        )
        quantizer.process()
    model = quantizer.model.model
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits"], [node.op_type for node in model.graph.node]
    stored = 8.0 * sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"X": np.eye(weight.shape[1], dtype=np.float32)})
    return np.ascontiguousarray(product.T), stored, seconds[0]


def eight(job: Job, name: str) -> bool:
    """Whether k_quant_mixed gives a matrix 8 bits."""
    if "." not in name:
        return True
    layers = job.integer("num_hidden_layers")
    _, number, kind = name.split(".")
    i = int(number)
    chosen = i < layers / 8 or i >= 7 * layers / 8 or (i - round(layers / 8)) % 3 == 2
    return chosen and kind in ("q_proj", "k_proj", "v_proj", "down_proj")


def quantize(job: Job, *, settings: Callable[[int], nbits.WeightOnlyQuantConfig | None], group: int, symmetric: bool, mixed: bool) -> Made:
    weights: dict[str, F32] = {}
    bits: dict[str, float] = {}
    total = 0.0
    tied = bool(job.config.get("tie_word_embeddings"))
    for name, weight in job.matrices().items():
        if name == "embed_tokens" and not tied:
            bits[name] = 32.0 * weight.size
            continue
        width = 8 if mixed and eight(job, name) else 4
        weights[name], bits[name], seconds = one(weight, partial(settings, width), width, group, symmetric)
        total += seconds
    return Made(weights, bits, total, calibrated=False)


def default(bits: int) -> None:
    """The builder's ``algo_config=default``."""


def rtn(bits: int) -> nbits.WeightOnlyQuantConfig:
    return nbits.RTNWeightOnlyQuantConfig(customized_weight_config={"matmul": {"bits": bits}})


def k_quant(bits: int) -> nbits.WeightOnlyQuantConfig:
    return nbits.KQuantWeightOnlyQuantConfig(customized_weight_config={"matmul": {"bits": bits}})


def hqq(group: int, bits: int) -> nbits.WeightOnlyQuantConfig:
    return nbits.HQQWeightOnlyQuantConfig(block_size=group, bits=bits)


if __name__ == "__main__":
    whole = partial(quantize, mixed=False)
    run(
        {
            "genai builder default g32 symmetric": partial(whole, settings=default, group=32, symmetric=True),
            "genai builder rtn g32 symmetric": partial(whole, settings=rtn, group=32, symmetric=True),
            "genai builder rtn g32": partial(whole, settings=rtn, group=32, symmetric=False),
            "genai builder k_quant g32": partial(whole, settings=k_quant, group=32, symmetric=False),
            "genai builder k_quant_mixed g32": partial(quantize, settings=k_quant, group=32, symmetric=False, mixed=True),
            "genai builder rtn g128": partial(whole, settings=rtn, group=128, symmetric=False),
            "genai builder k_quant g128": partial(whole, settings=k_quant, group=128, symmetric=False),
            "onnxruntime HQQ g64": partial(whole, settings=partial(hqq, 64), group=64, symmetric=False),
            "onnxruntime HQQ g128": partial(whole, settings=partial(hqq, 128), group=128, symmetric=False),
        }
    )

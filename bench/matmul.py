"""The least a token can take: MatMulNBits alone, ONNX Runtime's and edgekit's, on every matrix of a model, by group size and zero points.

    python bench/matmul.py --threads 2 --out bench/results/matmul.json      # a minute or two, 3 GB of memory

One token, weights at random, each shape in a graph of so many equal matrices that no cache holds them; the graphs of all forms run in
turns, their medians times how often the model has the shape are its sum. Everything else in a token comes on top.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "bench")]

from decode_one import bandwidth  # noqa: E402
from edgekit.engines.onnx import operator  # noqa: E402
from measure import machine  # noqa: E402

PHI = {"qkv": (9216, 3072, 32), "o": (3072, 3072, 32), "gate and up": (16384, 3072, 32), "down": (3072, 8192, 32)}
"""Of Phi-3.5-mini: N, K, and how many."""
HEAD = (32064, 3072)
COLD = 1 << 28  # weights of one graph
TURNS = 15


@dataclass(frozen=True)
class Form:
    bits: int
    group: int
    zeros: bool
    level: int = 4
    own: bool = False

    @property
    def bytes_per_weight(self) -> float:
        return (self.bits + (32 + (self.bits if self.zeros else 0)) / self.group) / 8


LAYERS = {
    "g128, zero points, edgekit's own kernel": Form(4, 128, True, own=True),
    "g32, zero points, edgekit's own kernel": Form(4, 32, True, own=True),
    "g128, zero points (edgekit's `int4-g128`)": Form(4, 128, True),
    "g128, symmetric": Form(4, 128, False),
    "g64, zero points": Form(4, 64, True),
    "g32, zero points (`int4-g32`)": Form(4, 32, True),
    "g32, symmetric (onnxruntime-genai's builder)": Form(4, 32, False),
    "g128, zero points, products in float32": Form(4, 128, True, level=0),
}
HEADS = {
    "INT8 g128, edgekit's own kernel": Form(8, 128, True, own=True),
    "INT8 g128 (edgekit)": Form(8, 128, True),
    "INT4 g32, symmetric (onnxruntime-genai's builder)": Form(4, 32, False),
}


def session(form: Form, n: int, k: int, copies: int, threads: int) -> onnxruntime.InferenceSession:
    rng, groups, nodes, weights, outputs = np.random.default_rng(0), k // form.group, [], [], []
    for i in range(copies):
        parts = {
            "codes": rng.integers(0, 256, (n, groups, form.group * form.bits // 8), dtype=np.uint8),
            "scales": rng.uniform(0.001, 0.01, n * groups).astype(np.float32),
        }
        if form.zeros:
            parts["zeros"] = rng.integers(0, 256, n * groups * form.bits // 8, dtype=np.uint8)
        weights += [numpy_helper.from_array(array, f"{name}.{i}") for name, array in parts.items()]
        sizes = {"K": k, "N": n, "bits": form.bits, "block_size": form.group, "accuracy_level": form.level}
        nodes.append(
            helper.make_node("MatMulNBits", ["x", *(f"{name}.{i}" for name in parts)], [f"y.{i}"], domain="com.microsoft", **sizes)
        )
        outputs.append(helper.make_tensor_value_info(f"y.{i}", TensorProto.FLOAT, [1, n]))
    graph = helper.make_graph(nodes, "matmul", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, k])], outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if form.own:
        options.register_custom_ops_library(str(operator.LIBRARY))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or all graphs' threads would spin against the one that runs
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def milliseconds(forms: dict[str, Form], n: int, k: int, threads: int) -> dict[str, float]:
    """Of one matrix, by form."""
    copies = max(2, COLD // (n * k))
    made = {name: session(form, n, k, copies, threads) for name, form in forms.items()}
    x, spent = np.random.default_rng(1).standard_normal((1, k)).astype(np.float32), {name: list[float]() for name in forms}
    for _ in range(TURNS):
        for name, one in made.items():
            began = time.perf_counter()
            one.run(None, {"x": x})
            spent[name].append((time.perf_counter() - began) / copies)
    return {name: 1e3 * statistics.median(each[1:]) for name, each in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    dram = bandwidth(asked.threads)
    by_shape = {what: milliseconds(LAYERS, n, k, asked.threads) for what, (n, k, _) in PHI.items()}
    heads = milliseconds(HEADS, *HEAD, asked.threads)
    weights = sum(n * k * count for n, k, count in PHI.values())
    layers = {name: sum(by_shape[what][name] * count for what, (_, _, count) in PHI.items()) for name in LAYERS}
    rows = []
    for matrices, forms, count, spent in (("the layers", LAYERS, weights, layers), ("lm_head", HEADS, HEAD[0] * HEAD[1], heads)):
        for name, form in forms.items():
            rate = count * form.bytes_per_weight / spent[name] * 1e3
            figures = {"ms": round(spent[name], 2), "gb_per_s": round(rate / 1e9, 1), "of_dram": round(rate / dram, 3)}
            rows.append({"matrices": matrices, "form": name, **figures})
            print(rows[-1], flush=True)
    result = {
        "command": "python bench/matmul.py " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "versions": {"onnxruntime": version("onnxruntime")},
        "threads": asked.threads,
        "dram_gb_per_s": round(dram / 1e9, 1),
        "rows": rows,
        "ms_by_shape": by_shape,
    }
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What each provider's kernels take, where that is less than the operator's definition says, and a check of a graph against it.

ONNX Runtime does not refuse an input or attribute that a kernel never reads: the result is just wrong. So a graph is checked here
before the long job. Sources, all of github.com/microsoft/onnxruntime: docs/OperatorKernels.md (types, CUDA and DirectML),
contrib_ops/webgpu/webgpu_contrib_kernels.cc (what WebGPU has) and the kernels named below. docs/providers.md tells the whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgekit.engines.onnx.options import OnnxOptions
from edgekit.engines.onnx_format.proto import Graph, Node
from edgekit.errors import TargetError

Rule = Callable[[Node], str | None]
"""What stands against a node, or None."""

LENGTHS = frozenset({"Add", "Cast", "Greater", "Max", "Range", "ReduceSum", "Shape", "Squeeze", "Sub", "Unsqueeze", "Where"})
"""Operators on lengths and positions: a handful of integers, which ONNX Runtime computes on the CPU where a device has no kernel."""
PLAIN = frozenset({"Concat", "Gather", "Mul", "Pad", "Reshape", "SimplifiedLayerNormalization", "Slice", "Split"})
"""ONNX operators that every provider has, in float32 and float16."""


def ignores(attribute: str, neutral: int) -> Rule:
    def rule(node: Node) -> str | None:
        held = node.attributes.get(attribute)
        return f"ignores {attribute}, which is {held}" if held is not None and held != neutral else None

    return rule


def reads(*inputs: int) -> Rule:
    def rule(node: Node) -> str | None:
        extra = [i for i, value in enumerate(node.inputs) if value is not None and i not in inputs]
        return f"reads no input {', '.join(map(str, extra))}" if extra else None

    return rule


def needs(*inputs: int) -> Rule:
    def rule(node: Node) -> str | None:
        absent = [i for i in inputs if i >= len(node.inputs) or node.inputs[i] is None]
        return f"needs input {', '.join(map(str, absent))}" if absent else None

    return rule


def outputs_only(*outputs: int) -> Rule:
    def rule(node: Node) -> str | None:
        extra = [i for i, value in enumerate(node.outputs) if value.name and i not in outputs]
        return f"writes no output {', '.join(map(str, extra))}" if extra else None

    return rule


def bits(*allowed: int) -> Rule:
    def rule(node: Node) -> str | None:
        held = node.attributes["bits"]
        return None if held in allowed else f"has no {held}-bit weights"

    return rule


def size(node: Node, name: str) -> int:
    found = node.attributes[name]
    assert isinstance(found, int)
    return found


def whole_groups(node: Node) -> str | None:
    k, group = size(node, "K"), size(node, "block_size")
    return f"has no weights of {k} inputs in groups of {group}: {group} must divide them" if k % group else None


def whole_bytes(node: Node) -> str | None:
    k, group = size(node, "K"), size(node, "block_size")
    odd = size(node, "bits") == 4 and -(-k // group) % 2
    return f"takes 4-bit zero points without padding; {k} inputs in groups of {group} leave half a byte a row" if odd else None


@dataclass(frozen=True)
class Kernels:
    """What one provider has: ``precisions`` for all operators, and by operator of com.microsoft the rules a node has to keep."""

    name: str
    precisions: frozenset[str] = frozenset({"float32", "float16"})
    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)


SKIP_NORM = outputs_only(0, 3)  # no kernel but the CPU's fills mean and deviation in
KERNELS: dict[str, Kernels] = {
    "cpu": Kernels(
        "ONNX Runtime's CPU",
        rules={
            "GatherBlockQuantized": (bits(4, 8),),
            "GroupQueryAttention": (),
            "MatMulNBits": (bits(4, 8),),
            "QuickGelu": (),
            "SkipSimplifiedLayerNormalization": (),
        },
    ),
    "cuda": Kernels(
        "CUDA",
        # contrib_ops/cuda/bert/group_query_attention.cc, REGISTER_KERNEL_TYPED: float16 and bfloat16 only. It takes position_ids since
        # 1.24 and ignored them before: not given.
        frozenset({"float16"}),
        {
            "GatherBlockQuantized": (bits(4, 8),),  # contrib_ops/cuda/quantization/gather_block_quantized.cc
            "GroupQueryAttention": (reads(*range(9)),),
            "MatMulNBits": (bits(4, 8), reads(0, 1, 2, 3, 5)),  # contrib_ops/cuda/quantization/matmul_nbits.cc
            "QuickGelu": (),
            "SkipSimplifiedLayerNormalization": (SKIP_NORM,),
        },
    ),
    "dml": Kernels(
        "DirectML",
        rules={
            # .../DmlExecutionProvider/src/Operators/DmlOperatorGroupQueryAttention.cpp reads query, key, value and the length alone.
            # The past and the total are given for their shapes.
            "GroupQueryAttention": (needs(0, 1, 2), reads(*range(7)), ignores("do_rotary", 0), ignores("local_window_size", -1)),
            # DmlOperatorMatMulNBits.cpp: exactly four inputs; zero points are a tensor of 4-bit values [N, G] without gaps.
            "MatMulNBits": (bits(4, 8), reads(0, 1, 2, 3), whole_groups, whole_bytes),
            "QuickGelu": (),
            # DmlOperatorRotaryEmbedding.cpp takes the head's size from the table.
            "RotaryEmbedding": (ignores("num_heads", 0), ignores("rotary_embedding_dim", 0)),
            # DmlOperatorSkipLayerNormalization.cpp, QuerySkipLayerNormalization.
            "SkipSimplifiedLayerNormalization": (SKIP_NORM,),
        },
    ),
    "webgpu": Kernels(
        "WebGPU",
        rules={
            "GatherBlockQuantized": (bits(4, 8),),  # contrib_ops/webgpu/quantization/gather_block_quantized.cc
            # contrib_ops/webgpu/bert/group_query_attention.cc checks the shape of position_ids and rotates by its own count.
            "GroupQueryAttention": (reads(*range(9)),),
            "MatMulNBits": (bits(4, 8), reads(0, 1, 2, 3, 5)),  # contrib_ops/webgpu/quantization/matmul_nbits.cc: no g_idx
            "QuickGelu": (),
            "SkipSimplifiedLayerNormalization": (SKIP_NORM,),
        },
    ),
}


def check_kernels(graph: Graph, options: OnnxOptions, where: str) -> None:
    """Raises TargetError naming the node and what the provider's kernel does not do with it. where: for messages."""
    kernels = KERNELS[options.provider]
    if options.precision not in kernels.precisions:
        raise TargetError(
            f"{where}: {kernels.name} has no {options.precision} GroupQueryAttention; "
            f'set precision = "{min(kernels.precisions)}" in the target\'s [options]'
        )
    for node in graph.nodes:
        if node.domain == "":
            against = None if node.kind in LENGTHS | PLAIN else "does not exist"
        elif node.kind not in kernels.rules:
            against = "does not exist"
        else:
            against = next((found for rule in kernels.rules[node.kind] if (found := rule(node))), None)
        if against:
            raise TargetError(
                f"{where}: {kernels.name}'s {node.kind} {against} (node {node.name}). "
                "Build this model for another target (edge targets), or with a --context or --scheme that avoids it."
            )

"""The form of a part for an NPU without float16 (v68): values as 16-bit integers, matrices as 8-bit ones with a scale for each output.

Graphs are those of graph.py with a QuantizeLinear and a DequantizeLinear behind every value; ONNX Runtime folds them into the operators.
Ranges come from running the float graphs. These are not the portable INT4 weights, but quantized anew; the manifest says so.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.engines.onnx_format.proto import DataType, Graph, Node, Tape, Value
from edgekit.engines.qnn.graph import F16, IR_VERSION

Range = tuple[float, float]
Weights = Callable[[str], NDArray[np.float32]]
OPSETS = {"": 21}
MASKED = -100.0
"""In place of graph.MASKED: a score this low counts for nothing, and leaves 16 bits enough steps for the others."""
TOP = 65535
MARGIN = 1.1
MOVING = {"Reshape", "Transpose", "Split", "Concat", "ScatterND"}
"""Operators that only move values, so that input and output have one scale."""


@dataclass
class Ranges:
    """Lowest and highest value seen, by name; values that are moved into each other share both."""

    seen: dict[str, Range] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str:
        while self.leader.get(name, name) != name:
            name = self.leader[name]
        return name

    def join(self, names: Iterable[str]) -> None:
        first, *others = (self.find(name) for name in names)
        for other in others:
            if other != first:
                self.leader[other] = first

    def note(self, name: str, low: float, high: float) -> None:
        name = self.find(name)
        old = self.seen.get(name, (0.0, 0.0))
        self.seen[name] = (min(old[0], low), max(old[1], high))

    def of(self, name: str) -> Range:
        """With a margin for what the samples did not show."""
        low, high = self.seen.get(self.find(name), (0.0, 0.0))
        return MARGIN * low, MARGIN * high


def observed(graph: Graph) -> tuple[Graph, list[str]]:
    """The graph with every float value as an output, to run it on sample input; their names."""
    ints = {value.name for value in graph.inputs if value.dtype is not F16}
    made = [value for node in graph.nodes for value in node.outputs if value.name not in ints]
    given = {value.name for value in graph.outputs}
    more = [replace(value, dtype=F16, shape=()) for value in made if value.name not in given]
    return replace(graph, outputs=[*graph.outputs, *more]), [value.name for value in (*graph.outputs, *more)]


def join_moved(graphs: Iterable[Graph], ranges: Ranges) -> None:
    """Values that an operator only moves have one range; before any is noted."""
    for graph in graphs:
        indices = {value.name for value in (*graph.inputs, *graph.initializers) if value.dtype is DataType.INT64}
        for node in graph.nodes:
            if node.kind in MOVING:
                ranges.join(v.name for v in (*node.inputs, *node.outputs) if v is not None and v.name not in indices)


def with_integers(graph: Graph, ranges: Ranges, weights: Weights) -> Graph:
    """``graph`` in 16-bit integers, its inputs and outputs too. weights: a canonical name -> its float32 values, [N, K] or [N].

    Instead of ``write`` it takes ``place`` and ``fresh`` (stages.py): HTP writes no 16-bit integers by indices.
    """
    tape = Tape()
    context = next(v.shape[2] for v in graph.inputs if v.name.startswith("past_key_values"))
    place, fresh = Value("place", DataType.INT32, (context,)), Value("fresh", DataType.UINT8, (1, 1, context, 1))
    inputs = [replace(v, dtype=DataType.UINT16) for v in graph.inputs if v.dtype is F16] + [place, fresh]
    initializers: dict[str, Value] = {v.name: v for v in graph.initializers if v.dtype is DataType.INT64}
    static = {v.name: v for v in graph.initializers if v.dtype is not DataType.INT64}
    now: dict[str, Value] = {}

    def decoded(codes: Value, name: str) -> Value:
        return tape.add("DequantizeLinear", [codes, *constants(initializers, name, *step(ranges.of(name)))])[0]

    for given in inputs[:-2]:
        now[given.name] = decoded(given, given.name)
    (is_fresh,) = tape.add("Cast", [fresh], {"to": DataType.BOOL})
    finals = {v.name: replace(v, dtype=DataType.UINT16) for v in graph.outputs}
    for node in graph.nodes:
        operands = [now.get(v.name) or _operand(tape, initializers, static, v, weights) for v in _read(node)]
        if node.kind == "MatMulNBits":
            results = tape.add("MatMul", [operands[0], _matrix(tape, initializers, node, weights)], name=node.name)
        elif node.kind == "ScatterND":
            spread = tape.add("Gather", [operands[1], place], {"axis": 2})
            name = f"{node.name}.spread"
            ranges.join([node.outputs[0].name, name])
            (codes,) = tape.add("QuantizeLinear", [*spread, *constants(initializers, name, *step(ranges.of(name)))])
            results = tape.add("Where", [is_fresh, decoded(codes, name), operands[0]], name=node.name)
        else:
            results = tape.add(node.kind, operands, node.attributes, domain=node.domain, outputs=len(node.outputs), name=node.name)
        for value, result in zip(node.outputs, results, strict=True):
            parts = constants(initializers, value.name, *step(ranges.of(value.name)))
            final = finals.get(value.name)
            (codes,) = tape.add("QuantizeLinear", [result, *parts], outputs=1 if final is None else [final])
            now[value.name] = decoded(codes, value.name)
    read = tape.read()
    nodes = [node for node in tape.nodes if node.kind != "DequantizeLinear" or any(v.name in read for v in node.outputs)]
    kept = [value for value in initializers.values() if value.name in read]
    return Graph(nodes, inputs, [finals[v.name] for v in graph.outputs], kept, OPSETS, IR_VERSION)


def _read(node: Node) -> list[Value]:
    """A product's other inputs are its weight; where to write comes otherwise."""
    read = [value for value in node.inputs if value is not None]
    return read[:1] if node.kind == "MatMulNBits" else [read[0], read[2]] if node.kind == "ScatterND" else read


def step(found: Range) -> tuple[float, int]:
    """Scale and zero point of 16-bit codes for values of a range that holds 0."""
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    scale = (high - low) / TOP or 1.0
    return scale, round(-low / scale)


def constants(initializers: dict[str, Value], name: str, scale: float, zero: int) -> list[Value]:
    made = [
        Value(f"{name}.scale", DataType.FLOAT, (), np.array(scale, "<f4").tobytes()),
        Value(f"{name}.zero", DataType.UINT16, (), np.array(zero, "<u2").tobytes()),
    ]
    initializers.update({value.name: value for value in made})
    return made


def _operand(tape: Tape, initializers: dict[str, Value], static: Mapping[str, Value], value: Value, weights: Weights) -> Value:
    """A vector of the checkpoint, or a constant, as codes; an integer input as it is."""
    if value.name not in static:
        return initializers[value.name]
    content = static[value.name].content
    numbers = (
        np.frombuffer(content, "<f2").astype(np.float32) if isinstance(content, bytes) else weights(value.name.removesuffix(".weight"))
    )
    scale, zero = step((float(numbers.min()), float(numbers.max())))
    parts = constants(initializers, value.name, scale, zero)
    codes = np.clip(np.round(numbers / scale) + zero, 0, TOP).astype("<u2")
    initializers[value.name] = Value(value.name, DataType.UINT16, numbers.shape, codes.tobytes())
    return tape.add("DequantizeLinear", [initializers[value.name], *parts])[0]


def _matrix(tape: Tape, initializers: dict[str, Value], node: Node, weights: Weights) -> Value:
    """[K, N] of 8 bits, symmetric, a scale for each of the N outputs."""
    if f"{node.name}.codes" not in initializers:
        weight = weights(node.name)
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / np.float32(127)
        codes = np.clip(np.round(weight / scale[:, None]), -127, 127).astype(np.int8)
        made = [
            Value(f"{node.name}.codes", DataType.INT8, weight.T.shape, np.ascontiguousarray(codes.T).tobytes()),
            Value(f"{node.name}.scales", DataType.FLOAT, scale.shape, scale.astype("<f4").tobytes()),
            Value(f"{node.name}.zeros", DataType.INT8, scale.shape, bytes(len(scale))),
        ]
        initializers.update({value.name: value for value in made})
    parts = [initializers[f"{node.name}.{what}"] for what in ("codes", "scales", "zeros")]
    return tape.add("DequantizeLinear", parts, {"axis": 1})[0]

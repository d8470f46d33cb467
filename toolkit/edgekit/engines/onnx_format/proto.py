"""The little of ONNX's protobuf that one decoder graph needs: what it is made of, and its bytes.

The onnx package and those on top of it bring 120 MB of dependencies to write these hundred kilobytes. Field numbers:
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3; encoding: https://protobuf.dev/programming-guides/encoding.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Attributes = Mapping[str, int | float | str | tuple[int, ...]]


NUMPY = {"FLOAT": "<f4", "UINT8": "u1", "INT8": "i1", "UINT16": "<u2", "INT32": "<i4", "INT64": "<i8", "BOOL": "?", "FLOAT16": "<f2"}


class DataType(IntEnum):
    """TensorProto.DataType, as far as it is used here."""

    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT32 = 6
    INT64 = 7
    BOOL = 9
    FLOAT16 = 10

    @property
    def numpy(self) -> np.dtype[np.generic]:
        return np.dtype(NUMPY[self.name])

    @property
    def itemsize(self) -> int:
        return self.numpy.itemsize


@dataclass(frozen=True)
class External:
    """Bytes of a file beside the model."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Value:
    """A tensor by its name. What nodes compute says neither type nor shape: whoever loads the graph infers them.

    shape: a name stands for a length that changes; of an input or output without one nothing is said. content: of an initializer.
    """

    name: str
    dtype: DataType | None = None
    shape: tuple[int | str, ...] = ()
    content: bytes | External | None = None


@dataclass(frozen=True)
class Node:
    kind: str
    domain: str
    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: Attributes


@dataclass(frozen=True)
class Graph:
    """A whole model. ``initializers`` may hold inputs, which are then optional. opsets: versions by domain."""

    nodes: Sequence[Node]
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    initializers: Sequence[Value]
    opsets: Mapping[str, int]
    ir_version: int


@dataclass
class Tape:
    """The nodes of a graph in the order they were added, which is the order they can run in."""

    nodes: list[Node] = field(default_factory=list)
    unnamed: int = 0

    def add(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        attributes: Attributes | None = None,
        *,
        outputs: int | Sequence[Value] = 1,
        domain: str = "",
        name: str | None = None,
    ) -> tuple[Value, ...]:
        """A node's outputs: the given ones, or as many new ones."""
        if isinstance(outputs, int):
            made = tuple(Value(f"val_{self.unnamed + i}") for i in range(outputs))
            self.unnamed += outputs
        else:
            made = tuple(outputs)
        self.nodes.append(Node(kind, domain, name or f"node_{kind}_{len(self.nodes)}", tuple(inputs), made, attributes or {}))
        return made

    def read(self) -> set[str]:
        """Names of everything that a node reads."""
        return {value.name for node in self.nodes for value in node.inputs if value is not None}


def constant(name: str, array: NDArray[np.int64]) -> Value:
    """An int64 initializer whose content lies in the model itself."""
    return Value(name, DataType.INT64, array.shape, array.astype("<i8").tobytes())


def serialize(graph: Graph) -> bytes:
    """The ModelProto. The same graph gives the same bytes, those of protobuf's own deterministic serializer."""
    versions = [message(8, text(1, domain) + number(2, version)) for domain, version in graph.opsets.items()]
    body = [
        *(message(1, node_proto(node)) for node in graph.nodes),
        text(2, "decoder"),
        *(message(5, tensor_proto(value)) for value in graph.initializers),
        *(message(11, value_info(value)) for value in graph.inputs),
        *(message(12, value_info(value)) for value in graph.outputs),
    ]
    return number(1, graph.ir_version) + text(2, "edgekit") + message(7, b"".join(body)) + b"".join(versions)


def node_proto(node: Node) -> bytes:
    inputs = [text(1, "" if value is None else value.name) for value in node.inputs]  # an empty name: left out
    outputs = [text(2, value.name) for value in node.outputs]
    attributes = [message(5, attribute_proto(name, value)) for name, value in node.attributes.items()]
    domain = [text(7, node.domain)] if node.domain else []
    return b"".join([*inputs, *outputs, text(3, node.name), text(4, node.kind), *attributes, *domain])


def attribute_proto(name: str, value: int | float | str | tuple[int, ...]) -> bytes:
    """AttributeProto.type is 1 for a float, 2 for an int, 3 for a string, 7 for several ints."""
    if isinstance(value, str):
        return text(1, name) + text(4, value) + number(20, 3)
    if isinstance(value, tuple):
        return text(1, name) + b"".join(number(8, item) for item in value) + number(20, 7)
    if isinstance(value, float):
        return text(1, name) + tag(2, 5) + struct.pack("<f", value) + number(20, 1)
    return text(1, name) + number(3, value) + number(20, 2)


def tensor_proto(value: Value) -> bytes:
    if value.dtype is None or value.content is None:
        raise ValueError(f"{value.name} is no initializer")
    head = [*(number(1, int(size)) for size in value.shape), number(2, value.dtype), text(8, value.name)]
    if isinstance(value.content, bytes):
        return b"".join([*head, tag(9, 2), varint(len(value.content)), value.content])
    where = {"location": value.content.file, "offset": str(value.content.offset), "length": str(value.content.length)}
    entries = [message(13, text(1, key) + text(2, said)) for key, said in where.items()]
    return b"".join([*head, *entries, number(14, 1)])


def value_info(value: Value) -> bytes:
    if value.dtype is None:
        raise ValueError(f"{value.name} has no type")
    sizes = (message(1, text(2, size) if isinstance(size, str) else number(1, size)) for size in value.shape)
    tensor = number(1, value.dtype) + (message(2, b"".join(sizes)) if value.shape else b"")
    return text(1, value.name) + message(2, message(1, tensor))


def text(index: int, content: str) -> bytes:
    return message(index, content.encode())


def message(index: int, content: bytes) -> bytes:
    return tag(index, 2) + varint(len(content)) + content


def number(index: int, value: int) -> bytes:
    return tag(index, 0) + varint(value)


def tag(index: int, wire: int) -> bytes:
    return varint(index << 3 | wire)


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative number as 64 bits of two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

"""The bytes of model.onnx, read back by protobuf, onnx and onnx_ir, none of which wrote them."""

from pathlib import Path
from typing import Literal, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from checkpoints import Variant
from edgekit.engines.onnx.export import plan
from edgekit.engines.onnx.options import OnnxOptions
from edgekit.engines.onnx_format.proto import DataType, External, Graph, Tape, Value, constant, serialize, varint
from edgekit.quant.scheme import scheme
from onnx_artifact import open_variant, target

LONG_PARTIAL = "phi3-longrope-partial-tied"
FORMS = [
    *((provider, precision, LONG_PARTIAL) for provider in ("cpu", "dml", "webgpu") for precision in ("float32", "float16")),
    ("cuda", "float16", LONG_PARTIAL),
    ("dml", "float16", "phi3-longrope"),
    ("cpu", "float32", "phi3-ragged"),
    ("cpu", "float32", "mistral-window"),
    ("cuda", "float16", "qwen2"),
    ("cpu", "float32", Variant("llama", {"tie_word_embeddings": True})),
]
TYPES = {DataType.FLOAT: ir.DataType.FLOAT, DataType.FLOAT16: ir.DataType.FLOAT16, DataType.UINT8: ir.DataType.UINT8}
TYPES |= {DataType.INT32: ir.DataType.INT32, DataType.INT64: ir.DataType.INT64}


@pytest.fixture(params=FORMS, ids=str)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Graph:
    provider, precision, variant = request.param
    model = open_variant(tmp_path, variant)
    wanted = target({"accuracy_level": 0, "provider": provider, "precision": precision})
    return plan(model, scheme("int4-g32"), wanted)[0]


def test_they_are_the_bytes_that_protobuf_writes(graph: Graph) -> None:
    data = serialize(graph)
    assert onnx.ModelProto.FromString(data).SerializeToString(deterministic=True) == data


def test_the_checker_of_onnx_passes_every_form(graph: Graph) -> None:
    model = onnx.ModelProto.FromString(serialize(graph))
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":  # ONNX Runtime has it in ONNX's own domain, where onnx does not know it
            node.domain = "com.microsoft"
    for tensor in model.graph.initializer:  # the checker looks for the file
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = bytes(int(np.prod(tensor.dims)) * DataType(tensor.data_type).itemsize)
    onnx.checker.check_model(model, full_check=True)


def test_onnx_ir_reads_the_graph_that_was_meant(graph: Graph) -> None:
    model = ir.from_proto(onnx.ModelProto.FromString(serialize(graph)))
    read = model.graph
    assert (model.ir_version, dict(model.opset_imports)) == (graph.ir_version, dict(graph.opsets))
    assert [(n.op_type, n.domain, n.name) for n in read] == [(n.kind, n.domain, n.name) for n in graph.nodes]
    for node, meant in zip(read, graph.nodes, strict=True):
        assert [v and v.name for v in node.inputs] == [v and v.name for v in meant.inputs]
        assert [v.name for v in node.outputs] == [v.name for v in meant.outputs]
        held = {a.name: a.value for a in node.attributes.values() if isinstance(a, ir.Attr)}
        floats = {name: np.float32(value) for name, value in meant.attributes.items() if isinstance(value, float)}
        assert held == {**meant.attributes, **floats}
        assert {a.name for a in node.attributes.values() if a.type == ir.AttributeType.FLOAT} == set(floats)
    for values, wanted in ((read.inputs, graph.inputs), (read.outputs, graph.outputs)):
        described = [(v.name, v.dtype, [str(size) for size in v.shape or ()]) for v in values]
        assert described == [(v.name, TYPES[cast(DataType, v.dtype)], [str(size) for size in v.shape]) for v in wanted]
    assert list(read.initializers) == [v.name for v in graph.initializers]
    for value in graph.initializers:
        tensor = read.initializers[value.name].const_value
        assert tensor is not None and tensor.dtype == TYPES[cast(DataType, value.dtype)] and tuple(tensor.shape) == value.shape
        if isinstance(value.content, External):
            assert isinstance(tensor, ir.ExternalTensor)
            assert (tensor.location, tensor.offset, tensor.length) == ("model.onnx.data", value.content.offset, value.content.length)
        else:
            assert tensor.numpy().tobytes() == value.content


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)])
def test_integers_of_every_size(value: int) -> None:
    assert onnx.AttributeProto.FromString(b"\x18" + varint(value)).i == value


def test_a_constant_without_dimensions_keeps_none() -> None:
    tape = Tape()
    (out,) = tape.add("Identity", [constant("three", np.array(3, np.int64))], outputs=[Value("out", DataType.INT64)])
    data = serialize(Graph(tape.nodes, [], [out], [constant("three", np.array(3, np.int64))], {"": 20}, 10))
    held = ir.from_proto(onnx.ModelProto.FromString(data)).graph.initializers["three"].const_value
    assert held is not None and held.numpy().shape == () and held.numpy() == 3


@pytest.mark.parametrize("place", ["initializer", "input"])
def test_a_value_without_what_its_place_needs_is_refused(place: Literal["initializer", "input"]) -> None:
    bare = [Value("x")]
    with pytest.raises(ValueError, match="x is no initializer" if place == "initializer" else "x has no type"):
        serialize(Graph([], bare if place == "input" else [], [], bare if place == "initializer" else [], {"": 20}, 10))


def test_options_name_the_types_of_the_file() -> None:
    assert OnnxOptions(precision="float16").floats.numpy == np.dtype("<f2")
    assert [OnnxOptions().floats.itemsize, DataType.INT64.itemsize] == [4, 8]

"""Operators of our own in place of the graph's, on processors where those of OpenVINO's CPU plugin are slow.

The files are the same: a model is changed when it is loaded. Weights are read where they lie in the mapped file, so nothing is laid out
anew. Device side: imports nothing of the build.
"""

from openvino import Model, Node, Output

from edgekit.artifact import Manifest
from edgekit.cpu import products
from edgekit.engines.openvino.operators import BITS, LIBRARY, Attention, Gate, Kernels, Matrix, Product, Stored

VARIABLE, STOCK = "EDGEKIT_OPENVINO_PRODUCTS", "openvino"
"""What the environment may ask for instead of edgekit's."""
GROUPS = frozenset({32, 64, 128})
UNPACKING = frozenset({"Convert", "Subtract", "Multiply", "Reshape"})
SPREADING = frozenset({"Reshape", "Broadcast", "Unsqueeze"})
"""Between a cache and attention, where several query heads share keys and values."""


def chosen(manifest: Manifest) -> bool:
    """Whether ours are used for this artifact. Raises as ``products.chosen``."""
    return products.chosen(LIBRARY, VARIABLE, STOCK, computes(manifest))


def computes(manifest: Manifest) -> bool:
    """Whether they know the products of this artifact: inputs in float32, which they round to int8 in groups as OpenVINO's dynamic
    quantization does."""
    details, scheme = manifest.engine.details, manifest.scheme
    groups = {form.group for form in (scheme.linear, scheme.embedding, scheme.lm_head, *scheme.exceptions.values())}
    return (
        details["device"] == "CPU"
        and details["precision"] in ("measured", "float32")
        and details["dynamic_quantization"] in ("measured", "on")
        and groups <= GROUPS
    )


def put_products(model: Model, kernels: Kernels) -> None:
    """In place of every product with decompressed weights."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and (matrix := decompressed(node.input_value(1).get_node())) is not None:
            _replace(node, Product(kernels, node.input_value(0), Stored.of(matrix)))
    model.validate_nodes_and_infer_types()


def put_attention(model: Model, kernels: Kernels) -> bool:
    """In place of attention and its cache. False, and nothing is changed, where a layer has a window or heads that the kernel does not
    take."""
    found = [(node, new_tokens(node)) for node in model.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    for node, inputs in found:
        shapes = [value.get_partial_shape() for value in inputs]
        causal = node.input_value(3).get_node().get_type_name() == "Select"  # graph.masks: another operator where there is a window
        if not causal or not kernels.attends(*(int(shapes[i][axis].get_length()) for i, axis in ((0, 1), (1, 1), (0, 3)))):
            return False
    for node, inputs in found:
        scale = node.input_value(4).get_node()
        _replace(node, Attention(kernels, inputs, float(scale.data)))
    for sink in model.get_sinks():
        model.remove_sink(sink)
    model.validate_nodes_and_infer_types()
    return True


def put_gates(model: Model, kernels: Kernels) -> None:
    """In place of silu(gate) * up where both come from one product."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply" or (swish := node.input_value(0).get_node()).get_type_name() != "Swish":
            continue
        gate, up = swish.input_value(0), node.input_value(1)
        split = gate.get_node()
        if split.get_type_name() == "VariadicSplit" and up.get_node() == split and (gate.get_index(), up.get_index()) == (0, 1):
            _replace(node, Gate(kernels, split.input_value(0)))
    model.validate_nodes_and_infer_types()


def new_tokens(attention: Node) -> list[Output]:
    """Queries, and keys and values as they enter the cache."""
    found = [attention.input_value(0)]
    for i in (1, 2):
        node = attention.input_value(i).get_node()
        while node.get_type_name() in SPREADING:
            node = node.input_value(0).get_node()
        found.append(node.input_value(1))  # of a Concat, after the past
    return found


def decompressed(node: Node) -> Matrix | None:
    """The matrix that a product multiplies with, if its weights are decompressed in the graph as graph.py does it."""
    found, todo = dict[str, Node](), [node]
    while todo:
        each = todo.pop()
        kind = each.get_type_name()
        if kind == "Constant":
            stored, shape = each.get_element_type().get_type_name(), each.get_output_shape(0)
            if len(shape) == 3:
                found["scales" if stored == "f16" else "codes" if shape[2] > 1 else "zeros"] = each
        elif kind in UNPACKING:
            todo += [value.get_node() for value in each.input_values()]
        else:
            return None
    if not {"codes", "scales"} <= set(found) or found["codes"].get_element_type().get_type_name() not in BITS:
        return None
    return Matrix(found["codes"], found["scales"], found.get("zeros"))


def _replace(node: Node, by: Node) -> None:
    by.set_friendly_name(node.get_friendly_name())
    for user in list(node.output(0).get_target_inputs()):
        user.replace_source_output(by.output(0))

"""``openvino_model.xml`` with weights that were never in memory.

OpenVINO's own serializer wants every constant's bytes. Here a weight enters the graph as a Parameter of its shape and type, which takes
none; in the serialized text it is then made the constant that it is, with the offset planned for it. Format (IR version 11):
https://docs.openvino.ai/2025/documentation/openvino-ir-format/operation-sets.html
"""

import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import openvino


@dataclass(frozen=True)
class Stored:
    """A weight in the file: bytes from ``offset`` of the weights' part on."""

    offset: int
    size: int


@dataclass(frozen=True)
class Graph:
    """xml: text of the IR. head: the bytes of its small constants, with which the weights file begins. base: where the weights do."""

    xml: bytes
    head: bytes
    base: int


def serialize(model: openvino.Model, weights: Mapping[str, Stored]) -> Graph:
    """``weights``: by the friendly name of the Parameter that stands for each."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.serialize(model, path, path.with_suffix(".bin"))
        head = path.with_suffix(".bin").read_bytes()
        tree = ElementTree.parse(path)
    base = -(-len(head) // 4096) * 4096
    for layer in tree.iter("layer"):
        stored = weights.get(layer.attrib["name"])
        if stored is None:
            continue
        data = layer.find("data")
        assert data is not None and layer.attrib["type"] == "Parameter"
        shape = data.attrib["shape"].replace(",", ", ")
        layer.attrib["type"] = "Const"
        data.attrib = {
            "element_type": data.attrib["element_type"],
            "shape": shape,
            "offset": str(base + stored.offset),
            "size": str(stored.size),
        }
    text: bytes = ElementTree.tostring(tree.getroot(), encoding="utf-8", xml_declaration=True)
    return Graph(text + b"\n", head, base)

"""What the files for OpenVINO hold, by the constants of ``openvino_model.xml``; needs no OpenVINO."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Manifest
from edgekit.errors import ArtifactError
from edgekit.models import Model
from edgekit.models.decoder import Rope
from edgekit.quant import unpack_nibbles
from edgekit.quant.scheme import Format, QuantizedTensor
from edgekit.stored import home, numbers, same_factors

XML, BIN = "openvino_model.xml", "openvino_model.bin"
DTYPES = {"f32": "<f4", "f16": "<f2", "u8": "u1", "u4": "u1", "i4": "u1"}
FREQUENCIES, LONG_FREQUENCIES, SCALE = "rope.frequencies", "rope.long_frequencies", "rope.scale"


@dataclass(frozen=True)
class Constant:
    """kind: OpenVINO's name of its type. offset, size: bytes of the weights' file."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class OpenvinoStored:
    """See ``edgekit.stored.Stored``."""

    directory: Path
    model: Model
    constants: Mapping[str, Constant]

    def where(self, weight: str) -> str:
        suffix = ".codes" if f"{self._home(weight, '.codes')[0]}.codes" in self.constants else ""
        return f"{BIN}, constant {self._home(weight, suffix)[0]}"

    def block(self, weight: str, start: int, stop: int, form: Format) -> QuantizedTensor:
        name, first = self._home(weight, ".codes")
        k = self.model.decoder.weight_shapes()["embed_tokens" if weight == "lm_head" else weight][1]
        groups = -(-k // form.group)
        codes = self._constant(f"{name}.codes", 3)
        if codes.shape[1:] != (groups, form.group):
            raise ArtifactError(
                f"{self.directory / XML}: {name}.codes has shape {list(codes.shape)}, wanted groups of {form.group}; build it again"
            )
        begin, end = (first + start) * groups, (first + stop) * groups
        packed = self._values(codes, begin * form.group * form.bits // 8, end * form.group * form.bits // 8)
        if codes.kind == "i4":  # q - 8: its two's complement is q with the highest bit flipped
            packed = packed ^ np.uint8(0x88)
        scales = self._values(self._constant(f"{name}.scales", 3), begin, end)
        if f"{name}.zeros" not in self.constants:
            zeros: NDArray[np.uint8] = np.full(end - begin, 8, np.uint8)
        elif form.bits == 8:
            zeros = self._values(self._constant(f"{name}.zeros", 3), begin, end)
        else:
            held = self._values(self._constant(f"{name}.zeros", 3), begin // 2, -(-end // 2))
            zeros = unpack_nibbles(held[np.newaxis])[0][begin % 2 : begin % 2 + end - begin]
        shape = (stop - start, groups)
        return QuantizedTensor((stop - start, k), form, packed.reshape(*shape, -1), scales.reshape(shape), zeros.reshape(shape))

    def vector(self, weight: str) -> NDArray[np.generic]:
        suffix = "" if weight.endswith(".bias") else ".weight"
        name, first = self._home(weight, suffix)
        return self._whole(name + suffix)[first : first + self.model.decoder.weight_shapes()[weight][0]]

    def rope(self, wanted: Rope, context: int) -> list[str]:
        right = {FREQUENCIES: np.array(wanted.inv_freq, np.float32)}
        if wanted.is_long(context):
            right[LONG_FREQUENCIES] = np.array(wanted.long_inv_freq, np.float32)
        if wanted.scale != 1.0:
            right[SCALE] = np.array([wanted.scale], np.float32)
        wrong = [name for name, factors in right.items() if name not in self.constants or not same_factors(self._whole(name), factors)]
        return [f"{XML}: constant {name}" for name in [*wrong, *({LONG_FREQUENCIES, SCALE} & set(self.constants) - set(right))]]

    def stops(self) -> dict[str, tuple[int, ...]]:
        return {}

    def _home(self, weight: str, suffix: str) -> tuple[str, int]:
        stems = {name.removesuffix(suffix) for name in self.constants if name.endswith(suffix)}
        return home(weight, stems, self.model.decoder)

    def _constant(self, name: str, dims: int) -> Constant:
        found = self.constants.get(name)
        if found is None or len(found.shape) != dims or found.kind not in DTYPES:
            raise ArtifactError(f"{self.directory / XML} holds no fitting constant {name}; build the artifact again")
        return found

    def _values(self, constant: Constant, begin: int, end: int) -> NDArray[Any]:
        dtype = np.dtype(DTYPES[constant.kind])
        path = self.directory / BIN
        if end * dtype.itemsize > constant.size:
            raise ArtifactError(f"{path} is too short for what {XML} says; build the artifact again")
        return numbers(path, dtype, end - begin, constant.offset + begin * dtype.itemsize)

    def _whole(self, name: str) -> NDArray[Any]:
        found = self.constants.get(name)
        if found is None or found.kind != "f32":
            raise ArtifactError(f"{self.directory / XML} holds no fitting constant {name}; build the artifact again")
        return self._values(found, 0, found.size // 4)


def open_stored(directory: Path, manifest: Manifest, model: Model) -> OpenvinoStored:
    """Raises ArtifactError for an XML that cannot be read."""
    constants: dict[str, Constant] = {}
    try:
        for _, layer in ElementTree.iterparse(directory / XML):
            if layer.tag != "layer":
                continue
            data = layer.find("data")
            if layer.get("type") == "Const" and data is not None:
                shape = tuple(int(part) for part in data.attrib["shape"].split(",") if part.strip())
                place = int(data.attrib["offset"]), int(data.attrib["size"])
                constants[layer.attrib["name"]] = Constant(data.attrib["element_type"], shape, *place)
            layer.clear()
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise ArtifactError(f"{directory / XML} cannot be read ({error!r}); build the artifact again") from None
    return OpenvinoStored(directory, model, constants)

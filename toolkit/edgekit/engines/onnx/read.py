"""What the files for ONNX Runtime hold, by the initializers of ``model.onnx``; needs no ONNX Runtime.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3; encoding: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import strict_json
from edgekit.artifact import Manifest
from edgekit.errors import ArtifactError
from edgekit.models import Model
from edgekit.models.decoder import Rope
from edgekit.quant import unpack_nibbles
from edgekit.quant.scheme import Format, QuantizedTensor
from edgekit.stored import home, numbers, same_factors

MODEL, CONFIG = "model.onnx", "genai_config.json"
DTYPES = {1: "<f4", 2: "u1", 10: "<f2"}
"""TensorProto.DataType of what is read here."""
GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, NAME, EXTERNAL = 1, 2, 8, 13


@dataclass(frozen=True)
class Initializer:
    """A tensor whose bytes lie in ``file``."""

    kind: int
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int


@dataclass(frozen=True)
class OnnxStored:
    """See ``edgekit.stored.Stored``."""

    directory: Path
    model: Model
    initializers: Mapping[str, Initializer]

    def where(self, weight: str) -> str:
        for suffix in (".scales", ".weight", ""):
            name = self._home(weight, suffix)[0] + suffix
            if name in self.initializers:
                return f"{self.initializers[name].file}, initializer {name.removesuffix('.scales')}"
        return MODEL

    def block(self, weight: str, start: int, stop: int, form: Format) -> QuantizedTensor:
        name, first = self._home(weight, ".scales")
        k = self.model.decoder.weight_shapes()["embed_tokens" if weight == "lm_head" else weight][1]
        groups = -(-k // form.group)
        stored = max(groups, self._groups(name))  # some kernels ask for groups of filling
        rows = slice(first + start, first + stop)
        width = form.group * form.bits // 8
        if f"{name}.rows" in self.initializers and f"{name}.codes" not in self.initializers:  # an embedding that is only looked up in
            codes: NDArray[Any] = self._rows(f"{name}.rows", rows, (groups * width,)).reshape(-1, groups, width)
        else:
            codes = self._rows(f"{name}.codes", rows, (stored, width))[:, :groups]
        scales = self._rows(f"{name}.scales", rows, (stored,))[:, :groups]
        zeros = self._rows(f"{name}.zeros", rows, (-(-stored * form.bits // 8),))
        if form.bits == 4:
            zeros = unpack_nibbles(zeros)
        with np.errstate(over="ignore"):  # scales that are no scales are found by comparing
            parts = codes, scales.astype(np.float16), zeros[:, :groups]
        return QuantizedTensor((stop - start, k), form, *map(np.ascontiguousarray, parts))

    def vector(self, weight: str) -> NDArray[np.generic]:
        suffix = "" if weight.endswith(".bias") else ".weight"
        name, first = self._home(weight, suffix)
        return self._rows(name + suffix, slice(first, first + self.model.decoder.weight_shapes()[weight][0]), ())

    def rope(self, wanted: Rope, context: int) -> list[str]:
        tables = [wanted.cos_sin(context, long=False)]
        if wanted.is_long(context) and wanted.switch is not None:
            # Rows of the short factors up to the switch, and after them those of the long ones from position 0 on.
            tables = [wanted.cos_sin(wanted.switch, long=False), wanted.cos_sin(context, long=True)]
        wrong = []
        for i, name in enumerate(("rope.cos", "rope.sin")):
            right = np.concatenate([table[i] for table in tables])
            found = self.initializers.get(name)
            same = found is not None and found.shape == right.shape and found.kind in (1, 10)
            if not same or not same_factors(self._rows(name, slice(0, len(right)), right.shape[1:]), right):
                wrong.append(f"{MODEL}: table {name}")
        return wrong

    def stops(self) -> dict[str, tuple[int, ...]]:
        try:
            listed = strict_json.load((self.directory / CONFIG).read_text(encoding="utf-8"))["model"]["eos_token_id"]
        except (OSError, ValueError, KeyError, TypeError):
            listed = None
        return {CONFIG: tuple(listed) if isinstance(listed, list) else ()}

    def _groups(self, name: str) -> int:
        """Of a row in the file; 0 where that is not known."""
        found = self.initializers.get(f"{name}.scales")
        return found.shape[1] if found is not None and len(found.shape) == 2 else 0

    def _home(self, weight: str, suffix: str) -> tuple[str, int]:
        stems = {name.removesuffix(suffix) for name in self.initializers if name.endswith(suffix)}
        return home(weight, stems, self.model.decoder)

    def _rows(self, name: str, rows: slice, rest: tuple[int, ...]) -> NDArray[Any]:
        """Rows of an initializer, each of shape ``rest``."""
        found = self.initializers.get(name)
        if found is None or found.kind not in DTYPES or found.shape[1:] != rest or found.shape[0] < rows.stop:
            shape = None if found is None else list(found.shape)
            raise ArtifactError(f"{self.directory / MODEL}: {name} has shape {shape}, wanted [.., {rest}]; build the artifact again")
        dtype, width, count = np.dtype(DTYPES[found.kind]), int(np.prod(rest)), rows.stop - rows.start
        path = self.directory / found.file
        return numbers(path, dtype, count * width, found.offset + rows.start * width * dtype.itemsize).reshape(count, *rest)


def open_stored(directory: Path, manifest: Manifest, model: Model) -> OnnxStored:
    """Raises ArtifactError for a graph that cannot be read."""
    try:
        raw = memoryview((directory / MODEL).read_bytes())
        graph = next(value for number, value in fields(raw) if number == GRAPH)
        tensors = [value for number, value in fields(_bytes(graph)) if number == INITIALIZER]
        found = dict(_initializer(_bytes(tensor)) for tensor in tensors)
        for name, value in found.items():
            if value is not None and value.file not in manifest.files:
                raise ValueError(f"{name} lies in {value.file!r}, which is no file of the artifact")
    except (OSError, ValueError, IndexError, KeyError, StopIteration) as error:
        raise ArtifactError(f"{directory / MODEL} cannot be read ({error!r}); build the artifact again") from None
    return OnnxStored(directory, model, {name: value for name, value in found.items() if value is not None})


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field: an int of a varint, the bytes of all else. Raises ValueError or IndexError."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        size, at = _varint(message, at) if wire == 2 else (8 if wire == 1 else 4, at)
        if at + size > len(message):
            raise ValueError("a field goes on beyond its message")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:  # ten bytes hold 64 bits
        byte = message[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if not byte & 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _initializer(tensor: memoryview) -> tuple[str, Initializer | None]:
    """None for one whose content lies in the graph itself."""
    shape: list[int] = []
    kind, name, entries = 0, "", {}
    for number, value in fields(tensor):
        if number == DIMS and isinstance(value, int):
            shape.append(value)
        elif number == DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == NAME:
            name = bytes(_bytes(value)).decode()
        elif number == EXTERNAL:
            key, said = (bytes(_bytes(part)).decode() for _, part in fields(_bytes(value)))
            entries[key] = said
    if not entries:
        return name, None
    return name, Initializer(kind, tuple(shape), entries["location"], int(entries["offset"]), int(entries["length"]))

"""Checkpoints in Hugging Face layout: config.json and safetensors, opened without reading any weight.

Format of the weights: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the tensors without holes).
Nothing here unpickles or runs code: ``pytorch_model.bin`` is refused and ``auto_map`` in config.json is ignored.
"""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgekit import strict_json
from edgekit.errors import CheckpointError, ConfigError, ModelNotFound
from edgekit.foreign import (
    BEGINNING,
    check_artifact,
    check_beginning,
    check_link,
    check_texts,
    ignored_adapter,
    without_config,
    without_weights,
)
from edgekit.prequantized import by_config, refusal

log = logging.getLogger("edgekit.checkpoint")

MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
MAX_JSON = 64 << 20  # bytes of config.json or index; the largest known index is a few MB
CHUNK = 1 << 24  # values converted to float32 at a time

# Bits a value. The three in READABLE can hold weights; the others may stand in a file as long as no weight is stored in them.
DTYPES = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
READABLE = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: bytes ``begin`` to ``end`` of ``file``, row-major, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int


@dataclass(frozen=True)
class Source:
    """Where a checkpoint came from. ``kind`` is "embedded", "hub" or "local"; ``revision`` the commit of a hub model."""

    name: str
    kind: str
    revision: str | None
    license: str | None


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. ``config`` is config.json as it stands; ``tensors`` are those of the safetensors headers."""

    directory: Path
    source: Source
    config: Mapping[str, object]
    tensors: Mapping[str, TensorInfo]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` (of the first dimension) of a tensor as float32; only their bytes are read.

        Raises CheckpointError when the tensor is missing, is not BF16, F16 or F32, or its file has become shorter.
        """
        info = self._readable(name)
        stop = (info.shape[0] if info.shape else 1) if stop is None else stop
        _, begin, _ = self.place(name, start, stop)
        return _read(info, begin, (stop - start, *info.shape[1:]) if info.shape else ())

    def stored(self, name: str, start: int, stop: int) -> NDArray[np.float32] | NDArray[np.uint16]:
        """Those rows without a copy more than needed: bfloat16 as its bits in uint16, float32 as it is, float16 as float32. Raises as
        ``rows`` does."""
        info = self._readable(name)
        if info.dtype == "F16":
            return self.rows(name, start, stop)
        _, begin, _ = self.place(name, start, stop)
        shape = (stop - start, *info.shape[1:])
        with reading(info.file):
            values = np.fromfile(info.file, READABLE[info.dtype], int(np.prod(shape)), offset=begin)
        if values.size != np.prod(shape):
            raise _cut_short(info)
        native: NDArray[np.float32] | NDArray[np.uint16] = values.astype(values.dtype.newbyteorder("="), copy=False).reshape(shape)
        return native

    def place(self, name: str, start: int, stop: int) -> tuple[Path, int, int]:
        """Where rows ``start`` to ``stop`` of a tensor lie: the file, their first byte and the byte after their last."""
        info = self._info(name)
        count = info.shape[0] if info.shape else 1
        if not 0 <= start <= stop <= count:
            raise ValueError(f"rows {start}:{stop} of {name!r}, which has {count}")
        stride = (info.end - info.begin) // count if count else 0
        return info.file, info.begin + start * stride, info.begin + stop * stride

    def _readable(self, name: str) -> TensorInfo:
        info = self._info(name)
        if info.dtype not in READABLE:
            raise CheckpointError(
                f"tensor {name!r} in {info.file} is stored as {info.dtype}; edgekit reads {', '.join(READABLE)}. "
                "Take the model's original (unquantized) checkpoint."
            )
        return info

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory} holds no tensor {name!r}")
        return self.tensors[name]


def _read(info: TensorInfo, offset: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    stored = np.dtype(READABLE[info.dtype])
    out = np.empty(int(np.prod(shape, dtype=np.int64)), dtype=np.float32)
    with reading(info.file), info.file.open("rb") as file:
        file.seek(offset)
        for at in range(0, out.size, CHUNK):
            want = min(CHUNK, out.size - at)
            piece = np.fromfile(file, dtype=stored, count=want)
            if piece.size != want:
                raise _cut_short(info)
            if info.dtype == "BF16":  # the upper half of a float32
                bits = out[at : at + want].view(np.uint32)
                bits[:] = piece
                bits <<= 16
            else:
                out[at : at + want] = piece
    return out.reshape(shape)


def _cut_short(info: TensorInfo) -> CheckpointError:
    return CheckpointError(f"{info.file} ends inside tensor {info.name!r}: it has been cut short since it was opened")


def open_checkpoint(directory: Path, source: Source) -> Checkpoint:
    """Open a local directory: parses and checks config.json and every safetensors header, reads no weight.

    Raises ModelNotFound (no such directory), ConfigError (config.json), CheckpointError (weights missing, cut short or malformed).
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelNotFound(f"no such directory: {directory}")
    check_artifact(directory)
    check_texts(directory)
    config = read_config(directory)
    files = _weight_files(directory)
    tensors = read_header(files) if isinstance(files, Path) else _sharded(directory, files)
    if note := ignored_adapter(directory):
        log.warning("edge: note: %s", note)
    return Checkpoint(directory, source, config, tensors)


def read_config(directory: Path) -> Mapping[str, object]:
    """config.json of a checkpoint. Raises ConfigError when it is missing, malformed, or says the weights are already quantized."""
    path = directory / "config.json"
    if not path.is_file():
        raise ConfigError(f"{directory} has no config.json: it is no checkpoint in Hugging Face layout. {without_config(directory)}")
    try:
        content = read_bounded(path)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse_config(content, path, original_model(directory))


def parse_config(content: bytes, path: Path, original: str | None = None) -> Mapping[str, object]:
    """config.json from its bytes. path, and original (the model that it was made of): for messages. Raises ConfigError as ``read_config``
    does, CheckpointError where it is no such file."""
    check_beginning(path, content[:BEGINNING])
    try:
        config = parse_object(content)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}. It begins with {content[:40]!r}: download it again where that is no config.json") from None
    if "model_type" not in config and isinstance(config.get("error"), str):
        raise ConfigError(f"{path} holds an error that answered its download, {_brief(config['error'])}: download it again")
    if what := by_config(config):
        raise ConfigError(refusal(path, what, original))
    return config


def parse_object(text: bytes) -> dict[str, object]:
    """A JSON object. Raises ValueError, in words, for anything else: bad JSON, another kind of value, a key given twice."""
    value = strict_json.load(text)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is needed, not {type(value).__name__}")
    return cast(dict[str, object], value)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the operating system says against reading ``path`` into a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path} cannot be read: {error.strerror or error}; check its permissions, or download it again"
        ) from None


def read_bounded(path: Path) -> bytes:
    """The content of a small file. Raises CheckpointError (it cannot be read) or ValueError (it is too large to be one)."""
    with reading(path):
        size = path.stat().st_size
        if size > MAX_JSON:
            raise ValueError(f"{size} bytes; at most {MAX_JSON} are accepted")
        return path.read_bytes()


def _weight_files(directory: Path) -> Path | Mapping[str, object]:
    """The single weight file, or the weight_map of the index."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    check_link(single)
    if single.is_file():
        return single
    if index.is_file():
        try:
            weight_map = parse_object(read_bounded(index)).get("weight_map")
        except ValueError as error:
            raise CheckpointError(f"{index}: {error}") from None
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: weight_map is missing or empty")
        return weight_map
    raise CheckpointError(f"{directory} has neither model.safetensors nor model.safetensors.index.json. {without_weights(directory)}")


def _sharded(directory: Path, weight_map: Mapping[str, object]) -> dict[str, TensorInfo]:
    index = directory / "model.safetensors.index.json"
    for name, file in weight_map.items():
        # Only a plain name in the same directory: no way out of it through "..", an absolute path or a drive.
        if not isinstance(file, str) or not file.endswith(".safetensors") or any(c in file for c in "/\\:\0"):
            raise CheckpointError(f"{index}: tensor {name!r} is mapped to {file!r}, which is no safetensors file name")
    shards = sorted(cast(Iterable[str], set(weight_map.values())))
    for file in shards:
        check_link(directory / file)
    absent = [file for file in shards if not (directory / file).is_file()]
    if absent:
        raise CheckpointError(
            f"{directory}: shard {absent[0]} is missing ({len(absent)} of {len(shards)} shards are). "
            "Download it again; finished files are kept."
        )
    headers = {file: read_header(directory / file) for file in shards}
    out: dict[str, TensorInfo] = {}
    for name, file in weight_map.items():
        held = headers[cast(str, file)]
        if name not in held:
            raise CheckpointError(f"{index} says that {file} holds tensor {name!r}, but it does not")
        out[name] = held[name]
    return out


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, in file order. Raises CheckpointError naming the file for anything the format forbids."""
    with reading(path), path.open("rb") as file:
        size = path.stat().st_size
        check_beginning(path, file.read(BEGINNING))
        file.seek(0)
        text = file.read(header_length(file.read(8), path, size))
    return parse_header(text, path, size)


def header_length(prefix: bytes, path: Path, size: int) -> int:
    """Bytes of the JSON after the first eight of a file of ``size`` bytes. Raises CheckpointError."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) == 8 and length > MAX_HEADER:
        raise CheckpointError(f"{path}: header of {length} bytes, at most {MAX_HEADER} are allowed: not a safetensors file")
    if size < 8 + length or len(prefix) < 8:
        raise CheckpointError(f"{path} is truncated: {size} bytes, its header alone needs {8 + length}. Download it again.")
    return length


def parse_header(text: bytes, path: Path, size: int) -> dict[str, TensorInfo]:
    """The tensors that the JSON of a file of ``size`` bytes names. Raises CheckpointError as ``read_header`` does."""
    length = len(text)
    if not text.startswith(b"{"):
        raise CheckpointError(f"{path}: the header does not begin with '{{': not a safetensors file")
    try:
        header = parse_object(text)
        infos = [_tensor(name, value, path, 8 + length) for name, value in header.items() if name != "__metadata__"]
        _check_metadata(header.get("__metadata__"))
    except ValueError as error:
        raise CheckpointError(f"{path}: bad safetensors header: {error}") from None
    infos.sort(key=lambda t: (t.begin, t.end))
    _check_layout(infos, path, 8 + length, size)
    return {t.name: t for t in infos}


def _check_metadata(value: object) -> None:
    if value is not None and not (isinstance(value, dict) and all(isinstance(v, str) for v in value.values())):
        raise ValueError("__metadata__ must map strings to strings")


def _tensor(name: str, value: object, path: Path, base: int) -> TensorInfo:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has unknown dtype {_brief(dtype)}")
    if not _naturals(shape) or len(shape) > 16:
        raise ValueError(f"tensor {name!r} has bad shape {_brief(shape)}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name!r} has bad data_offsets {_brief(offsets)}")
    bits = DTYPES[dtype]
    for dim in shape:
        bits *= dim
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise ValueError(f"tensor {name!r}: {dtype} {shape} needs {bits / 8:g} bytes, data_offsets give {offsets[1] - offsets[0]}")
    return TensorInfo(name, dtype, tuple(shape), path, base + offsets[0], base + offsets[1])


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _naturals(value: object) -> bool:
    # bool is an int in Python; JSON's true is no size
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_layout(infos: list[TensorInfo], path: Path, base: int, size: int) -> None:
    """Tensors follow each other without overlap or hole and fill the file, as the format demands."""
    at = base
    for info in infos:
        if info.begin != at:
            kind = "overlaps the tensor before it" if info.begin < at else f"leaves a hole of {info.begin - at} bytes before it"
            raise CheckpointError(f"{path}: bad safetensors header: tensor {info.name!r} {kind}")
        at = info.end
    if at > size:
        cut = next(t for t in infos if t.end > size)
        raise CheckpointError(
            f"{path} is truncated: {size} bytes, its header promises {at} (tensor {cut.name!r} is cut). Download it again."
        )
    if at < size:
        raise CheckpointError(f"{path}: {size - at} bytes after the last tensor: the file is damaged. Download it again.")


def declared_license(directory: Path) -> str | None:
    """The licence that a model card names; its own name where it has no SPDX id."""
    found = _front_matter(directory)
    name = found.get("license_name") if found.get("license", "other") == "other" else found.get("license")
    return name or None


def original_model(directory: Path) -> str | None:
    """The model that a model card says this one was made of."""
    found = _front_matter(directory).get("base_model", "")
    return found if re.fullmatch(r"[\w./-]{1,200}", found, re.ASCII) else None


def _front_matter(directory: Path) -> dict[str, str]:
    """The keys of a model card (README.md), where there is one; of a list its first item."""
    path = directory / "README.md"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace") as file:
        if file.readline(100).strip() != "---":
            return {}
        found: dict[str, str] = {}
        last = ""
        for line in file.read(1 << 20).splitlines():
            if line.strip() == "---":
                break
            key, colon, value = line.partition(":")
            if line.lstrip().startswith("- "):
                found[last] = found.get(last) or line.lstrip()[2:].strip().strip("\"'")
            elif colon and not line.startswith(" "):
                last = key
                found.setdefault(key, value.strip().strip("\"'"))
        return found

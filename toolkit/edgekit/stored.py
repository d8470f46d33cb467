"""What an artifact's own files hold, read back without the exporter that wrote them; every engine's ``read`` module gives one."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgekit.errors import ArtifactError
from edgekit.models.decoder import DecoderConfig, Rope
from edgekit.quant.scheme import Format, QuantizedTensor

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class Stored(Protocol):
    """Weights by their canonical names. Whatever is missing, or of another size than it should be, is an ArtifactError."""

    def where(self, weight: str) -> str:
        """The file, and the tensor in it, that holds a weight, for people."""

    def block(self, weight: str, start: int, stop: int, form: Format) -> QuantizedTensor:
        """Rows ``start`` to ``stop`` of a matrix that is stored in ``form``."""

    def vector(self, weight: str) -> NDArray[np.generic]:
        """A norm or bias in the type of the file, float32 or float16."""

    def rope(self, wanted: Rope, context: int) -> list[str]:
        """What is wrong with the rotary factors, for sequences up to ``context`` tokens; each begins with where it is."""

    def stops(self) -> Mapping[str, tuple[int, ...]]:
        """File -> the stop ids that the engine's own configuration there names."""


def numbers(path: Path, dtype: DTypeLike, count: int, offset: int) -> NDArray[Any]:
    """``count`` numbers of a file from the byte ``offset`` on. Raises ArtifactError where it does not hold them."""
    dtype = np.dtype(dtype)
    try:
        size = path.stat().st_size if path.is_file() else -1
        if not (count >= 0 and 0 <= offset <= size and offset + count * dtype.itemsize <= size):
            raise ArtifactError(f"{path} is too short for what its graph says of it; build the artifact again")
        return np.fromfile(path, dtype, count, offset=offset)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}; copy the artifact again") from None


def home(weight: str, held: Container[str], decoder: DecoderConfig) -> tuple[str, int]:
    """The name and first row of the tensor of ``held`` that a canonical weight is part of: its own, or a fused one."""
    if weight in held:
        return weight, 0
    shapes = decoder.weight_shapes()
    at, _, rest = weight.rpartition("_proj")
    at, _, part = (at + "_proj").rpartition(".")
    for fused, parts in FUSED.items():
        name = f"{at}.{fused}{rest}"
        if part in parts and name in held:
            return name, sum(shapes[f"{at}.{other}{rest}"][0] for other in parts[: parts.index(part)])
    return weight, 0


def same_factors(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> bool:
    """Whether tables or frequencies are those that are wanted, but for the rounding of the type they are in."""
    if found.shape != wanted.shape:
        return False
    return bool(np.allclose(found.astype(np.float64), wanted.astype(np.float64), rtol=2 * np.finfo(found.dtype).eps, atol=1e-7))

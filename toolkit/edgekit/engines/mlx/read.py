"""What the files for MLX hold, by their safetensors headers and config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import strict_json
from edgekit.artifact import Manifest
from edgekit.checkpoint import read_header
from edgekit.engines.mlx.config import mlx_rope, ours
from edgekit.engines.mlx.weights import DTYPES, INDEX
from edgekit.errors import ArtifactError, CheckpointError
from edgekit.models import Model
from edgekit.models.decoder import Rope
from edgekit.quant.scheme import Format, QuantizedTensor
from edgekit.stored import numbers, same_factors

CONFIG = "config.json"


@dataclass(frozen=True)
class Place:
    """A tensor of a file; ``begin`` is where its bytes lie there."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True)
class MlxStored:
    """See ``edgekit.stored.Stored``."""

    directory: Path
    model: Model
    places: Mapping[str, Place]
    config: Mapping[str, Any]

    def where(self, weight: str) -> str:
        name = self._module(weight)
        return f"{self._place(f'{name}.weight').file.name}, tensor {name}"

    def block(self, weight: str, start: int, stop: int, form: Format) -> QuantizedTensor:
        at, name = self.model.slices[weight], self._module(weight)
        k = self.model.decoder.weight_shapes()[weight][1]
        rows, groups = slice(at.start + start, at.start + stop), k // form.group
        codes = self._rows(f"{name}.weight", rows, k * form.bits // 32).view(np.uint8).reshape(stop - start, groups, -1)
        scales = self._rows(f"{name}.scales", rows, groups).astype(np.float32)
        biases = self._rows(f"{name}.biases", rows, groups).astype(np.float32)
        with np.errstate(all="ignore"):  # scales that are no scales are found by comparing
            zeros = np.nan_to_num(np.rint(-biases / scales)).clip(0, 255).astype(np.uint8)
            return QuantizedTensor((stop - start, k), form, codes, scales.astype(np.float16), zeros)

    def vector(self, weight: str) -> NDArray[np.generic]:
        at = self.model.slices[weight]
        place = self._place(at.tensor)
        if len(place.shape) != 1 or place.shape[0] < at.stop:
            raise ArtifactError(f"{place.file}: {at.tensor} has shape {list(place.shape)}, wanted [{at.stop}]; build the artifact again")
        return numbers(place.file, place.dtype, place.shape[0], place.begin)[at.start : at.stop]

    def rope(self, wanted: Rope, context: int) -> list[str]:
        found, right = self.config.get("edgekit"), ours(self.model.decoder)
        if not isinstance(found, dict) or not isinstance(found.get("rope"), dict):
            return [f"{CONFIG}: the key edgekit.rope is missing"]
        wrong = [f"{CONFIG}: edgekit.rope.{key}" for key, value in right["rope"].items() if not _same(found["rope"].get(key), value)]
        wrong += [f"{CONFIG}: {key}" for key, value in mlx_rope(self.model).items() if self.config.get(key) != value]
        return wrong

    def stops(self) -> dict[str, tuple[int, ...]]:
        listed = self.config.get("eos_token_id")
        return {CONFIG: tuple(listed) if isinstance(listed, list) else ()}

    def _module(self, weight: str) -> str:
        return self.model.slices[weight].tensor.removesuffix(".weight")

    def _place(self, name: str) -> Place:
        if name not in self.places:
            raise ArtifactError(f"{self.directory} holds no tensor {name}; build the artifact again")
        return self.places[name]

    def _rows(self, name: str, rows: slice, width: int) -> NDArray[Any]:
        place = self._place(name)
        if len(place.shape) != 2 or place.shape[1] != width or place.shape[0] < rows.stop:
            raise ArtifactError(f"{place.file}: {name} has shape {list(place.shape)}, wanted [.., {width}]; build the artifact again")
        count, step = rows.stop - rows.start, width * place.dtype.itemsize
        return numbers(place.file, place.dtype, count * width, place.begin + rows.start * step).reshape(count, width)


def _same(found: object, wanted: object) -> bool:
    if not isinstance(wanted, list):
        return found == wanted
    floats = isinstance(found, list) and all(isinstance(value, float | int) and abs(value) < 1e30 for value in found)
    return floats and same_factors(np.array(found, np.float32), np.array(wanted, np.float32))


def open_stored(directory: Path, manifest: Manifest, model: Model) -> MlxStored:
    """Raises ArtifactError for files that cannot be read."""
    places: dict[str, Place] = {}
    try:
        config = dict(strict_json.load((directory / CONFIG).read_text(encoding="utf-8")))
        index = strict_json.load((directory / INDEX).read_text(encoding="utf-8"))
        for name in sorted(set(index["weight_map"].values())):
            if name not in manifest.files:
                raise ValueError(f"{name!r} is no file of the artifact")
            places |= {t.name: Place(t.file, DTYPES[t.dtype], t.shape, t.begin) for t in read_header(directory / name).values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CheckpointError) as error:
        raise ArtifactError(f"{directory}: the files for MLX cannot be read ({error!r}); build the artifact again") from None
    return MlxStored(directory, model, places, config)

"""The architectures edgekit knows, one file each, and a checkpoint seen through them: canonical weights of a known decoder."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint import CHUNK, READABLE, Checkpoint, original_model
from edgekit.errors import CheckpointError, ConfigError, UnknownArchitecture
from edgekit.foreign import merge_adapter
from edgekit.models import llama, mistral, phi3, qwen2
from edgekit.models.decoder import DecoderConfig, Slice
from edgekit.prequantized import by_tensors, refusal


class Architecture(Protocol):
    """What each file of an architecture offers."""

    def decoder_config(self, config: Mapping[str, object]) -> DecoderConfig: ...
    def weight_slices(self, decoder: DecoderConfig) -> dict[str, Slice]: ...


ARCHITECTURES: dict[str, Architecture] = {"phi3": phi3, "mistral": mistral, "llama": llama, "qwen2": qwen2}
"""``model_type`` of config.json -> the file that reads it."""

HEAD = "lm_head.weight"
PREFIX = "model."
# Buffers that old versions of transformers saved beside the weights; they are computed from config.json.
BUFFERS = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".self_attn.bias", ".self_attn.masked_bias")


@dataclass(frozen=True)
class Folded:
    """Factors moved between neighbouring weights, by canonical name: another model in its numbers, the same one in exact arithmetic.

    vectors: norms and biases [N] in the place of the checkpoint's. rows [N], columns [K]: what a matrix is multiplied by.
    """

    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    rows: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def digest(self, name: str) -> str:
        """Of all that changes a matrix; empty where nothing does."""
        parts = [(kind, factors[name]) for kind, factors in (("rows", self.rows), ("columns", self.columns)) if name in factors]
        if not parts:
            return ""
        digest = hashlib.sha256()
        for kind, values in parts:
            digest.update(kind.encode() + values.astype("<f4").tobytes())
        return f" folded {digest.hexdigest()}"


@dataclass(frozen=True)
class Model:
    """A checkpoint of a known architecture. ``slices``: canonical weight name -> where it lies in the checkpoint.

    folded: applied to every weight that is read (``calibrate.py`` makes such models).
    """

    checkpoint: Checkpoint
    decoder: DecoderConfig
    slices: Mapping[str, Slice]
    folded: Folded = Folded()

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones counted once."""
        return sum(math.prod(shape) for shape in self.decoder.weight_shapes().values())

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The whole canonical weight ``name``, float32, in the shape of ``decoder.weight_shapes()``. Raises as ``rows`` does."""
        where = self._slice(name)
        return self.rows(name, 0, where.stop - where.start)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` of a canonical weight. Raises CheckpointError when one of its values is NaN or infinite."""
        where = self._slice(name)
        values = self.checkpoint.rows(where.tensor, where.start + start, where.start + stop)
        bad = _not_finite(values)
        if bad:
            file = self.checkpoint.tensors[where.tensor].file
            raise CheckpointError(
                f"{name} ({where.tensor!r} in {file}) has {bad} values that are NaN or infinite: "
                "the checkpoint is damaged. Download or export it again."
            )
        return _refold(values, self.folded, name, slice(start, stop))

    def stored(self, name: str, start: int, stop: int) -> NDArray[np.float32] | NDArray[np.uint16]:
        """Those rows as ``Checkpoint.stored`` gives them, unchecked: values may be NaN or infinite."""
        where, folded = self._slice(name), self.folded
        if name in folded.rows or name in folded.columns or name in folded.vectors:
            values = self.checkpoint.rows(where.tensor, where.start + start, where.start + stop)
            return _refold(values, folded, name, slice(start, stop))
        return self.checkpoint.stored(where.tensor, where.start + start, where.start + stop)

    def place(self, name: str, start: int, stop: int) -> tuple[Path, int, int]:
        """The file of rows ``start`` to ``stop`` of a canonical weight, their first byte there and the byte after their last."""
        where = self._slice(name)
        return self.checkpoint.place(where.tensor, where.start + start, where.start + stop)

    def _slice(self, name: str) -> Slice:
        if name not in self.slices:
            raise CheckpointError(f"a {self.decoder.model_type} model of this config has no weight {name!r}")
        return self.slices[name]


def _refold(values: NDArray[np.float32], folded: Folded, name: str, rows: slice) -> NDArray[np.float32]:
    """Some rows of a weight as a folded model has them."""
    if name in folded.vectors:
        return folded.vectors[name][rows]
    if name in folded.rows:
        values = values * folded.rows[name][rows, None]
    if name in folded.columns:
        values = values * folded.columns[name]
    return values


def _not_finite(values: NDArray[np.float32]) -> int:
    flat = values.reshape(-1)
    return sum(int(np.count_nonzero(~np.isfinite(flat[at : at + CHUNK]))) for at in range(0, flat.size, CHUNK))


def architecture(config: Mapping[str, object]) -> Architecture:
    """The architecture of a config.json. Raises UnknownArchitecture naming ``model_type`` and the known ones."""
    model_type = config.get("model_type")
    found = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        what = f"architecture {model_type!r} is unknown" if model_type is not None else "config.json has no model_type"
        remote = " (its own code, named in auto_map, is never run)" if config.get("auto_map") is not None else ""
        raise UnknownArchitecture(f"{what}{remote}; known: {', '.join(ARCHITECTURES)}")
    return found


def open_model(checkpoint: Checkpoint) -> Model:
    """See a checkpoint as a decoder with canonical weights. Reads no weight (but a tied lm_head that is stored beside the embedding).

    Raises UnknownArchitecture, ConfigError (config.json is wrong, or disagrees with a tensor's shape) or CheckpointError (a tensor
    is missing, unexpected, or of a dtype that is not read).
    """
    found = architecture(checkpoint.config)
    if what := by_tensors(checkpoint.tensors):
        raise CheckpointError(refusal(checkpoint.directory, what, original_model(checkpoint.directory)))
    decoder = found.decoder_config(checkpoint.config)
    slices = found.weight_slices(decoder)
    checkpoint = _named(checkpoint, slices["embed_tokens"].tensor, tied=decoder.tied)
    model = Model(checkpoint, decoder, slices)
    used = _expected(decoder, slices)
    for tensor, shape in used.items():
        _check_tensor(checkpoint, tensor, shape, decoder)
    extra = [name for name in checkpoint.tensors if name not in used and not name.endswith(BUFFERS)]
    if decoder.tied and HEAD in extra:
        _check_tied(checkpoint, slices["embed_tokens"].tensor)
        extra.remove(HEAD)
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.directory} holds tensor {extra[0]!r}{more}, which a {decoder.model_type} model of this config.json "
            f"has no place for. {_foreign(extra, checkpoint.directory)}"
        )
    return model


def _named(checkpoint: Checkpoint, embedding: str, *, tied: bool) -> Checkpoint:
    """With the names that weights usually have, where they have the others that transformers reads as well: all without PREFIX, as a
    decoder without its lm_head is saved, and tied weights that are stored once, but as lm_head."""
    tensors = checkpoint.tensors
    if embedding.removeprefix(PREFIX) in tensors and not any(name.startswith(PREFIX) for name in tensors):
        tensors = {name if name == HEAD else PREFIX + name: info for name, info in tensors.items()}
    if tied and embedding not in tensors and HEAD in tensors:
        tensors = {embedding if name == HEAD else name: info for name, info in tensors.items()}
    return replace(checkpoint, tensors=tensors)


def _foreign(extra: Sequence[str], directory: Path) -> str:
    if any(".lora_" in name or ".base_layer." in name for name in extra):
        return merge_adapter(directory)
    return "Is it another architecture, or one that was changed? Such a tensor would have to be computed with, so it is not left out."


def tensor_shapes(found: Architecture, config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """The tensors, by their names in a checkpoint, that a config.json asks for. Raises ConfigError."""
    decoder = found.decoder_config(config)
    return _expected(decoder, found.weight_slices(decoder))


def _expected(decoder: DecoderConfig, slices: Mapping[str, Slice]) -> dict[str, tuple[int, ...]]:
    """Checkpoint tensor -> the shape that its slices add up to."""
    shapes = decoder.weight_shapes()
    out: dict[str, tuple[int, ...]] = {}
    for name, where in slices.items():
        rows = max(where.stop, out.get(where.tensor, (0,))[0])
        out[where.tensor] = (rows, *shapes[name][1:])
    return out


def _check_tensor(checkpoint: Checkpoint, tensor: str, shape: tuple[int, ...], decoder: DecoderConfig) -> None:
    info = checkpoint.tensors.get(tensor)
    if info is None:
        hint = " Should tie_word_embeddings be true in config.json?" if tensor == HEAD else ""
        if any(".lora_" in name or ".base_layer." in name for name in checkpoint.tensors):
            hint = f" {merge_adapter(checkpoint.directory)}"
        raise CheckpointError(
            f"{checkpoint.directory} holds no tensor {tensor!r}, which a {decoder.model_type} model of this config.json needs.{hint}"
        )
    if info.shape != shape:
        raise ConfigError(
            f"config.json disagrees with its tensors: {tensor!r} has shape {list(info.shape)} in {info.file.name}, "
            f"config.json makes it {list(shape)}"
        )
    if info.dtype not in READABLE:
        raise CheckpointError(
            f"tensor {tensor!r} in {info.file.name} is stored as {info.dtype}; edgekit reads {', '.join(READABLE)}. "
            "Take the model's original (unquantized) checkpoint."
        )


def _check_tied(checkpoint: Checkpoint, embedding: str) -> None:
    """config.json ties lm_head to the embedding, yet both are stored: fine where they are equal, otherwise one of the two is wrong."""
    a, b = checkpoint.tensors[embedding], checkpoint.tensors[HEAD]
    step = max(1, CHUNK // max(1, a.shape[-1]))
    same = a.shape == b.shape and all(
        np.array_equal(checkpoint.rows(a.name, at, min(at + step, a.shape[0])), checkpoint.rows(b.name, at, min(at + step, a.shape[0])))
        for at in range(0, a.shape[0], step)
    )
    if not same:
        raise ConfigError(
            f"config.json has tie_word_embeddings true, but lm_head.weight in {b.file.name} differs from {embedding}. "
            "transformers 5 then uses lm_head.weight, transformers 4 the embedding: set tie_word_embeddings to false for the first, or "
            "remove that tensor for the second."
        )

"""mlx-lm's own layers, with the weights of an artifact, and around them what its classes get wrong: LongRoPE and sliding windows."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from edgekit import strict_json
from edgekit.engines.mlx.packages import missing
from edgekit.errors import ArtifactError

ALIAS = "edgekit_mlx_lm_models"
FILES = {"mistral": "llama"}
"""model_type -> the file of mlx-lm that computes it, where its name is another."""
CHUNK = 512
"""Tokens of a long input computed at a time: keeps activations, and the attention scores of a head_dim without a fused kernel, small."""
INDEX, CONFIG = "model.safetensors.index.json", "config.json"


def mlx_lm_models(name: str) -> ModuleType:
    """The module ``mlx_lm.models.name``, without the rest of mlx-lm: importing that would import transformers and huggingface_hub (1.2 s,
    for a tokenizer that is not used). So the folder is a package under another name, and ``import mlx_lm`` elsewhere stays as it was.

    Raises EngineMissing.
    """
    if ALIAS not in sys.modules:
        found = importlib.util.find_spec("mlx_lm")
        if found is None or not found.submodule_search_locations:
            raise missing("mlx-lm is not installed")
        folder = Path(found.submodule_search_locations[0]) / "models"
        spec = importlib.util.spec_from_file_location(ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)])
        if spec is None or spec.loader is None:
            raise missing(f"{folder} is no package")
        sys.modules[ALIAS] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[ALIAS])
    return importlib.import_module(f"{ALIAS}.{name}")


class Rotation:
    """Rotary embedding by the wavelengths of config.json, in the place of each layer's own. long: which set; the session says so."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.switch: int | None = settings["switch"]
        self.long = False
        self._scale: float = settings["scale"]
        self._short = mx.array(settings["wavelengths"], mx.float32)
        self._long = None if settings["long_wavelengths"] is None else mx.array(settings["long_wavelengths"], mx.float32)
        self._dims = 2 * self._short.size

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """x [1, heads, T, head_dim], the first of its T tokens at position ``offset``."""
        if self._scale != 1.0:
            x = x.at[..., : self._dims].multiply(self._scale)
        wavelengths = self._long if self.long else self._short
        return mx.fast.rope(x, self._dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=wavelengths)


class Slot:
    """A layer's cache inside a compiled step: buffers of full capacity, and the place of the new token as an array, so that the step
    is one graph for every place."""

    def __init__(self, keys: mx.array, values: mx.array, offset: mx.array) -> None:
        self.keys, self.values, self.offset = keys, values, offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys = mx.slice_update(self.keys, keys, self.offset, axes=(2,))
        self.values = mx.slice_update(self.values, values, self.offset, axes=(2,))
        return self.keys, self.values

    def make_mask(self, window: int | None) -> mx.array:
        places = mx.arange(self.keys.shape[2])
        seen = places <= self.offset
        return (seen if window is None else seen & (places > self.offset - window))[None]


class Decoder:
    """A loaded model. windows: of each layer; None sees all. rotation: shared by the layers.

    compiled: whether decoding one token is a graph made once for each 256 places of the cache. That saves most of Python's share of a step
    (measured at 4 layers: 0.17 ms instead of 0.45); on a CPU the compiled graph itself is slower.
    """

    def __init__(self, model: Any, windows: Sequence[int | None], rotation: Rotation, *, compiled: bool) -> None:
        self._inner, self._windows, self.rotation = model.model, windows, rotation
        self._head: Callable[[mx.array], mx.array] = getattr(model, "lm_head", None) or model.model.embed_tokens.as_linear
        self._cache = mlx_lm_models("cache").KVCache
        # Traced once for each set of factors: the trace keeps the one that holds then.
        self._steps = {long: mx.compile(self._step) for long in (False, True)} if compiled else {}
        self.vocab_size: int = model.args.vocab_size
        for layer in self._inner.layers:
            layer.self_attn.rope = rotation

    def new_caches(self) -> list[Any]:
        """One of mlx-lm's ``KVCache`` for each layer, with windows too: its rotating cache cannot be taken back to any length."""
        return [self._cache() for _ in self._inner.layers]

    def __call__(self, ids: mx.array, caches: Sequence[Any], last: int) -> mx.array:
        """Logits after each of the ``last`` last of the tokens ``ids`` [1, T], float32 [last, V], not computed yet."""
        if self._steps and ids.shape[1] == 1 and caches[0].keys is not None and caches[0].offset < caches[0].keys.shape[2]:
            return self._compiled_step(ids, caches)
        # Made before the caches take the new tokens in; all of them hold the same ones.
        masks = {w: caches[0].make_mask(ids.shape[1], return_array=False, window_size=w) for w in self._windows}
        return self._logits(ids, caches, masks, last)

    def _logits(self, ids: mx.array, caches: Sequence[Any], masks: Mapping[int | None, Any], last: int) -> mx.array:
        # Its float32 rows in the type of the other activations.
        hidden = self._inner.embed_tokens(ids).astype(self._inner.norm.weight.dtype)
        for layer, cache, window in zip(self._inner.layers, caches, self._windows, strict=True):
            hidden = layer(hidden, masks[window], cache)
        return self._head(self._inner.norm(hidden[:, -last:]))[0].astype(mx.float32)

    def _compiled_step(self, ids: mx.array, caches: Sequence[Any]) -> mx.array:
        state = [(cache.keys, cache.values) for cache in caches]
        logits, state = self._steps[self.rotation.long](ids, mx.array([caches[0].offset]), state)
        for cache, (keys, values) in zip(caches, state, strict=True):
            cache.keys, cache.values = keys, values
            cache.offset += 1
        return logits

    def _step(self, ids: mx.array, offset: mx.array, state: list[tuple[mx.array, mx.array]]) -> tuple[mx.array, Any]:
        slots = [Slot(keys, values, offset) for keys, values in state]
        logits = self._logits(ids, slots, {w: slots[0].make_mask(w) for w in self._windows}, 1)
        return logits, [(slot.keys, slot.values) for slot in slots]


def load(directory: Path, *, widen: bool, compiled: bool) -> Decoder:
    """Opens an artifact with all its weights in memory.

    widen: scales, biases and norms become float32, and so activations and caches: the same weights with less rounding. For a CPU, where
    MLX's float16 is some 20 times as slow.
    compiled: see ``Decoder``.
    Raises EngineMissing, ArtifactError for a config.json that edgekit did not write, and what MLX raises of files that are damaged.
    """
    config = strict_json.load((directory / CONFIG).read_text(encoding="utf-8"))
    ours = config.get("edgekit")
    if not isinstance(ours, dict):
        raise ArtifactError(f"{directory / CONFIG} has no key 'edgekit'; build the artifact again")
    file = mlx_lm_models(FILES.get(config["model_type"], config["model_type"]))
    model = file.Model(file.ModelArgs.from_dict(config))
    default = config["quantization"]

    def form(path: str, module: nn.Module) -> bool | dict[str, int]:
        if not hasattr(module, "to_quantized"):
            return False
        return {key: default.get(path, default)[key] for key in ("group_size", "bits")}

    nn.quantize(model, class_predicate=form)
    index = strict_json.load((directory / INDEX).read_text(encoding="utf-8"))
    weights: dict[str, mx.array] = {}
    for name in sorted(set(index["weight_map"].values())):
        weights.update(mx.load(str(directory / name)))
    if widen:
        weights = {name: array.astype(mx.float32) if array.dtype == mx.float16 else array for name, array in weights.items()}
    weights |= exact_embedding(weights["model.embed_tokens.scales"], weights["model.embed_tokens.biases"])
    model.load_weights(list(weights.items()), strict=True)
    model.eval()
    mx.eval(model.parameters())
    return Decoder(model, ours["windows"], Rotation(ours["rope"]), compiled=compiled)


def exact_embedding(scales: mx.array, biases: mx.array) -> dict[str, mx.array]:
    """Scales and biases of the embedding in float32, where ``-z * s`` is exact: a file for float16 holds the rounded one, from which the
    zero point comes back by ``rint(-bias / s)``. So this session computes with the very weights of every other engine."""
    wide = scales.astype(mx.float32)
    zeros = mx.round(-biases.astype(mx.float32) / wide)
    return {"model.embed_tokens.scales": wide, "model.embed_tokens.biases": -zeros * wide}


def compute(decoder: Decoder, caches: Sequence[Any], ids: NDArray[np.int64], last: int, final: int) -> NDArray[np.float32]:
    """Appends ``ids`` to the caches; the logits after each of the ``last`` last of them, [last, V], the caller's own.

    final: length of the sequence afterwards, by which all of them take their LongRoPE factors. While a chunk is computed the next one's
    graph is made; what no wanted logits depend on is never computed.
    """
    rotation = decoder.rotation
    rotation.long = rotation.switch is not None and final > rotation.switch
    rows: list[mx.array] = []
    waiting: list[mx.array] = []
    for start in range(0, len(ids), CHUNK):
        piece = ids[start : start + CHUNK]
        wanted = min(len(piece), last - (len(ids) - start - len(piece)))
        logits = decoder(mx.array(piece)[None], caches, max(1, wanted))
        if wanted > 0:
            rows.append(logits)
        mx.eval(waiting)  # at most one chunk's activations lie in memory
        waiting = [*rows, *(state for cache in caches for state in (cache.keys, cache.values))]
        mx.async_eval(waiting)
    return np.array(rows[0] if len(rows) == 1 else mx.concatenate(rows))


def on_gpu() -> bool:
    """Whether MLX computes on a GPU here: Metal's, or CUDA's on a Linux that has that build of MLX."""
    return bool(mx.default_device() == mx.gpu)


def wire() -> int | None:
    """On a Mac, keeps what the GPU uses from being paged out, up to what Metal recommends; the limit that held before. Elsewhere None."""
    if not mx.metal.is_available():
        return None
    before: int = mx.set_wired_limit(mx.device_info()["max_recommended_working_set_size"])
    return before


def release(wired: int | None) -> None:
    """Gives back what a closed session held: MLX keeps freed buffers for reuse, and what ``wire`` changed."""
    mx.synchronize()
    mx.clear_cache()
    if wired is not None:
        mx.set_wired_limit(wired)

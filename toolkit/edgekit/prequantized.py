"""Checkpoints whose weights somebody quantized already, told by config.json or by the names and types of their tensors.

edgekit rounds weights itself, once, for every engine: rounding what is rounded would add both errors, so the original is asked for.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

TENSORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("bitsandbytes", (".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4", ".SCB")),
    ("GPTQ", (".g_idx",)),
    ("compressed-tensors", (".weight_packed", ".weight_shape", ".weight_zero_point", ".bitmask")),
    ("FP8", (".weight_scale_inv",)),
    ("ModelOpt (NVFP4 or FP8)", (".weight_scale_2", ".k_scale", ".v_scale")),
    ("AQLM", (".codebooks",)),
    ("HQQ", (".W_q",)),
    ("Quanto", (".weight._data", ".weight._scale")),
    ("VPTQ", (".centroids",)),
    ("MXFP4", ("_proj_blocks",)),
)
"""Ends of tensors' names that only one method writes, in the order in which they are looked for."""
ORIGINAL = "edgekit quantizes by itself: take the model's original bf16 or float16 checkpoint"


class Tensor(Protocol):
    """What is known of a tensor from its header."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def by_config(config: Mapping[str, object]) -> str | None:
    """The key and method that config.json names; None where it names none, or one that does nothing."""
    value = config.get("quantization_config")
    if not isinstance(value, dict):
        return None if value is None else f"quantization_config is {str(value)[:60]!r}"
    method = value.get("quant_method")
    loads = [bool(value.get(key)) for key in ("load_in_8bit", "load_in_4bit")]
    # Nothing but switches that are off asks for nothing; so does bitsandbytes with both of its own off (transformers loads it plain).
    if not any(loads) and (method == "bitsandbytes" or not any(value.values())):
        return None
    if method is None and any(loads):
        method = "bitsandbytes"
    if method is None and "group_size" in value and "bits" in value:
        method = "MLX" if "quantization" in config else None
    name = method if isinstance(method, str) else "unknown method"
    bits = value.get("bits") or value.get("w_bit")
    return f"quantization_config: {str(name)[:60]}{f', {bits} bits' if type(bits) is int else ''}"


def by_tensors(tensors: Mapping[str, Tensor]) -> str | None:
    """The method whose tensors these are, and one of them; None for plain weights."""
    for name in (f"{stem}.qweight" for stem in _stems(tensors, ".qweight")):
        if (kind := _packed(tensors, name.removesuffix(".qweight"))) is not None:
            return f"{kind}, by tensor {name!r}"
    for kind, ends in TENSORS:
        found = next((name for name in tensors if name.endswith(ends)), None)
        if found is not None:
            return f"{kind}, by tensor {found!r}"
    for stem in _stems(tensors, ".scales"):
        weight = tensors.get(f"{stem}.weight")
        if weight is not None and weight.dtype == "U32":
            return f"MLX, by tensor {f'{stem}.scales'!r}"
    for stem in _stems(tensors, ".weight_scale"):
        weight = tensors.get(f"{stem}.weight")
        if weight is not None:
            kind = "FP8" if weight.dtype.startswith("F8") else "INT8" if weight.dtype == "I8" else "quantized by an unknown method"
            return f"{kind}, by tensor {f'{stem}.weight_scale'!r}"
    eight = next((name for name, info in tensors.items() if name.endswith("_proj.weight") and info.dtype.startswith("F8")), None)
    return None if eight is None else f"FP8, by the type of tensor {eight!r}"


def refusal(where: Path | str, what: str, original: str | None) -> str:
    """original: the model that it was made of, where its card says so."""
    named = f": {original}, its card says" if original else ""
    hint = ""
    if "by t" not in what:
        hint = " (If its tensors are bf16 or float16 nevertheless, remove quantization_config from config.json.)"
    return f"{where}: the checkpoint is already quantized ({what}). {ORIGINAL}{named}.{hint}"


def _stems(tensors: Iterable[str], end: str) -> list[str]:
    return [name.removesuffix(end) for name in tensors if name.endswith(end)][:1]


def _packed(tensors: Mapping[str, Tensor], stem: str) -> str | None:
    """GPTQ packs along the input, AWQ along the output."""
    if f"{stem}.g_idx" in tensors:
        return "GPTQ"
    weight, scales = tensors[f"{stem}.qweight"], tensors.get(f"{stem}.scales")
    if scales is None or len(scales.shape) != 2 or len(weight.shape) != 2:
        return "GPTQ or AWQ"
    return "GPTQ" if weight.shape[1] == scales.shape[1] else "AWQ"

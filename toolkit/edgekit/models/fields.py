"""Typed reading of config.json: each value is checked where it is read, and a wrong one names its key.

null counts as absent, as transformers writes it for "not set".
"""

from collections.abc import Mapping, Sequence
from typing import TypeGuard

from edgekit.errors import ConfigError

# Far above any known model; keeps an absurd config from asking for absurd memory.
LIMITS = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "num_attention_heads": 1 << 11,
    "num_key_value_heads": 1 << 11,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 24,
}


def integer(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    """A positive int. Raises ConfigError when absent without a default, of another type, or out of bounds."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise ConfigError(f"config.json has no {key}")
        return default
    top = LIMITS.get(key, 1 << 31)
    if type(value) is not int or not 1 <= value <= top:  # type(), since True is an int
        raise ConfigError(f"config.json: {key} is {_brief(value)}; an integer from 1 to {top} is needed")
    return value


def number(config: Mapping[str, object], key: str, default: float | None = None) -> float:
    """A positive finite number. Raises ConfigError when absent without a default, of another type, or out of bounds."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise ConfigError(f"config.json has no {key}")
        return default
    if not _positive(value):
        raise ConfigError(f"config.json: {key} is {_brief(value)}; a positive number is needed")
    return float(value)


def _positive(value: object) -> TypeGuard[int | float]:
    # The bound keeps what follows finite in float32.
    return not isinstance(value, bool) and isinstance(value, (int, float)) and 0 < value < 1e30


def flag(config: Mapping[str, object], key: str, default: bool = False) -> bool:
    """true or false. Raises ConfigError for any other type."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {key} is {value!r}; true or false is needed")
    return value


def numbers(config: Mapping[str, object], key: str, count: int) -> list[float]:
    """A list of ``count`` positive finite numbers. Raises ConfigError for anything else."""
    value = config.get(key)
    if not isinstance(value, list) or len(value) != count or not all(_positive(v) for v in value):
        raise ConfigError(f"config.json: {key} must be a list of {count} positive numbers (half the rotary dims), not {_brief(value)}")
    return [float(v) for v in value]


def refuse_unless(config: Mapping[str, object], key: str, *implemented: object) -> None:
    """Raises ConfigError unless ``key`` is absent or one of the values whose maths is implemented."""
    value = config.get(key)
    if value is not None and not any(type(value) is type(i) and value == i for i in implemented):
        known = " or ".join(repr(i) for i in implemented) if implemented else "absent"
        raise ConfigError(f"config.json: {key} is {_brief(value)}, which changes the model in a way edgekit does not implement ({known})")


def heads(config: Mapping[str, object], default_kv: int | None = None) -> tuple[int, int, int]:
    """Attention heads, key/value heads and head_dim (hidden_size / heads where config.json has none)."""
    count = integer(config, "num_attention_heads")
    kv = integer(config, "num_key_value_heads", default_kv)
    hidden = integer(config, "hidden_size")
    if count % kv:
        raise ConfigError(f"config.json: num_attention_heads {count} is no multiple of num_key_value_heads {kv}")
    if config.get("head_dim") is None and hidden % count:
        raise ConfigError(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {count}, and there is no head_dim")
    return count, kv, integer(config, "head_dim", hidden // count)


def activation(config: Mapping[str, object]) -> None:
    """Raises ConfigError unless the MLP's activation is SiLU, by either of its names."""
    refuse_unless(config, "hidden_act", "silu", "swish")


def window(config: Mapping[str, object], key: str, context: int) -> int | None:
    """A sliding window in tokens; None where it is null or no shorter than the context, so that it never hides anything."""
    if config.get(key) is None:
        return None
    tokens = integer(config, key)
    return None if tokens >= context else tokens


def layer_types(config: Mapping[str, object], implied: Sequence[bool], window: int | None = None) -> None:
    """Raises ConfigError unless layer_types (transformers 5) is absent or says the same as ``implied``: which layers are sliding. Where no
    ``window`` hides anything, both kinds of layer are the same."""
    value = config.get("layer_types")
    want = ["sliding_attention" if sliding else "full_attention" for sliding in implied]
    if value is None or value == want:
        return
    known = isinstance(value, list) and len(value) == len(want) and all(kind in ("sliding_attention", "full_attention") for kind in value)
    if not (known and any(implied) and window is None):
        raise ConfigError(
            f"config.json: layer_types {_brief(value)} disagrees with its sliding_window keys, which mean {_brief(want)}; "
            "such a mix of layers is not implemented"
        )


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

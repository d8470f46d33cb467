"""Parsed JSON or TOML into frozen dataclasses, checked against their type hints, with the path of what is wrong in the message.

Known types: str, int, float, bool, None, Literal, unions of these, nested dataclasses, ``tuple[T, ...]`` (a JSON list) and
``Mapping[str, T]`` (a JSON object). Nothing is converted, but an int may stand where a float is asked for.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


class RecordError(Exception):
    """What is wrong, and where, as in ``files.model.onnx.bytes: wanted an integer, found "12"``. Callers turn it into an EdgekitError."""


def parse(into: type[T], data: object, *, unknown: Literal["refuse", "ignore"], path: str = "") -> T:
    """``data`` as the dataclass ``into``. A field with a default may be absent. Raises RecordError."""
    if not isinstance(data, Mapping):
        raise RecordError(_at(path, f"wanted {_a(into)}, found {_show(data)}"))
    hints = typing.get_type_hints(into)
    known = {f.name: f for f in fields(into)}  # type: ignore[arg-type]
    extra = [str(key) for key in data if key not in known]
    if extra and unknown == "refuse":
        raise RecordError(_at(path, f"unknown key {', '.join(map(repr, extra))}; allowed: {', '.join(known) or 'none'}"))
    missing = [name for name, field in known.items() if name not in data and not _has_default(field)]
    if missing:
        raise RecordError(_at(path, f"missing key {', '.join(map(repr, missing))}"))
    return into(**{key: _value(hints[key], data[key], unknown, _join(path, key)) for key in known if key in data})


def _value(hint: Any, data: object, unknown: Literal["refuse", "ignore"], path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return parse(typing.cast(type, hint), data, unknown=unknown, path=path)
    if origin is Literal:
        if any(data == allowed and type(data) is type(allowed) for allowed in args):
            return data
    elif origin in (Union, types.UnionType):
        for arm in args:
            if _fits(arm, data):
                return _value(arm, data, unknown, path)
    elif origin is tuple and isinstance(data, list):
        return tuple(_value(args[0], item, unknown, f"{path}[{i}]") for i, item in enumerate(data))
    elif origin is Mapping and isinstance(data, Mapping) and all(_fits(str, key) for key in data):
        return {key: _value(args[1], item, unknown, _join(path, key)) for key, item in data.items()}
    elif origin is None and _fits(hint, data):
        return float(typing.cast(float, data)) if hint is float else data
    raise RecordError(_at(path, f"wanted {_a(hint)}, found {_show(data)}"))


def _fits(hint: Any, data: object) -> bool:
    origin = typing.get_origin(hint) or hint
    if is_dataclass(hint) or origin is Mapping:
        return isinstance(data, Mapping)
    if origin is tuple:
        return isinstance(data, list)
    if origin is Literal:
        return data in typing.get_args(hint)
    if hint is float:
        # an integer that no float can hold is none
        return isinstance(data, float) or (isinstance(data, int) and not isinstance(data, bool) and data.bit_length() < 1024)
    if hint is int:
        # what no machine word holds is no size and no count
        return isinstance(data, int) and not isinstance(data, bool) and data.bit_length() <= 64
    if hint is str:
        return isinstance(data, str) and _encodable(data)
    return isinstance(data, hint)


def _encodable(text: str) -> bool:
    """False of half a character (a lone surrogate): no file, terminal or tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _at(path: str, problem: str) -> str:
    return f"{path}: {problem}" if path else problem


_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


def _a(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_a(arm) for arm in args)
    if origin is tuple:
        return "a list"
    return _NAMES.get(hint, "an object")


def _show(data: object) -> str:
    if isinstance(data, Mapping):
        return "an object"
    if isinstance(data, list):
        return "a list"
    text = {None: "null", True: "true", False: "false"}.get(data) if data is None or isinstance(data, bool) else repr(data)
    return text if len(text := text or "null") <= 60 else text[:57] + "..."

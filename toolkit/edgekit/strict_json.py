"""JSON that a stranger may have written: whatever is wrong with it is a ValueError in words, found in time linear in its length."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

DEEPEST = 100
"""Lists and objects in each other; a chat template's values may be 64 deep."""


def load(text: str | bytes, *, finite: bool = False) -> Any:
    """The value of a JSON document.

    finite: refuse NaN and infinities, which are no JSON, and numbers that a float holds as infinity. Raises ValueError for these, for text
    that is no UTF-8 or no JSON, a key given twice, nesting too deep for Python, and half a character (a lone surrogate, which no file
    name, terminal or tokenizer takes).
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        checks: dict[str, Any] = {"parse_constant": _no_constant, "parse_float": _finite} if finite else {}
        value = json.loads(text, object_pairs_hook=unique, **checks)
        _check_depth(value)
        if _HALF.search(text):  # mostly halves of whole characters: only then is it worth a closer look
            check_whole(json.dumps(value, ensure_ascii=False))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    return value


def _check_depth(value: object) -> None:
    """What is done with it afterwards recurses, too, from wherever the stack may be then."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = [part for parts in inner for part in parts if isinstance(part, (dict, list))]
        if not level:
            return
    raise RecursionError


_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_LONE = re.compile("[\ud800-\udfff]")


def check_whole(text: str) -> None:
    """Raises ValueError for half a character in ``text``."""
    if found := _LONE.search(text):
        raise ValueError(f"half of a character, \\u{ord(found[0]):04x}, stands alone")


def unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """For ``object_pairs_hook``. Raises ValueError for a key given twice."""
    out: dict[str, object] = {}
    for name, value in pairs:
        if name in out:
            raise ValueError(f"key {brief(name)} is given twice")
        out[name] = value
    return out


def brief(value: object) -> str:
    """For a message: as Python writes it, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value

"""Whether a tokenizer gives back the text that it took: a decoder of another kind of vocabulary answers ``helloĠto``."""

from collections.abc import Iterator

from edgekit.errors import ConfigError
from edgekit.runtime.tokenizer import Tokenizer

TEXTS = (
    "hello to the world, It's 3.14 and 1,000,000!",
    "two  spaces,   three    four",
    "def f(x):\n\treturn [x ** 2, {'a': \"b\"}]\r\n\r\n# end",
    "naïve café, Zürich, cafe\u0301, Đà Nẵng, İstanbul",
    "Привет, мир. Γειά σου, κόσμε.",
    "你好,世界。 こんにちは、 안녕하세요",
    "שלום עולם مرحبا بالعالم",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "👩\u200d👩\u200d👧 🇨🇭 ❤\ufe0f",
)
KEEPING = frozenset({"Sequence", "Prepend", "Replace"})
"""Normalizers that a decoder takes back; others (NFKC, lower case) change a text for good."""
BYTES = "ByteLevel"
PIECES = "a Sequence of Replace (▁ by a space), ByteFallback, Fuse and Strip, or Metaspace"


def check_round_trip(tokenizer: Tokenizer, where: str) -> None:
    """Encodes and decodes texts of many scripts. Raises ConfigError naming ``where``, the decoder, and what it should be."""
    keeps = set(_kinds(tokenizer.backend.normalizer)) <= KEEPING
    for text in TEXTS:
        ids = tokenizer.encode(text)
        found = tokenizer.decode(ids)
        if found.strip() == text.strip() or _lost(tokenizer, ids, text, found, keeps):
            continue
        decoder = "/".join(dict.fromkeys(_kinds(tokenizer.backend.decoder)))
        raise ConfigError(
            f"{where}: decoder: {decoder} makes {found[:60]!r} of the tokens of {text[:60]!r}; {_right(tokenizer)}. Take the model's own "
            "tokenizer.json, or correct it"
        )


def _lost(tokenizer: Tokenizer, ids: list[int], text: str, found: str, keeps: bool) -> bool:
    """Whether the decoder gives all that the tokens hold: a normalizer changed the text, or the vocabulary lacks characters of it."""
    if tokenizer.backend.unknown in ids:
        return True
    if not keeps:
        return tokenizer.decode(tokenizer.encode(found)).strip() == found.strip() and not {"▁", "Ġ"} & set(found)
    rest = iter(text)
    return all(c in rest for c in found) and found.count(" ") == (text.count(" ") if ids else 0)


def _right(tokenizer: Tokenizer) -> str:
    vocab = tokenizer.backend.get_vocab(with_added_tokens=False)
    if sum("▁" in token for token in vocab) > sum("Ġ" in token for token in vocab):
        return f"its vocabulary is of sentencepiece's kind, whose decoder is {PIECES}"
    return f"its vocabulary is byte-level, whose decoder is {BYTES}"


def _kinds(part: object) -> Iterator[str]:
    """Type names of a normalizer or decoder and what is nested in it."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for value in part.values():
            yield from _kinds(value)
    elif isinstance(part, list):
        for value in part:
            yield from _kinds(value)

"""What is done in a process of its own (confine.py) with what an artifact says about texts: its tokenizer.json and its chat template.

Both are programs, of a kind, that come with the model: they may loop for ever, and make gigabytes of a letter. Nothing here keeps them
from it; the process does. Jinja's sandbox keeps a template from Python's internals.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from edgekit.errors import ArtifactError

OUTPUT_LIMIT = 10_000_000
"""Characters a template may write."""
LIMIT = 64 << 20
"""Bytes of a tokenizer.json; the largest known has 34 MB."""
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
"""Of an added token."""
GROWTH = 16
"""Tokens that a byte of text may become. A ligature of Arabic, in compatibility form, has 33 bytes where it had 3."""
# What a tokenizer is tried with when it is opened: long words, spaces, digits, line ends, scripts.
PROBE = "".join(
    (
        *("a" * 600, "! ", "ab" * 300, "\n\n", " " * 300, "0123456789" * 30, "\t" * 50, "'s " * 100, "." * 300, "aB1_" * 100, "\r\n" * 50),
        "naïve café Zürich Привет, мир. 你好,世界。 こんにちは 안녕하세요 שלום مرحبا नमस्ते 👩\u200d👩\u200d👧 🇨🇭 cafe\u0301 ﷺ ½ Ⅷ ",
        *("é" * 100, "你" * 100, "<" * 100, "{[(" * 50, "x"),
    )
)


class Texts:
    """Requests, and what they have opened, in order: a number names one."""

    def __init__(self) -> None:
        self._opened: list[Any] = []

    def compile(self, source: str, special: Mapping[str, str]) -> None:
        """Opens a chat template. special: texts of special tokens by name. Raises TemplateError."""
        from edgekit.template_work import compiled  # Jinja: not every process needs it

        self._opened.append((compiled(source), special))

    def render(self, number: int, variables: Mapping[str, object], now: Sequence[int]) -> str:
        """What the template makes of ``variables`` at the time ``now`` (of which it is told). Raises TemplateError."""
        from edgekit.template_work import rendered

        template, special = self._opened[number]
        given = {**special, **variables, "strftime_now": datetime(*now).strftime}  # type: ignore[arg-type]
        return rendered(template, given, OUTPUT_LIMIT)

    def render_all(self, number: int, chats: Sequence[Mapping[str, object]], now: Sequence[int]) -> list[str]:
        return [self.render(number, variables, now) for variables in chats]

    def tokenizer(self, path: str, text: str | None = None) -> dict[str, object]:
        """Opens a tokenizer.json, or ``text`` in its place; what Backend needs to know of it. Raises ArtifactError."""
        import tokenizers

        try:
            content = _content(path) if text is None else text.encode()
            backend = tokenizers.Tokenizer.from_buffer(content)
            # A file may ask for padding or cutting to a length, meant for training; a prompt is taken as it is.
            backend.no_truncation()
            backend.no_padding()
            normalizer, decoder = _state(backend.normalizer), _state(backend.decoder)
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing; copy the whole artifact again or rebuild it") from None
        except MemoryError:
            raise
        except ArtifactError:
            raise
        except BaseException as error:  # the library raises nothing narrower, and for its panics no Exception
            raise ArtifactError(f"{path} cannot be read as a tokenizer: {_short(error)}; copy the artifact again or rebuild it") from None
        self._opened.append(backend)
        return {
            "digest": hashlib.sha256(content).hexdigest(),
            "size": backend.get_vocab_size(),
            "normalizer": normalizer,
            "decoder": decoder,
            "unknown": backend.token_to_id(getattr(backend.model, "unk_token", None) or ""),
            "added": _added(backend),
            "bytes": [backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)],
        }

    def add(self, number: int, tokens: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Adds tokens (texts and flags, as in FLAGS) to a tokenizer. Opens nothing, but is done again with what was opened."""
        import tokenizers

        made = [tokenizers.AddedToken(text, **dict(zip(FLAGS, flags, strict=True))) for text, *flags in tokens]
        _asked(lambda: self._opened[number].add_tokens(made))
        self._opened.append(None)
        return _added(self._opened[number])

    def probe(self, number: int) -> int:
        """Encodes and decodes PROBE, whose tokens it counts."""
        ids = self.encode(number, PROBE)
        self.decode(number, ids)
        return len(ids)

    def encode(self, number: int, text: str, special: bool = False) -> list[int]:
        """special: with what the post-processor adds. Raises ArtifactError."""
        ids: list[int] = _asked(lambda: self._opened[number].encode(text, add_special_tokens=special)).ids
        if len(ids) > GROWTH * len(text.encode()) + 1024:
            raise ArtifactError(f"tokenizer.json makes {len(ids):,} tokens of a text of {len(text):,} characters")
        return ids

    def encode_all(self, number: int, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(number, text) for text in texts]

    def decode(self, number: int, ids: Sequence[int], skip: bool = True) -> str:
        """skip: special tokens. Raises ArtifactError."""
        text: str = _asked(lambda: self._opened[number].decode(ids, skip_special_tokens=skip))
        return text

    def decode_batch(self, number: int, many: Sequence[Sequence[int]], skip: bool = True) -> list[str]:
        texts: list[str] = _asked(lambda: self._opened[number].decode_batch(many, skip_special_tokens=skip))
        return texts

    def token_to_id(self, number: int, text: str) -> int | None:
        found: int | None = self._opened[number].token_to_id(text)
        return found

    def id_to_token(self, number: int, token: int) -> str | None:
        found: str | None = self._opened[number].id_to_token(token)
        return found

    def vocabulary(self, number: int, added: bool) -> dict[str, int]:
        found: dict[str, int] = self._opened[number].get_vocab(with_added_tokens=added)
        return found

    def reach(self, number: int) -> dict[str, object] | None:
        """How much text a token can stand for; None where that is not known. longest: bytes. uncounted: ASCII and spaces that may vanish.
        ascii: nothing else is sure to stay."""
        return _reach(self._opened[number])


# Parts that leave at least one byte of each character to the tokens.
_KEEPING = frozenset(
    {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "ByteLevel", "Metaspace", "Digits", "Sequence", "Replace", "Split"}
)


def _reach(backend: Any) -> dict[str, object] | None:
    parts: list[dict[str, Any]] = []
    for part in (backend.normalizer, backend.pre_tokenizer):
        waiting = [] if part is None else [_state(part)]
        while waiting:
            here = waiting.pop()
            parts.append(here)
            waiting += [*here.get("normalizers", ()), *here.get("pretokenizers", ())]
    if type(backend.model).__name__ != "BPE" or not all(map(_keeps, parts)):
        return None
    pieces, added = backend.get_vocab(with_added_tokens=False), backend.get_added_tokens_decoder().values()
    level = any(part["type"] == "ByteLevel" for part in parts)
    if level:
        stands = {byte: character for character, byte in byte_level().items()}
        lost = {byte for byte in range(256) if stands[byte] not in pieces}
    elif backend.model.byte_fallback and all(f"<0x{byte:02X}>" in pieces for byte in range(256)):
        lost = set()
    else:
        return None
    swallows = any(token.lstrip or token.rstrip for token in added)
    spaces = "".join(chr(n) for n in range(0x3001) if chr(n).isspace()) if swallows else ""
    return {
        "longest": max(1, *(len(p if level else p.encode()) for p in pieces), *(len(token.content.encode()) for token in added)),
        "uncounted": "".join(sorted({*spaces, *(chr(byte) for byte in lost if byte < 128)})),
        "ascii": not lost.isdisjoint(range(128, 192)),
    }


def _keeps(part: Mapping[str, Any]) -> bool:
    if part["type"] == "Replace":
        old = part["pattern"].get("String")
        return old is not None and 0 < len(old) <= len(part["content"])
    return part["type"] in _KEEPING and part.get("behavior") != "Removed"


@functools.cache
def byte_level() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [n for n in range(256) if n not in printable]
    return {chr(n): n for n in printable} | {chr(256 + i): n for i, n in enumerate(others)}


def _state(part: Any) -> Any:
    """A part as tokenizer.json has it."""
    return None if part is None else json.loads(part.__getstate__())


def _content(path: str) -> bytes:
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size  # read(n) takes memory for all of n, and a device has no end
        if size > LIMIT:
            raise ArtifactError(f"{path}: larger than {LIMIT >> 20} MB, that is no tokenizer")
        return file.read(size)


def _added(backend: Any) -> list[list[Any]]:
    found = sorted(backend.get_added_tokens_decoder().items())
    return [[token, given.content, *(getattr(given, flag) for flag in FLAGS)] for token, given in found]


def _asked(request: Any) -> Any:
    """What the library gives. Written in Rust, it raises what is no Exception where it contradicts itself."""
    try:
        return request()
    except MemoryError:
        raise
    except BaseException as error:
        raise ArtifactError(
            f"tokenizer.json makes the tokenizers library fail: {_short(error)}; build it from an intact checkpoint"
        ) from None


def _short(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."

"""Text to token ids and back, by the ``tokenizers`` library from an artifact's tokenizer.json."""

import contextlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from edgekit.artifact import EncodeVector
from edgekit.errors import ArtifactError, UsageError

FILE = "tokenizer.json"
LIMIT = 128 << 20
"""Bytes; the largest known tokenizer.json has 34 MB."""
GROWTH, PARTS = 64, 10_000
"""Times that normalizing or decoding may lengthen a text, and parts of a normalizer, decoder or the like."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_HALF = re.compile("[\ud800-\udfff]")
_WINDOW = 8
"""Tokens decoded again in front of a new one. A cut UTF-8 character is at most 3 tokens long."""

# Decoders whose output for a sequence never changes what they gave for its beginning, but for a cut character or byte run at its end.
# The others (WordPiece and CTC tidy up what went before) belong to no model that edgekit builds.
_STREAMABLE = frozenset({"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip"})


@dataclass(frozen=True)
class Tokenizer:
    """bos: what ``encode`` puts in front of raw text, None for nothing.

    silent: ids that never show in text: special tokens. bytes_: ids of byte-fallback tokens (``<0x0A>``), empty where there are none.
    """

    backend: tokenizers.Tokenizer
    bos: int | None
    silent: frozenset[int]
    bytes_: frozenset[int]

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """The ids of ``text``. Special tokens written in it are recognized. ``add_bos`` puts ``bos``, where there is one, in front.

        Raises UsageError for half a character.
        """
        check_whole(text, "the text")
        with _panics():
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return [self.bos, *ids] if add_bos and self.bos is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without special tokens. Bytes that are no UTF-8 become U+FFFD."""
        with _panics():
            text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self, context: Sequence[int] = ()) -> "TextStream":
        """Decodes what follows ``context`` token by token, see TextStream."""
        return TextStream(self, context)


def check_whole(text: str, what: str) -> None:
    """Raises UsageError where ``text`` holds half a character: a lone surrogate, which is nothing that could be written or tokenized."""
    if (half := _HALF.search(text)) is not None:
        place = f"at {half.start()}, U+{ord(half[0]):04X}"
        raise UsageError(f"{what} holds half a character (a lone surrogate, {place}); read or cut it as whole characters")


def open_tokenizer(directory: Path, *, bos: int | None = None) -> Tokenizer:
    """Opens ``tokenizer.json``. Raises ArtifactError when it is missing, does not parse, has a decoder that cannot be streamed, or would
    make far more of a text than it is."""
    path = directory / FILE
    try:
        if path.stat().st_size > LIMIT:
            raise ArtifactError(f"{path}: larger than {LIMIT >> 20} MB, that is no tokenizer")
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        decoder = data.get("decoder")
        for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            _check_growth(data.get(part), f"{path}: {part}")
        with _panics():
            backend = tokenizers.Tokenizer.from_str(text)
    except ArtifactError:
        raise
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; copy the whole artifact again or rebuild it") from None
    except Exception as error:  # the library raises nothing narrower
        raise ArtifactError(f"{path} cannot be read as a tokenizer: {_short(error)}; copy the artifact again or rebuild it") from None
    kinds = set(_decoders(decoder, path))
    # A file may ask for padding or cutting to a length, meant for training; a prompt is taken as it is.
    backend.no_truncation()
    backend.no_padding()
    silent = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
    found = (backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256) if "ByteFallback" in kinds)
    return Tokenizer(backend, bos, silent, frozenset(i for i in found if i is not None))


@contextlib.contextmanager
def _panics() -> Iterator[None]:
    """What the library, written in Rust, raises where it contradicts itself is no Exception and would end the program."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ArtifactError(
            f"tokenizer.json makes the tokenizers library fail: {_short(error)}; build it from an intact checkpoint"
        ) from None


def _check_growth(part: object, where: str) -> None:
    """Forty replacements of ``a`` by ``aa``, one after the other, make a terabyte of one letter."""
    growth, count = 1.0, 0
    waiting = [part]
    while waiting:
        here = waiting.pop()
        count += 1
        if isinstance(here, Mapping):
            waiting.extend(here.values())
            content, pattern = here.get("content"), here.get("pattern")
            if here.get("type") == "Replace" and isinstance(content, str):
                old = pattern.get("String") if isinstance(pattern, Mapping) else None
                growth *= max(1.0, len(content) / max(1, len(old) if isinstance(old, str) else 1), 1.0 + len(content) if old == "" else 1.0)
        elif isinstance(here, list):
            waiting.extend(here)
        if count > PARTS or growth > GROWTH:
            raise ArtifactError(f"{where} has too many parts, or makes far more of a text than it is; take the model's own tokenizer.json")


def check_tokenizer(tokenizer: Tokenizer, vectors: Iterable[EncodeVector]) -> None:
    """Encodes the manifest's texts. Raises ArtifactError naming the first that comes out differently."""
    for vector in vectors:
        ids = tokenizer.encode(vector.text)
        if tuple(ids) != vector.ids:
            raise ArtifactError(
                f"the tokenizer turns {vector.text!r} into {ids}, the manifest says {list(vector.ids)}: tokenizers "
                f"{tokenizers.__version__} reads tokenizer.json differently from the version it was built with, "
                "or the file is not the one that was built. Upgrade (pip install --upgrade tokenizers) or build the artifact again"
            )


class TextStream:
    """Streaming decoder: the pieces it returns add up to exactly what decoding all the tokens at once gives.

    With ``context`` (tokens in front that were shown already) it is ``decode(context + tokens)`` without its beginning ``decode(context)``;
    so text that continues a prompt keeps the space in front of its first word, which ``decode(tokens)`` strips in Llama's vocabularies.
    Of the context only what follows its last special token counts. Where it ends with one (a chat's prompt does), there is none: an
    answer begins there, and its pieces add up to ``decode(tokens)``, without that space.

    A UTF-8 character is returned with its last byte. Byte-fallback tokens are held until their run ends: the library decodes a run as a
    whole, and a single stray byte turns all of it into U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = self._context(context)
        self._sent = len(self._shown())
        self._held = False

    def push(self, token: int) -> str:
        """The text that is settled now, after one more token; often empty."""
        if self._silent(token):
            return ""
        self._window.append(token)
        if token in self._tokenizer.bytes_:
            self._held = True
            return ""
        return self._settle()

    def finish(self) -> str:
        """The rest, in which a cut character is U+FFFD. The stream may not be used afterwards."""
        return self._tokenizer.decode(self._window)[self._sent :]

    def silent_texts(self, more: Collection[int]) -> dict[int, str]:
        """How special tokens, and ``more``, would be written if they showed."""
        backend = self._tokenizer.backend
        added = {token: backend.id_to_token(token) or "" for token in self._tokenizer.silent}
        return added | {token: backend.decode([token], skip_special_tokens=False) for token in more if token not in added}

    def _settle(self) -> str:
        settled = _settled(self._tokenizer.decode(self._window))
        piece, self._sent = settled[self._sent :], max(self._sent, len(settled))
        if self._held or len(self._window) >= 2 * _WINDOW:
            self._window, self._held = self._window[-_WINDOW:], False
            self._sent = len(_settled(self._tokenizer.decode(self._window)))
        return piece

    def _shown(self) -> str:
        """What of the context was shown: all but a character that is cut at its end (which, in a byte run, takes the run with it)."""
        text, end = self._tokenizer.decode(self._window), len(self._window)
        if not text.endswith(_REPLACEMENT):
            return text
        while end and self._window[end - 1] in self._tokenizer.bytes_:
            end -= 1
        return self._tokenizer.decode(self._window[:end]) if end < len(self._window) else _settled(text)

    def _context(self, context: Sequence[int]) -> list[int]:
        """The end of ``context`` that decoding depends on. A byte run is not cut; a special token ends what came before it."""
        tail: list[int] = []
        for token in reversed(context):
            if token in self._tokenizer.silent or (len(tail) >= _WINDOW and tail[-1] not in self._tokenizer.bytes_):
                break
            if not self._silent(token):
                tail.append(token)
        return tail[::-1]

    def _silent(self, token: int) -> bool:
        """Special, or one of the ids between the vocabulary's end and the length of the logits, which have no text either."""
        return token in self._tokenizer.silent or self._tokenizer.backend.id_to_token(token) is None


def _settled(text: str) -> str:
    """Without a replacement character at the end: the bytes behind it may still become a character."""
    return text[:-1] if text.endswith(_REPLACEMENT) else text


def _decoders(decoder: object, path: Path) -> Iterable[str]:
    """The type names in a decoder, nested ones included."""
    if not isinstance(decoder, Mapping):
        raise ArtifactError(f"{path}: it has no decoder, so its tokens cannot be turned back into text; build the artifact again")
    kind, nested = decoder.get("type"), decoder.get("decoders", [])
    if kind not in _STREAMABLE or (kind == "Strip" and decoder.get("stop")):
        raise ArtifactError(f"{path}: decoder {decoder!r} changes text it has already given, which edgekit cannot stream")
    yield str(kind)
    for part in nested:
        yield from _decoders(part, path)


def _short(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= 200 else text[:200] + "..."

"""Text to token ids and back, by the ``tokenizers`` library from an artifact's tokenizer.json, in a process of its own (confine.py)."""

import dataclasses
import functools
import importlib.metadata
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import EncodeVector
from edgekit.confine import Confined, Cost, Here, Overrun
from edgekit.errors import ArtifactError, ContextOverflow, UsageError
from edgekit.runtime.chat import WORK
from edgekit.text_work import byte_level

FILE = "tokenizer.json"
PROBE = Cost(seconds=2, memory=64 << 20)
"""Of trying a tokenizer on 4,000 characters, for which good ones take 0.01 s."""
DECODE = Cost(seconds=4)
WHOLE = Cost(seconds=20)
"""Of what is asked about the whole vocabulary."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_HALF = re.compile("[\ud800-\udfff]")
_WINDOW = 8
"""Tokens decoded again in front of a new one. A cut UTF-8 character is at most 3 tokens long."""

# Decoders whose output for a sequence never changes what they gave for its beginning, but for a cut character or byte run at its end.
# The others (WordPiece and CTC tidy up what went before) belong to no model that edgekit builds.
_STREAMABLE = frozenset({"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip"})


def open_cost(size: int) -> Cost:
    """Of reading a file of ``size`` bytes. 262,144 tokens in 24 MB take 3 s and 250 MB, and a slow device five times as long."""
    return Cost(seconds=4 + 1.5e-6 * size, memory=(64 << 20) + 24 * size)


def encode_cost(size: int) -> Cost:
    """Of encoding ``size`` bytes: five times what a text of one word takes here, the dearest that a good tokenizer can be given."""
    return Cost(seconds=4 + 10e-6 * size, memory=(64 << 20) + 256 * size)


@dataclass(frozen=True)
class AddedToken:
    """As the library's of that name. lstrip, rstrip: it takes the white space beside it along."""

    content: str
    special: bool
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


class Backend:
    """What edgekit asks of a ``tokenizers.Tokenizer``, by its names; the library's is in the other process.

    Every method raises ArtifactError where the file makes it take too much time or memory, or makes the library fail.
    """

    def __init__(self, path: Path, process: Confined | Here, text: str | None = None) -> None:
        self.process, self._path = process, path
        try:
            size = path.stat().st_size if text is None else _size(text)
        except OSError:
            size = 0  # it will be said why it cannot be opened
        try:
            self._number, self._known = process.open(open_cost(size), "tokenizer", str(path), text)
        except Overrun as error:
            raise ArtifactError(f"{path} cannot be opened within bounds: {error}; take the model's own tokenizer.json") from None
        self._pieces: dict[int, str | None] = {}
        self._ask(PROBE, "probe", of="4,000 characters")

    @property
    def decoder(self) -> Mapping[str, Any] | None:
        """As tokenizer.json has it."""
        found: Mapping[str, Any] | None = self._known["decoder"]
        return found

    @property
    def normalizer(self) -> Mapping[str, Any] | None:
        """As tokenizer.json has it."""
        found: Mapping[str, Any] | None = self._known["normalizer"]
        return found

    @property
    def unknown(self) -> int | None:
        """The id of what stands for characters that the vocabulary lacks."""
        found: int | None = self._known["unknown"]
        return found

    @property
    def byte_tokens(self) -> Sequence[int | None]:
        """Ids of ``<0x00>`` to ``<0xFF>``, None where there is none."""
        found: Sequence[int | None] = self._known["bytes"]
        return found

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Raises UsageError for half a character."""
        return list(self._ask(encode_cost(_size(text)), "encode", text, add_special_tokens, of=f"{len(text):,} characters"))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Without what a post-processor adds, all for the cost of one text as long as they are together."""
        size = sum(map(_size, texts))
        return list(self._ask(encode_cost(size), "encode_all", list(texts), of=f"{len(texts)} texts"))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self._ask(DECODE, "decode", list(ids), skip_special_tokens, of=f"{len(ids)} tokens"))

    def decode_batch(self, many: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        return list(self._ask(WHOLE, "decode_batch", [list(ids) for ids in many], skip_special_tokens, of=f"{len(many)} texts"))

    def token_to_id(self, token: str) -> int | None:
        found: int | None = self._ask(DECODE, "token_to_id", token, of="a token")
        return found

    def id_to_token(self, token: int) -> str | None:
        if token not in self._pieces:
            self._pieces[token] = self._ask(DECODE, "id_to_token", token, of="a token") if token >= 0 else None
        return self._pieces[token]

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        vocabulary: dict[str, int] = self._ask(WHOLE, "vocabulary", with_added_tokens, of="the vocabulary")
        return vocabulary

    def get_vocab_size(self) -> int:
        return int(self._known["size"])

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return {token: AddedToken(*given) for token, *given in self._known["added"]}

    def add_tokens(self, tokens: Sequence[AddedToken]) -> None:
        given = [list(dataclasses.astuple(token)) for token in tokens]
        try:
            _, self._known["added"] = self.process.open(WHOLE, "add", self._number, given)
        except Overrun as error:
            raise ArtifactError(f"{self._path} is out of bounds for {len(given)} added tokens: {error}") from None

    def fewest(self, text: str) -> int:
        """Tokens that ``text`` has at least, by the longest that there is."""
        reach = self._reach
        if reach is None:
            return 0
        sure = sum(map(text.count, map(chr, range(128)))) if reach["ascii"] else len(text)
        return max(0, -(-(sure - sum(map(text.count, reach["uncounted"]))) // int(reach["longest"])))

    def interrupt(self) -> None:
        """From another thread: ends what is being done."""
        self.process.interrupt()

    def close(self) -> None:
        """Ends the process. Whoever asks again gets a new one."""
        self.process.close()

    @functools.cached_property
    def _reach(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self._ask(WHOLE, "reach", of="the vocabulary")
        return found

    def _ask(self, cost: Cost, request: str, *arguments: object, of: str) -> Any:
        try:
            return self.process.ask(cost, request, self._number, *arguments)
        except Overrun as error:
            raise ArtifactError(f"{self._path} is out of bounds for {of}: {error}; take the model's own tokenizer.json") from None


@functools.lru_cache(maxsize=1 << 14)
def _bytes(piece: str) -> bytes:
    """Of a byte-level token; what is written in other characters is an added token and means itself."""
    table = byte_level()
    return bytes(map(table.__getitem__, piece)) if table.keys() >= set(piece) else piece.encode()


def _size(text: str) -> int:
    """Bytes of UTF-8. Raises UsageError."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"character {error.start} of a text is half a character (a lone surrogate); leave it out") from None


@dataclass(frozen=True)
class Tokenizer:
    """bos: what ``encode`` puts in front of raw text, None for nothing.

    silent: ids that never show in text: special tokens. bytes_: ids of byte-fallback tokens (``<0x0A>``), empty where there are none.
    """

    backend: Backend
    bos: int | None
    silent: frozenset[int]
    bytes_: frozenset[int]

    def encode(self, text: str, *, add_bos: bool = False, most: int | None = None) -> list[int]:
        """The ids of ``text``. Special tokens written in it are recognized. ``add_bos`` puts ``bos``, where there is one, in front.

        most: a text that surely has more tokens is not encoded. Raises ContextOverflow, UsageError, ArtifactError.
        """
        check_whole(text, "the text")
        if most is not None and len(text) > 4 * most and (fewest := self.backend.fewest(text)) > most:
            raise ContextOverflow(f"the prompt has at least {fewest} tokens; the context holds {most}. Shorten it")
        ids = self.backend.encode(text, add_special_tokens=False)
        return [self.bos, *ids] if add_bos and self.bos is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without special tokens. Bytes that are no UTF-8 become U+FFFD."""
        if (self.backend.decoder or {}).get("type") != "ByteLevel":
            return self.backend.decode(ids)
        # Told from the tokens alone, which is done here: a token of an answer need not wait for the other process.
        pieces = (self.backend.id_to_token(token) for token in ids if token not in self.silent)
        return b"".join(_bytes(piece) for piece in pieces if piece is not None).decode("utf-8", errors="replace")

    def stream(self, context: Sequence[int] = ()) -> "TextStream":
        """Decodes what follows ``context`` token by token, see TextStream."""
        return TextStream(self, context)


def check_whole(text: str, what: str) -> None:
    """Raises UsageError where ``text`` holds half a character: a lone surrogate, which is nothing that could be written or tokenized."""
    if (half := _HALF.search(text)) is not None:
        place = f"at {half.start()}, U+{ord(half[0]):04X}"
        raise UsageError(f"{what} holds half a character (a lone surrogate, {place}); read or cut it as whole characters")


def open_tokenizer(
    directory: Path, *, bos: int | None = None, text: str | None = None, process: Confined | Here | None = None
) -> Tokenizer:
    """Opens ``tokenizer.json``, or ``text`` in its place. process: where; None is one of its own. Raises ArtifactError when it is missing,
    does not parse, has a decoder that cannot be streamed, or takes too much time or memory."""
    path = directory / FILE
    backend = Backend(path, Confined(WORK) if process is None else process, text)
    kinds = set(_decoders(backend.decoder, path))
    silent = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
    found = backend.byte_tokens if "ByteFallback" in kinds else ()
    return Tokenizer(backend, bos, silent, frozenset(i for i in found if i is not None))


def check_tokenizer(tokenizer: Tokenizer, vectors: Sequence[EncodeVector]) -> None:
    """Encodes the manifest's texts. Raises ArtifactError naming the first that comes out differently."""
    for vector, ids in zip(vectors, tokenizer.backend.encode_all([vector.text for vector in vectors]), strict=True):
        if tuple(ids) != vector.ids:
            raise ArtifactError(
                f"the tokenizer turns {vector.text!r} into {ids}, the manifest says {list(vector.ids)}: tokenizers "
                f"{importlib.metadata.version('tokenizers')} reads tokenizer.json differently from the version it was built with, "
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

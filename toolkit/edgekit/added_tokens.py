"""Tokens that a checkpoint declares outside tokenizer.json: by tokenizer_config.json, special_tokens_map.json or added_tokens.json.

They are taken up as transformers' fast tokenizers do it, so that a text gets the same ids: which file counts, in which order tokens are
added, and with which flags. An id is the one that tokenizer.json gives the text, else the next free one; what the other files say of it
sets the order only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgekit.errors import ConfigError
from edgekit.runtime.tokenizer import AddedToken, Backend

CONFIG, MAP, ADDED, TOKENIZER = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
MOST = 20_000
"""Added tokens; Gemma has 6,400. The library takes time with the square of their number."""


@dataclass(frozen=True)
class Token:
    """As the library's AddedToken, which compares by its text alone."""

    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True

    def added(self) -> AddedToken:
        return AddedToken(self.content, self.special, self.single_word, self.lstrip, self.rstrip, self.normalized)


@dataclass(frozen=True)
class Declared:
    """named: ``bos_token`` and the like, which templates see. extra: special tokens without a name. listed: further tokens, in order."""

    named: Mapping[str, Token] = field(default_factory=dict)
    extra: tuple[Token, ...] = ()
    listed: tuple[Token, ...] = ()

    @property
    def special(self) -> dict[str, Token]:
        return {token.content: token for token in (*self.named.values(), *self.extra)}


def declared(config: Mapping[str, object], mapped: Mapping[str, object], added: Mapping[str, object], own: object) -> Declared:
    """What the contents of tokenizer_config.json, special_tokens_map.json and added_tokens.json and the ``added_tokens`` of tokenizer.json
    declare together. Raises ConfigError naming file and key.

    With ``added_tokens_decoder`` in tokenizer_config.json the two other files count for nothing.
    """
    if decoded := "added_tokens_decoder" in config:
        mapped = {}
    named = {**_named(config, CONFIG), **_named(mapped, MAP)}
    for key in [key for key in named if key in mapped and mapped[key] is None]:
        del named[key]
    extra = tuple({token.content: token for token in (*_extra(config, CONFIG), *_extra(mapped, MAP))}.values())
    special = {token.content for token in (*named.values(), *extra)}
    by_id = _decoder(config["added_tokens_decoder"]) if decoded else {**_legacy(added, special), **_own(own)}
    by_text = {token.content: token for token in by_id.values()}
    named = {key: by_text.get(named[key].content, named[key]) for key in (*NAMED, *named) if key in named}
    return Declared(named, extra, tuple(token for _, token in sorted(by_id.items(), key=lambda item: item[0])))


def take_up(backend: Backend, found: Declared) -> None:
    """Adds to ``backend`` what it lacks, and makes special what is declared so. Raises ConfigError where that cannot be."""
    there = dict.fromkeys(_known(token) for token in backend.get_added_tokens_decoder().values())
    new = [token for token in dict.fromkeys(found.listed) if token not in there]
    known = {token.content for token in (*there, *new)}
    new += [token for text, token in found.special.items() if text not in known]
    special = {*found.special, *(token.content for token in there if token.special)}  # the library never forgets that one was special
    new = [replace(token, special=token.special or token.content in special) for token in new if token.content]
    changed = {token.content for token in new}
    shown = [token for token in there if token.content in special and not token.special and token.content not in changed]
    new += [replace(token, special=True) for token in shown]
    if len(there) + len(new) > MOST:
        raise ConfigError(f"{CONFIG}: added_tokens_decoder: more than {MOST:,} added tokens; take the model's own files")
    before = backend.get_vocab(with_added_tokens=True)
    owners = {number: text for text, number in before.items()}
    backend.add_tokens([token.added() for token in new])
    for token in new:
        number = backend.token_to_id(token.content)
        if token.content not in before and number in owners:
            raise ConfigError(
                f"{CONFIG}: {token.content!r} would get the id {number}, which {TOKENIZER} gives {owners[number]!r}: its vocabulary has "
                f"gaps; put the token into {TOKENIZER}"
            )


def entries(backend: Backend, below: int) -> list[dict[str, object]]:
    """The ``added_tokens`` of a tokenizer.json that gives what ``backend`` does, without ids of ``below`` and more."""
    return [
        {"id": number, "content": token.content, **{name: getattr(token, name) for name in FLAGS}, "special": token.special}
        for number, token in sorted(backend.get_added_tokens_decoder().items())
        if number < below
    ]


def _known(token: AddedToken) -> Token:
    return Token(token.content, token.special, *(getattr(token, name) for name in FLAGS))


def _token(value: object, where: str, *, special: bool | None = None) -> Token:
    """A token given as text, which then is special, or as an object with its flags."""
    if isinstance(value, str):
        return Token(value, special=True, normalized=False)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise ConfigError(f"{where}: wanted the text of a token, or an object with its content, found {value!r:.200}")
    flags = {name: value[name] for name in (*FLAGS, "special") if name in value}
    wrong = next((name for name, flag in flags.items() if not isinstance(flag, (bool, int))), None)
    if wrong is not None:
        raise ConfigError(f"{where}: {wrong}: wanted true or false, found {flags[wrong]!r:.200}")
    found = {name: bool(flag) for name, flag in flags.items()} | ({} if special is None else {"special": special})
    return Token(value["content"], **{"normalized": not found.get("special", False), **found})


def _named(config: Mapping[str, object], file: str) -> dict[str, Token]:
    """Whatever is called ``..._token``, and what stands in the mappings that newer versions write. An empty text is none."""
    found: dict[str, Token] = {}
    given = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, (str, Mapping))}
    for key in (*EXTRA, "model_specific_special_tokens"):
        value = config.get(key)
        given |= value if isinstance(value, Mapping) else {}
    for key, value in given.items():
        token = _token(value, f"{file}: {key}", special=True if file == MAP else None)
        if token.content:
            found[key] = token
    return {key: found[key] for key in (*NAMED, *found) if key in found}


def _extra(config: Mapping[str, object], file: str) -> list[Token]:
    found = []
    for key in EXTRA:
        value = config.get(key)
        if value is None or isinstance(value, Mapping):
            continue
        if not isinstance(value, list):
            raise ConfigError(f"{file}: {key}: wanted a list of tokens, found {type(value).__name__}")
        found += [_token(item, f"{file}: {key}[{i}]", special=True if file == MAP else None) for i, item in enumerate(value)]
    return found


def _decoder(value: object) -> dict[int, Token]:
    where = f"{CONFIG}: added_tokens_decoder"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: wanted tokens by their ids, found {type(value).__name__}")
    wrong = next((key for key in value if not key.isascii() or not key.isdigit() or len(key) > 9), None)
    if wrong is not None:
        raise ConfigError(f"{where}: {wrong!r:.60} is no id")
    text = next((key for key, item in value.items() if isinstance(item, str)), None)
    if text is not None:
        raise ConfigError(f"{where}.{text}: wanted an object with a content, found {value[text]!r:.60}")
    return {int(key): _token(item, f"{where}.{key}") for key, item in value.items()}


def _legacy(added: Mapping[str, object], special: set[str]) -> dict[int, Token]:
    """added_tokens.json: ids by their texts."""
    found: dict[int, Token] = {}
    for text, number in added.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ConfigError(f"{ADDED}: {text!r:.60}: wanted an id, found {number!r:.60}")
        found[number] = Token(text, special=text in special, normalized=text not in special)
    return found


def _own(value: object) -> dict[int, Token]:
    """The ``added_tokens`` of tokenizer.json, which the library has read already."""
    listed = value if isinstance(value, list) else []
    return {item["id"]: _token(item, f"{TOKENIZER}: added_tokens") for item in listed if isinstance(item, Mapping) and "id" in item}

"""The tokenizer's files of an artifact: one tokenizer.json that holds every token, and files beside it that each engine's loader can read.

A checkpoint may spread its tokens over four files, in forms that grew over the years (objects for texts, lists of templates). What is
written here says the same in the plainest form; a file that does so already is copied byte for byte.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.added_tokens import ADDED, CONFIG, EXTRA, MAP, TOKENIZER, declared, entries, take_up
from edgekit.checkpoint import parse_object, read_bounded
from edgekit.errors import ArtifactError, CheckpointError, ConfigError
from edgekit.runtime.tokenizer import Backend, Tokenizer, open_tokenizer

CLASS = "PreTrainedTokenizerFast"
"""In tokenizer_config.json: transformers' class that takes tokenizer.json as it is, in every version; others rebuild parts of it."""
NO_TOKENIZER = (
    "has no tokenizer.json; make one with transformers (and sentencepiece or tiktoken, where the folder holds a tokenizer.model): "
    "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
)


@dataclass(frozen=True)
class TokenizerFiles:
    """tokenizer: with every token. named: texts of ``bos_token`` and the like. config: tokenizer_config.json as the checkpoint has it.

    contents: by name, of the files that are not copied as they are. left_out: added tokens that the embedding has no rows for.
    """

    tokenizer: Tokenizer
    named: Mapping[str, str]
    config: Mapping[str, object]
    contents: Mapping[str, str]
    left_out: tuple[str, ...]


def read_tokenizer(directory: Path, vocab_size: int, template: str | None = None) -> TokenizerFiles:
    """Reads what a checkpoint says of its tokens. vocab_size: rows of the embedding; an added token beyond them is left out, so that its
    text is only text. template: the chat template that every engine is to find.

    Raises CheckpointError (no tokenizer.json, or a broken one), ConfigError (files that contradict each other or the model).
    """
    config, mapped, added = (json_object(directory / name) for name in (CONFIG, MAP, ADDED))
    tokenizer = _opened(directory)
    data = json.loads((directory / TOKENIZER).read_text(encoding="utf-8"))
    try:
        found = declared(config, mapped, added, data.get("added_tokens"))
        take_up(tokenizer.backend, found)
    except ConfigError as error:
        raise ConfigError(f"{directory}: {error}") from None
    listed = entries(tokenizer.backend, vocab_size)
    left_out = tuple(_without(data, tokenizer.backend, vocab_size))
    contents: dict[str, str] = {}
    if left_out or data.get("added_tokens") != listed:
        contents[TOKENIZER] = _text({**data, "added_tokens": listed})
        tokenizer = _opened(directory, contents[TOKENIZER])
    _check_ids(tokenizer.backend, vocab_size, directory / TOKENIZER)
    held = {str(token["content"]): token["id"] for token in listed}
    named = {key: token.content for key, token in found.named.items() if token.content in held}
    extra = [token.content for token in found.extra if token.content in held]
    plain = {
        CONFIG: (config, _config(config, named, extra, listed, template)),
        MAP: (mapped, {key: text for key, text in named.items() if key in mapped} | {key: extra for key in EXTRA if key in mapped}),
        ADDED: (added, {text: held[text] for text in added if text in held}),
    }
    contents |= {name: _text(new) for name, (old, new) in plain.items() if new != old}
    return TokenizerFiles(tokenizer, named, config, contents, left_out)


def json_object(path: Path) -> dict[str, object]:
    """What a file of the checkpoint holds; nothing where there is none. Raises ConfigError."""
    if not path.is_file():
        return {}
    try:
        return parse_object(read_bounded(path))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _opened(directory: Path, text: str | None = None) -> Tokenizer:
    if not (directory / TOKENIZER).is_file():
        raise CheckpointError(f"{directory} {NO_TOKENIZER}")
    try:
        return open_tokenizer(directory, text=text)
    except ArtifactError as error:
        raise CheckpointError(str(error).replace("copy the artifact again or rebuild it", "download it again")) from None


def _without(data: dict[str, Any], backend: Backend, vocab_size: int) -> list[str]:
    """The added tokens beyond ``vocab_size``, by their ids; where they are of the vocabulary as well, they are taken out of ``data``'s."""
    beyond = {token.content: number for number, token in backend.get_added_tokens_decoder().items() if number >= vocab_size}
    model = data["model"]
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        data["model"] = {**model, "vocab": {text: number for text, number in vocab.items() if beyond.get(text) != number}}
    elif isinstance(vocab, list) and all(piece[0] in beyond for piece in vocab[vocab_size:]):  # a Unigram's ids are places
        data["model"] = {**model, "vocab": vocab[:vocab_size]}
    return sorted(beyond, key=lambda text: beyond[text])


def _check_ids(backend: Backend, vocab_size: int, path: Path) -> None:
    token, last = max(backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    if last >= vocab_size:
        raise ConfigError(f"{path} gives {token!r} the id {last}, but config.json has vocab_size {vocab_size}; one is another model's")
    wrong = next((number for number in backend.encode("a", add_special_tokens=True) if number >= vocab_size), None)
    if wrong is not None:
        raise ConfigError(f"{path}: post_processor adds the id {wrong}, but config.json has vocab_size {vocab_size}; correct it")


def _config(
    config: Mapping[str, object], named: Mapping[str, str], extra: list[str], listed: list[dict[str, object]], template: str | None
) -> dict[str, object]:
    """tokenizer_config.json in plain texts. ``auto_map`` leads to code that an artifact does not hold."""
    found: dict[str, object] = {
        key: value for key, value in config.items() if key != "auto_map" and not (_is_token(key, value) and key not in named)
    }
    mappings = {key: value for key in (*EXTRA, "model_specific_special_tokens") if isinstance(value := config.get(key), Mapping)}
    nested = {name for value in mappings.values() for name in value}
    found |= {key: text for key, text in named.items() if key not in nested or key in config}
    found |= {key: {name: named[name] for name in value if name in named} for key, value in mappings.items()}
    found |= {key: extra for key in EXTRA if isinstance(config.get(key), list)}
    if "added_tokens_decoder" in config:
        found["added_tokens_decoder"] = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in listed}
    found.pop("chat_template", None)
    found["tokenizer_class"] = CLASS
    return found if template is None else {**found, "chat_template": template}


def _is_token(key: str, value: object) -> bool:
    return key.endswith("_token") and isinstance(value, (str, Mapping))


def _text(value: object) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which only an escape can hold
        text = json.dumps(value, indent=2)
    return text + "\n"

"""What travels with the weights: tokenizer, chat template, the full stop set, licence and model card."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.artifact import TokenInfo
from edgekit.checkpoint import Checkpoint, parse_object, read_bounded
from edgekit.errors import ArtifactError, CheckpointError, ConfigError, TemplateError
from edgekit.files import shown
from edgekit.runtime.chat import VECTOR_TIME, ChatTemplate, special_tokens
from edgekit.runtime.tokenizer import Tokenizer, open_tokenizer

COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
LEGAL = ("license", "notice", "use_policy", "readme.md")
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Companions:
    """tokenizer and chat are the runtime's own. template: the Jinja source, None for a model without one.

    generation: the content of generation_config.json as the artifact gets it.
    """

    tokenizer: Tokenizer
    tokens: TokenInfo
    template: str | None
    chat: ChatTemplate | None
    generation: Mapping[str, object]


def read_companions(checkpoint: Checkpoint, vocab_size: int) -> Companions:
    """Reads and checks everything that is not weights, before the long job.

    Raises CheckpointError (no tokenizer.json), ConfigError (ids that do not fit the model), TemplateError (broken chat template).
    """
    directory = checkpoint.directory
    tokenizer = _tokenizer(directory, vocab_size)
    config = _json(directory / "tokenizer_config.json")
    generation = _json(directory / "generation_config.json")
    _json(directory / "special_tokens_map.json")
    source = _template(directory, config)
    chat = None if source is None else _compiled(source, directory)
    bos = _bos(config, generation, checkpoint.config, tokenizer)
    stop = _stop_ids(checkpoint, generation, config, tokenizer, chat)
    for token in [*stop, *([] if bos is None else [bos])]:
        if not 0 <= token < vocab_size:
            raise ConfigError(f"{directory}: token id {token} is outside the vocabulary of {vocab_size}; correct generation_config.json")
    tokens = TokenInfo(vocab_size, bos, stop, _adds_bos(config, tokenizer, bos))
    full: dict[str, object] = {**generation, "eos_token_id": list(stop)}
    if bos is not None:
        full["bos_token_id"] = bos
    return Companions(tokenizer, tokens, source, chat, full)


def write_companions(companions: Companions, checkpoint: Checkpoint, directory: Path) -> None:
    """Copies what there is into ``directory`` and writes the template and generation_config.json."""
    for path in companion_files(checkpoint.directory):
        shutil.copyfile(path, directory / path.name)
    if companions.template is not None:
        (directory / TEMPLATE).write_text(companions.template, encoding="utf-8", newline="\n")
    text = json.dumps(companions.generation, indent=2, ensure_ascii=False) + "\n"
    (directory / "generation_config.json").write_text(text, encoding="utf-8", newline="\n")


def companion_files(directory: Path) -> list[Path]:
    """The files of a checkpoint that are copied as they are."""
    legal = [p for p in sorted(directory.iterdir()) if p.name.lower().startswith(LEGAL) and p.is_file()]
    files = [*(directory / name for name in COPIED if (directory / name).is_file()), *legal]
    for path in files:
        _check_link(path)
        if shown(path.name) != path.name:
            raise CheckpointError(f"{path}: its name is no UTF-8, so no manifest can list it; rename it, or remove it")
    return files


def companion_sizes(sizes: Mapping[str, int]) -> int:
    """Bytes of those files of a checkpoint, given by name and size, that are copied."""
    return sum(size for name, size in sizes.items() if name in COPIED or name == TEMPLATE or name.lower().startswith(LEGAL))


def _check_link(path: Path) -> None:
    """An unpacked archive may hold a LICENSE that is a link to somebody's keys, which would then be copied and published. The hub's own
    cache links to the ``blobs`` beside its snapshots."""
    real, home = path.resolve(), path.parent.resolve()
    if home not in real.parents and real.parent != home.parent.parent / "blobs":
        raise CheckpointError(f"{path} is a link to {real}, outside of the checkpoint; put the file itself there")


def _tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{directory} has no tokenizer.json; make one with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    try:
        tokenizer = open_tokenizer(directory)
    except ArtifactError as error:
        raise CheckpointError(str(error).replace("copy the artifact again or rebuild it", "download it again")) from None
    token, last = max(tokenizer.backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    if last >= vocab_size:
        raise ConfigError(f"{path} gives {token!r} the id {last}, but config.json has vocab_size {vocab_size}; one is another model's")
    return tokenizer


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        return parse_object(read_bounded(path))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _template(directory: Path, config: Mapping[str, object]) -> str | None:
    """The chat template: of its own file (transformers >= 4.43), else of tokenizer_config.json, where it may be a list of named ones."""
    path = directory / TEMPLATE
    if path.is_file():
        _check_link(path)
        try:
            return read_bounded(path).decode("utf-8").replace("\r\n", "\n")
        except ValueError as error:
            raise TemplateError(f"{path}: not UTF-8 or too large: {error}") from None
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default") or (next(iter(named.values())) if len(named) == 1 else found)
    if found is None or isinstance(found, str):
        return found
    raise TemplateError(f"{directory / 'tokenizer_config.json'}: chat_template is neither text nor a list with a 'default'; correct it")


def _compiled(source: str, directory: Path) -> ChatTemplate:
    """Compiled and tried on the plainest chat: a template that cannot render that is broken."""
    where = str(directory / (TEMPLATE if (directory / TEMPLATE).is_file() else "tokenizer_config.json"))
    try:
        chat = ChatTemplate(source, special_tokens(directory))
        chat.render([{"role": "user", "content": "hello"}], now=VECTOR_TIME)
    except TemplateError as error:
        raise TemplateError(f"{where}: {error}; correct it, or take it out to build a model for raw text") from None
    return chat


def _content(value: object) -> str | None:
    """The text of a special token, which tokenizer_config.json gives plain or as an object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _bos(config: Mapping[str, object], generation: Mapping[str, object], model: Mapping[str, object], tokenizer: Tokenizer) -> int | None:
    text = _content(config.get("bos_token"))
    if text is not None:
        return _id(tokenizer, text, "bos_token")
    ids = _ids(generation, "generation_config.json", "bos_token_id") or _ids(model, "config.json", "bos_token_id")
    return ids[0] if ids else None


def _adds_bos(config: Mapping[str, object], tokenizer: Tokenizer, bos: int | None) -> bool:
    """As the tokenizer's own post-processor does it, unless tokenizer_config.json says so explicitly."""
    explicit = config.get("add_bos_token")
    if bos is None or isinstance(explicit, bool):
        return bos is not None and explicit is True
    return bool(tokenizer.backend.encode("a", add_special_tokens=True).ids[:1] == [bos])


def _stop_ids(
    checkpoint: Checkpoint,
    generation: Mapping[str, object],
    config: Mapping[str, object],
    tokenizer: Tokenizer,
    chat: ChatTemplate | None,
) -> tuple[int, ...]:
    found = [*_ids(generation, "generation_config.json", "eos_token_id"), *_ids(checkpoint.config, "config.json", "eos_token_id")]
    text = _content(config.get("eos_token"))
    if text is not None:
        found.append(_id(tokenizer, text, "eos_token"))
    if chat is not None:
        found += _end_of_turn(chat, tokenizer)
    if not found:
        raise ConfigError(f"{checkpoint.directory}: nothing says which token ends an answer; set eos_token_id in generation_config.json")
    return tuple(dict.fromkeys(found))


def _end_of_turn(chat: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    """The special token right after an assistant message: generation_config.json often lacks it (llama.cpp#6903, optimum-intel#1804)."""
    said = "edgekit"
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": said}]
    try:
        _, _, after = chat.render(messages, add_generation_prompt=False, now=VECTOR_TIME).rpartition(said)
    except TemplateError:
        return []  # a template may refuse to end with an answer
    ids = tokenizer.encode(after.lstrip())
    added = tokenizer.backend.get_added_tokens_decoder()
    return [token for token in ids[:1] if token in added]


def _ids(config: Mapping[str, object], file: str, key: str) -> list[int]:
    value = config.get(key)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    ids = [item for item in listed if isinstance(item, int) and not isinstance(item, bool)]
    if len(ids) != len(listed):
        raise ConfigError(f"{file}: {key}: wanted an id or a list of ids, found {value!r}")
    return ids


def _id(tokenizer: Tokenizer, text: str, key: str) -> int:
    token: int | None = tokenizer.backend.token_to_id(text)
    if token is None:
        raise ConfigError(f"tokenizer_config.json: {key} {text!r} is no token of tokenizer.json")
    return token

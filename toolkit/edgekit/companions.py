"""What travels with the weights: tokenizer, chat template, the full stop set, licence and model card."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.artifact import TokenInfo
from edgekit.checkpoint import Checkpoint
from edgekit.confine import Confined, Here
from edgekit.errors import CheckpointError, ConfigError, TemplateError
from edgekit.files import shown
from edgekit.round_trip import check_round_trip
from edgekit.runtime.chat import VECTOR_TIME, ChatTemplate
from edgekit.runtime.templates import ChatTemplates
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.template_files import TEMPLATE, TOOL_TEMPLATE, Sources, check_link, read_sources
from edgekit.tokenizer_files import json_object, read_tokenizer

COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
LEGAL = ("license", "notice", "use_policy", "readme.md")


@dataclass(frozen=True)
class Companions:
    """tokenizer and chat are the runtime's own. template, tool_template: the Jinja sources, None for a model without.

    generation: the content of generation_config.json as the artifact gets it. files: contents that take the place of the checkpoint's own
    files, by name. left_out: added tokens that the embedding has no rows for.
    """

    tokenizer: Tokenizer
    tokens: TokenInfo
    template: str | None
    chat: ChatTemplates | None
    generation: Mapping[str, object]
    tool_template: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def read_companions(checkpoint: Checkpoint, vocab_size: int) -> Companions:
    """Reads and checks everything that is not weights, before the long job.

    Raises CheckpointError (no tokenizer.json), ConfigError (ids that do not fit the model), TemplateError (broken chat template).
    """
    directory = checkpoint.directory
    generation = json_object(directory / "generation_config.json")
    sources = read_sources(directory, json_object(directory / "tokenizer_config.json"))
    read = read_tokenizer(directory, vocab_size, sources.default)
    tokenizer = read.tokenizer
    check_round_trip(tokenizer, str(directory / "tokenizer.json"))
    chat = _compiled(sources, read.named, tokenizer.backend.process)
    bos = _bos(read.named, generation, checkpoint.config, tokenizer)
    ends = range(vocab_size, vocab_size + len(read.left_out))  # no row of lm_head stands for these, so none can be generated
    stop = [token for token in _stop_ids(checkpoint, generation, read.named, tokenizer, chat) if token not in ends]
    for token in [*stop, *([] if bos is None else [bos])]:
        if not 0 <= token < vocab_size:
            raise ConfigError(f"{directory}: token id {token} is outside the vocabulary of {vocab_size}; correct generation_config.json")
    if not stop:
        raise ConfigError(f"{directory}: nothing says which token ends an answer; set eos_token_id in generation_config.json")
    tokens = TokenInfo(vocab_size, bos, tuple(stop), _adds_bos(read.config, tokenizer, bos))
    full: dict[str, object] = {**generation, "eos_token_id": stop}
    if bos is not None:
        full["bos_token_id"] = bos
    pad = full.get("pad_token_id")
    if isinstance(pad, int) and pad >= vocab_size:
        del full["pad_token_id"]
    return Companions(tokenizer, tokens, sources.default, chat, full, sources.tools, read.contents, read.left_out)


def write_companions(companions: Companions, checkpoint: Checkpoint, directory: Path) -> None:
    """Copies what there is into ``directory`` and writes the templates, generation_config.json and what is not copied as it is."""
    for path in companion_files(checkpoint.directory):
        if path.name not in companions.files:
            shutil.copyfile(path, directory / path.name)
    contents = dict(companions.files)
    for name, source in ((TEMPLATE, companions.template), (TOOL_TEMPLATE, companions.tool_template)):
        if source is not None:
            contents[name] = source
    contents["generation_config.json"] = json.dumps(companions.generation, indent=2, ensure_ascii=False) + "\n"
    for name, text in contents.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8", newline="\n")


def companion_files(directory: Path) -> list[Path]:
    """The files of a checkpoint that are copied, unless they have to say it more plainly."""
    legal = [p for p in sorted(directory.iterdir()) if p.name.lower().startswith(LEGAL) and p.is_file()]
    files = [*(directory / name for name in COPIED if (directory / name).is_file()), *legal]
    for path in files:
        check_link(path, directory)
        if shown(path.name) != path.name:
            raise CheckpointError(f"{path}: its name is no UTF-8, so no manifest can list it; rename it, or remove it")
    return files


def companion_sizes(sizes: Mapping[str, int]) -> int:
    """Bytes of those files of a checkpoint, given by name and size, that are copied."""
    return sum(size for name, size in sizes.items() if name in (*COPIED, TEMPLATE, TOOL_TEMPLATE) or name.lower().startswith(LEGAL))


def _compiled(sources: Sources, named: Mapping[str, str], process: Confined | Here) -> ChatTemplates | None:
    """Compiled and tried on the plainest chat: a template that cannot render that is broken."""
    if sources.default is None:
        return None
    compiled = []
    for source, where in ((sources.default, sources.where), (sources.tools, sources.tools_where)):
        try:
            compiled.append(None if source is None else ChatTemplate(source, named, process))
            if len(compiled) == 1 and compiled[0] is not None:
                compiled[0].render([{"role": "user", "content": "hello"}], now=VECTOR_TIME)
        except TemplateError as error:
            raise TemplateError(f"{where}: {error}; correct it, or take it out to build a model for raw text") from None
    default, tools = compiled
    return None if default is None else ChatTemplates(default, tools)


def _bos(named: Mapping[str, str], generation: Mapping[str, object], model: Mapping[str, object], tokenizer: Tokenizer) -> int | None:
    if "bos_token" in named:
        return tokenizer.backend.token_to_id(named["bos_token"])
    ids = _ids(generation, "generation_config.json", "bos_token_id") or _ids(model, "config.json", "bos_token_id")
    return ids[0] if ids else None


def _adds_bos(config: Mapping[str, object], tokenizer: Tokenizer, bos: int | None) -> bool:
    """As the tokenizer's own post-processor does it, unless tokenizer_config.json says so explicitly."""
    explicit = config.get("add_bos_token")
    if bos is None or isinstance(explicit, bool):
        return bos is not None and explicit is True
    return bool(tokenizer.backend.encode("a", add_special_tokens=True)[:1] == [bos])


def _stop_ids(
    checkpoint: Checkpoint,
    generation: Mapping[str, object],
    named: Mapping[str, str],
    tokenizer: Tokenizer,
    chat: ChatTemplates | None,
) -> tuple[int, ...]:
    found = [*_ids(generation, "generation_config.json", "eos_token_id"), *_ids(checkpoint.config, "config.json", "eos_token_id")]
    if "eos_token" in named:
        found += [token for token in [tokenizer.backend.token_to_id(named["eos_token"])] if token is not None]
    if chat is not None:
        found += _end_of_turn(chat, tokenizer)
    return tuple(dict.fromkeys(found))


def _end_of_turn(chat: ChatTemplates, tokenizer: Tokenizer) -> list[int]:
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

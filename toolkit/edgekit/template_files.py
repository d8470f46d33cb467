"""Where a checkpoint keeps its chat templates: as transformers reads them, which has had four places for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.checkpoint import read_bounded
from edgekit.errors import CheckpointError, TemplateError
from edgekit.tokenizer_files import json_object

TEMPLATE = "chat_template.jinja"
FOLDER = "additional_chat_templates"
TOOL_TEMPLATE = f"{FOLDER}/tool_use.jinja"
PROCESSOR = ("chat_template.json", "processor_config.json")


@dataclass(frozen=True)
class Sources:
    """The texts of the templates that edgekit uses, None for one that is not there, and the file that each is from."""

    default: str | None
    tools: str | None
    where: Path
    tools_where: Path


def read_sources(directory: Path, config: Mapping[str, object]) -> Sources:
    """config: tokenizer_config.json. Files of their own take the place of all that is in it; a processor's file is the last to be asked.

    Raises TemplateError, and CheckpointError for links out of the checkpoint.
    """
    files = {"default": directory / TEMPLATE, **{path.stem: path for path in sorted((directory / FOLDER).glob("*.jinja"))}}
    files = {name: path for name, path in files.items() if path.is_file()}
    if files:
        wanted = {name: path for name, path in files.items() if name in ("default", "tool_use") or len(files) == 1}
        named = {name: _read(path, directory) for name, path in wanted.items()}
        where = files.get("default", directory / FOLDER)
        default = _default(named, where)
        return Sources(default, named.get("tool_use"), where, files.get("tool_use", where))
    for name in ("tokenizer_config.json", *PROCESSOR):
        path = directory / name
        found = config if name == "tokenizer_config.json" else json_object(path)
        if found.get("chat_template") is not None:
            named = _named(found["chat_template"], path)
            return Sources(_default(named, path), named.get("tool_use"), path, path)
    return Sources(None, None, directory / "tokenizer_config.json", directory / "tokenizer_config.json")


def check_link(path: Path, directory: Path) -> None:
    """An unpacked archive may hold a LICENSE that is a link to somebody's keys, which would then be copied and published. The hub's own
    cache links to the ``blobs`` beside its snapshots. Raises CheckpointError."""
    real, home = path.resolve(), directory.resolve()
    if home not in real.parents and real.parent != home.parent.parent / "blobs":
        raise CheckpointError(f"{path} is a link to {real}, outside of the checkpoint; put the file itself there")


def _read(path: Path, directory: Path) -> str:
    check_link(path, directory)
    try:
        return read_bounded(path).decode("utf-8").replace("\r\n", "\n")
    except ValueError as error:
        raise TemplateError(f"{path}: not UTF-8 or too large: {error}") from None


def _named(found: object, path: Path) -> dict[str, str]:
    """Templates by their names, of whichever form."""
    if isinstance(found, str):
        return {"default": found}
    listed = [(item.get("name"), item.get("template")) for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []
    pairs = list(found.items()) if isinstance(found, Mapping) else listed
    named = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    if not named or len(named) != len(pairs) or (isinstance(found, Mapping) and "default" not in named):
        raise TemplateError(f"{path}: chat_template is neither text nor a list of named texts; correct it")
    return named


def _default(named: Mapping[str, str], where: Path) -> str:
    if "default" in named:
        return named["default"]
    if len(named) == 1 and "tool_use" not in named:
        return next(iter(named.values()))
    raise TemplateError(f"{where}: none of the chat templates {', '.join(sorted(named)) or 'there'} is named 'default'; name one so")

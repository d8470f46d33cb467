"""Chat templates: from messages to the text of a prompt, by Jinja2 in a process that may take little time and memory (confine.py)."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from edgekit.artifact import ChatVector
from edgekit.confine import Confined, Cost, Here, Overrun
from edgekit.errors import ArtifactError, TemplateError, UsageError

Messages = Sequence[Mapping[str, object]]
"""``[{"role": "user", "content": "..."}, ...]``; other keys (``tool_calls``) reach the template as they are."""

Tools = Sequence[Mapping[str, object]]
"""JSON schemas of functions, as OpenAI has them."""

COST = Cost(seconds=4, memory=256 << 20)
"""Of compiling a template, of rendering it once, and of all the vectors of a manifest. What is known takes some 0.02 s and 5 MB."""
TEXT, ITEMS, DEPTH = 10_000_000, 100_000, 72
"""Characters, values and depth of what is given to one rendering."""
JSON_LIMIT = 64 << 20
"""Characters of tokenizer_config.json."""
SOURCE_LIMIT = 1 << 17
"""Characters of a template; the longest known have some 30,000."""
VECTOR_TIME = datetime(2024, 7, 26)
"""What a template that asks for the date is told in the manifest's conformance vectors (docs/artifact.md)."""
WORK = "edgekit.text_work:Texts"


class ChatTemplate:
    """A compiled template. ``special``: texts of the special tokens by their name in tokenizer_config.json, as ``bos_token``.

    process: where it is rendered; None is one of its own. Raises TemplateError naming the line when the source is no valid template.
    """

    def __init__(self, source: str, special: Mapping[str, str], process: Confined | Here | None = None) -> None:
        if len(source) > SOURCE_LIMIT:
            raise TemplateError(f"the chat template has {len(source):,} characters; at most {SOURCE_LIMIT:,} are read")
        self._process = Confined(WORK) if process is None else process
        try:
            self._number, _ = self._process.open(COST, "compile", source, dict(special))
        except Overrun as error:
            raise TemplateError(f"the chat template is out of bounds when it is compiled: {error}; take the model's own") from None

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        now: datetime | None = None,
    ) -> str:
        """The prompt for ``messages``, ready to be tokenized without adding special tokens.

        add_generation_prompt: end with what introduces the assistant's answer. tools: JSON schemas for templates that know tools.
        now: what a template that asks for the time is told; None is the clock.
        Raises TemplateError (with the line): the template refuses the messages, fails, reaches for what it may not have, or takes more
        than COST. UsageError: a message holds something other than text, numbers, lists and mappings, or far too much.
        """
        variables = _variables(messages, tools, add_generation_prompt)
        return str(self._ask("render", variables, _plain_time(now or datetime.now())))

    def render_all(self, chats: Sequence[Messages], now: datetime, tools: Sequence[Tools] | None = None) -> list[str]:
        """Several chats, each with its tools, all for the COST of one."""
        each: Sequence[Tools | None] = [None] * len(chats) if tools is None else tools
        given = [_variables(chat, known, True) for chat, known in zip(chats, each, strict=True)]
        return list(self._ask("render_all", given, _plain_time(now)))

    def _ask(self, request: str, *arguments: object) -> "str | list[str]":
        try:
            answer: str | list[str] = self._process.ask(COST, request, self._number, *arguments)
        except Overrun as error:
            raise TemplateError(f"the chat template is out of bounds: {error}; shorten the messages or mend it") from None
        return answer


def _variables(messages: Messages, tools: Sequence[Mapping[str, object]] | None, add_generation_prompt: bool) -> dict[str, object]:
    plain = _Plain()
    return {
        "messages": plain.copy(messages, "messages"),
        "tools": plain.copy(tools, "tools"),
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }


def _plain_time(time: datetime) -> tuple[int, ...]:
    return (*time.timetuple()[:6], time.microsecond)


def open_template(directory: Path, name: str, process: Confined | Here | None = None) -> ChatTemplate:
    """The template ``name`` of an artifact with the special tokens of its tokenizer_config.json. Raises TemplateError, ArtifactError."""
    try:
        with (directory / name).open(encoding="utf-8") as file:
            source = file.read(SOURCE_LIMIT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{directory / name} cannot be read: {error}; copy the whole artifact again or rebuild it") from None
    return ChatTemplate(source, special_tokens(directory), process)


def special_tokens(directory: Path) -> dict[str, str]:
    """``bos_token`` and the like from tokenizer_config.json, and from special_tokens_map.json what older models have only there."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            with path.open(encoding="utf-8") as file:
                data = json.loads(file.read(JSON_LIMIT))
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is no valid JSON: {error}; copy the artifact again or rebuild it") from None
        for key, value in data.items() if isinstance(data, dict) else ():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


class Renderer(Protocol):
    """One template, or several of which it takes the right one."""

    def render_all(self, chats: Sequence[Messages], now: datetime) -> list[str]: ...


def check_template(template: Renderer, vectors: Sequence[ChatVector]) -> None:
    """Renders the manifest's chats. Raises ArtifactError naming the first that comes out differently."""
    chats = [[{"role": m.role, "content": m.content} for m in vector.messages] for vector in vectors]
    for vector, rendered in zip(vectors, template.render_all(chats, VECTOR_TIME), strict=True):
        if rendered != vector.rendered:
            raise ArtifactError(
                f"the chat template renders {rendered!r}, the manifest says {vector.rendered!r}: jinja2 "
                f"{importlib.metadata.version('jinja2')} or tokenizer_config.json is not what it was built with; copy the artifact again "
                "or rebuild it"
            )


class _Plain:
    """Copies plain data, of which there may be only so much. The sandbox does not know which methods of other objects are dangerous, so
    none gets in."""

    def __init__(self) -> None:
        self._text, self._items = TEXT, ITEMS

    def copy(self, value: object, where: str, depth: int = 0) -> object:
        """Raises UsageError."""
        self._items -= 1
        if isinstance(value, str):
            self._text -= len(value)
        if self._items < 0 or self._text < 0 or depth > DEPTH:
            raise UsageError(
                f"{where.partition('[')[0]}: at most {TEXT:,} characters in {ITEMS:,} values are taken, lists and mappings {DEPTH} deep"
            )
        if value is None or type(value) in (str, int, float, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, Mapping):
            return {self._key(key, where): self.copy(item, f"{where}.{key}"[:200], depth + 1) for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
            return [self.copy(item, f"{where}[{i}]"[:200], depth + 1) for i, item in enumerate(value)]
        raise UsageError(f"{where}: a message holds text, numbers, lists and mappings, not {type(value).__name__}")

    def _key(self, key: object, where: str) -> object:
        if isinstance(key, (Mapping, Sequence)) and not isinstance(key, str):
            raise UsageError(f"{where}: a key is a text, not {type(key).__name__}")
        return self.copy(key, where)

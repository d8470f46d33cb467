"""Chat templates: Jinja2 in its immutable sandbox, with what Hugging Face transformers gives templates and nothing more."""

import json
import re
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError

from edgekit.artifact import ChatVector
from edgekit.errors import ArtifactError, TemplateError, UsageError
from edgekit.runtime.bounded import Bounded, Meter, Overrun

Messages = Sequence[Mapping[str, object]]
"""``[{"role": "user", "content": "..."}, ...]``; other keys (``tool_calls``) reach the template as they are."""

OUTPUT_LIMIT = 10_000_000
"""Characters a template may write."""
JSON_LIMIT = 64 << 20
"""Characters of tokenizer_config.json."""
SOURCE_LIMIT = 1 << 17
"""Characters of a template; the longest known have some 30,000."""
VECTOR_TIME = datetime(2024, 7, 26)
"""What a template that asks for the date is told in the manifest's conformance vectors (docs/artifact.md)."""


class ChatTemplate:
    """A compiled template. ``special``: texts of the special tokens by their name in tokenizer_config.json, as ``bos_token``.

    Raises TemplateError naming the line when the source is no valid template.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        self._special = dict(special)
        if len(source) > SOURCE_LIMIT:
            raise TemplateError(f"the chat template has {len(source):,} characters; at most {SOURCE_LIMIT:,} are read")
        self._environment = _environment()
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the chat template is broken in line {error.lineno}: {error.message}") from None
        except Exception as error:  # compiling unfolds constants, so anything a template computes may already go wrong here
            raise TemplateError(f"the chat template cannot be compiled: {type(error).__name__}: {_short(error)}") from None

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
        Raises TemplateError (with the line): the template refuses the messages, fails, reaches for what it may not have, or writes more
        than OUTPUT_LIMIT. UsageError: a message holds something other than text, numbers, lists and mappings.
        """
        variables: dict[str, object] = {
            **self._special,
            "messages": _plain(messages, "messages"),
            "tools": _plain(tools, "tools"),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": lambda form: (now or datetime.now()).strftime(_brief(form)),
        }
        self._environment.meter = Meter()
        try:
            return _collect(self._template, variables)
        except TemplateError:
            raise
        except Refusal as error:
            raise TemplateError(f"the chat template refuses these messages: {_short(error)}{_line(error)}") from None
        except Overrun as error:
            raise TemplateError(
                f"the chat template is out of bounds: {_short(error)}{_line(error)}; shorten the messages or mend it"
            ) from None
        except SecurityError as error:
            raise TemplateError(f"the chat template reached for something it may not have: {_short(error)}{_line(error)}") from None
        except Exception as error:  # a template can raise whatever its expressions raise
            raise TemplateError(f"the chat template failed: {type(error).__name__}: {_short(error)}{_line(error)}") from None


class Refusal(jinja2.TemplateError):
    """What ``raise_exception`` in a template raises."""


def open_template(directory: Path, name: str) -> ChatTemplate:
    """The template ``name`` of an artifact with the special tokens of its tokenizer_config.json. Raises TemplateError, ArtifactError."""
    try:
        with (directory / name).open(encoding="utf-8") as file:
            source = file.read(SOURCE_LIMIT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{directory / name} cannot be read: {error}; copy the whole artifact again or rebuild it") from None
    return ChatTemplate(source, special_tokens(directory))


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

    def render(self, messages: Messages, *, now: datetime | None = None) -> str: ...


def check_template(template: Renderer, vectors: Sequence[ChatVector]) -> None:
    """Renders the manifest's chats. Raises ArtifactError naming the first that comes out differently."""
    for vector in vectors:
        rendered = template.render([{"role": m.role, "content": m.content} for m in vector.messages], now=VECTOR_TIME)
        if rendered != vector.rendered:
            raise ArtifactError(
                f"the chat template renders {rendered!r}, the manifest says {vector.rendered!r}: jinja2 {jinja2.__version__} or "
                "tokenizer_config.json is not what it was built with; copy the artifact again or rebuild it"
            )


class _Generation(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's words for training; here it means its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own way)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """As transformers has it: no underscore names, which reach into CPython."""

    def __repr__(self) -> str:
        """Never its content: namespaces can hold each other, many times over."""
        return "<namespace>"

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **values: Any) -> _Namespace:
    made = _Namespace()
    for name, value in dict(*args, **values).items():
        made[name] = value
    return made


def _environment() -> Bounded:
    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.add_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _refuse
    environment.globals["namespace"] = _namespace
    # Both are random: a prompt has to be the same each time.
    del environment.globals["lipsum"], environment.filters["random"]
    return environment


def _brief(form: object) -> str:
    """A format of a date; some libraries of C take widths in it."""
    if not isinstance(form, str) or len(form) > 200 or re.search(r"\d{3}", form):
        raise SecurityError("strftime_now takes a short format without widths")
    return form


def _refuse(message: object) -> str:
    raise Refusal(str(message))


def _tojson(
    value: object, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """As transformers has it; Jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _collect(template: jinja2.Template, variables: Mapping[str, object]) -> str:
    parts: list[str] = []
    length = 0
    for part in template.generate(variables):
        length += len(part)
        if length > OUTPUT_LIMIT:
            raise TemplateError(f"the chat template wrote more than {OUTPUT_LIMIT:,} characters; shorten the messages or mend the template")
        parts.append(part)
    return "".join(parts)


def _plain(value: object, where: str) -> object:
    """A copy of plain data. The sandbox does not know which methods of other objects are dangerous, so none gets in."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, str):
        return str.__str__(value)
    raise UsageError(f"{where}: a message holds text, numbers, lists and mappings, not {type(value).__name__}")


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= 2000 else f"{text[:2000]}..."


def _line(error: Exception) -> str:
    """`` (line 3)``: Jinja names a template's frames ``<template>`` and gives them its own line numbers."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f" (line {lines[-1]})" if lines else ""

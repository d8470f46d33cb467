"""Chat templates: Jinja2 in its immutable sandbox, with what Hugging Face transformers gives templates and nothing more.

How long they take and how much they make is limited from outside (confine.py).
"""

import json
import traceback
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
from jinja2.exceptions import SecurityError

from edgekit.errors import TemplateError


class Refusal(jinja2.TemplateError):
    """What ``raise_exception`` in a template raises."""


def compiled(source: str) -> jinja2.Template:
    """Raises TemplateError naming the line when the source is no valid template."""
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is broken in line {error.lineno}: {_short(error)}") from None
    except Exception as error:  # compiling unfolds constants, so anything a template computes may already go wrong here
        raise TemplateError(f"the chat template cannot be compiled: {type(error).__name__}: {_short(error)}") from None


def rendered(template: jinja2.Template, variables: Mapping[str, object], most: int) -> str:
    """At most ``most`` characters. Raises TemplateError with the line: the template refuses the messages, fails, writes more, or reaches
    for what it may not have."""
    try:
        return _collect(template, variables, most)
    except TemplateError:
        raise
    except Refusal as error:
        raise TemplateError(f"the chat template refuses these messages: {_short(error)}{_line(error)}") from None
    except SecurityError as error:
        raise TemplateError(f"the chat template reached for something it may not have: {_short(error)}{_line(error)}") from None
    except MemoryError:
        raise
    except Exception as error:  # a template can raise whatever its expressions raise
        raise TemplateError(f"the chat template failed: {type(error).__name__}: {_short(error)}{_line(error)}") from None


class _Generation(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's words for training; here it means its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own way)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """As transformers has it: no underscore names, which reach into CPython."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **values: Any) -> _Namespace:
    made = _Namespace()
    for name, value in dict(*args, **values).items():
        made[name] = value
    return made


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    extensions = [_Generation, jinja2.ext.loopcontrols]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["namespace"] = _namespace
    # Both are random: a prompt has to be the same each time.
    del environment.globals["lipsum"], environment.filters["random"]
    return environment


def _refuse(message: object) -> str:
    raise Refusal(str(message))


def _tojson(
    value: object, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """As transformers has it; Jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _collect(template: jinja2.Template, variables: Mapping[str, object], most: int) -> str:
    parts: list[str] = []
    length = 0
    for part in template.generate(variables):
        length += len(part)
        if length > most:
            raise TemplateError(f"the chat template wrote more than {most:,} characters; shorten the messages or mend the template")
        parts.append(part)
    return "".join(parts)


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= 2000 else f"{text[:2000]}..."


def _line(error: Exception) -> str:
    """`` (line 3)``: Jinja names a template's frames ``<template>`` and gives them its own line numbers."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f" (line {lines[-1]})" if lines else ""

"""How model families write tool calls, and the schema that such a call has to be valid under.

A call is read by leading it: the answer runs freely up to the family's opening mark, and from there on is held, by the constraint of
runtime/constrain.py, to JSON that names one of the tools and gives it arguments valid under its schema. So there is nothing to guess at.
"""

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.server.messages import template_tools
from edgekit.server.problems import refuse
from edgekit.server.requests import Tool

ID_LENGTH = 9
"""Mistral's templates take ids of exactly nine letters and digits; the others take any."""


@dataclass(frozen=True)
class ToolSyntax:
    """mark:      in the source of a template of this family.
    opening:   what a call begins with: a text, or a special token.
    quoted:    whether ``opening`` is part of the call's JSON already.
    between, closing: what stands before and after the JSON.
    several:   whether the JSON is a list of calls; otherwise each has an opening of its own.
    arguments: the key of the arguments.
    in_system: whether the template takes the tools as JSON text in a system message rather than in ``tools``.
    """

    name: str
    mark: str
    opening: str
    between: str = ""
    closing: str = ""
    quoted: bool = False
    several: bool = False
    arguments: str = "arguments"
    in_system: bool = False


SYNTAXES = (
    ToolSyntax("hermes", "<tool_call>", "<tool_call>", between="\n", closing="\n</tool_call>"),  # Qwen2.5 too
    ToolSyntax("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", between=" ", several=True),
    ToolSyntax("phi4", "<|tool|>", "<|tool_call|>", closing="<|/tool_call|>", several=True, in_system=True),
    ToolSyntax("llama3", '"parameters": ', '{"name"', quoted=True, arguments="parameters"),
)


@dataclass(frozen=True)
class Call:
    """id: made up here. arguments: text of a JSON object, as OpenAI has it."""

    id: str
    name: str
    arguments: str


def tool_syntax(template: str) -> ToolSyntax | None:
    """That of the family the chat template (its source) is of; None: it takes none, or writes calls in a way not known."""
    return next((syntax for syntax in SYNTAXES if syntax.mark in template), None) if "tools" in template else None


def call_schema(syntax: ToolSyntax, tools: Sequence[Tool], *, single: bool) -> dict[str, object]:
    """JSON schema of what follows the opening: a call of one of ``tools``, or a list of some; of one if ``single``."""
    place = "#/items/anyOf" if syntax.several else "#/anyOf"
    choices = [_one(syntax, tool, f"{place}/{i}/properties/{syntax.arguments}") for i, tool in enumerate(tools)]
    if not syntax.several:
        return {"anyOf": choices}
    return {"type": "array", "items": {"anyOf": choices}, "minItems": 1, **({"maxItems": 1} if single else {})}


def read_calls(syntax: ToolSyntax, text: str) -> list[Call]:
    """The calls in a text that is valid under ``call_schema``."""
    data = json.loads(text)
    alphabet = string.ascii_letters + string.digits
    return [
        Call(
            id="".join(secrets.choice(alphabet) for _ in range(ID_LENGTH)),
            name=call["name"],
            arguments=json.dumps(call[syntax.arguments], ensure_ascii=False),
        )
        for call in (data if syntax.several else [data])
    ]


def with_tools(syntax: ToolSyntax, messages: list[dict[str, object]], tools: Sequence[Tool]) -> list[dict[str, object]]:
    """``messages`` with the tools in a system message, for templates that take them there (the list itself for others)."""
    if not syntax.in_system:
        return messages
    listed = json.dumps([tool["function"] for tool in template_tools(tools)], ensure_ascii=False)
    if messages[0]["role"] == "system":
        return [{**messages[0], "tools": listed}, *messages[1:]]
    return [{"role": "system", "content": "", "tools": listed}, *messages]


def _one(syntax: ToolSyntax, tool: Tool, place: str) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, syntax.arguments: _arguments(tool, place)},
        "required": ["name", syntax.arguments],
        "additionalProperties": False,
    }


def _arguments(tool: Tool, place: str) -> object:
    """Always an object, whether the tool's schema says so or not; an empty one for a tool without parameters. Raises Refused."""
    schema = tool.function.parameters
    if not schema:
        return {"type": "object", "additionalProperties": False}
    kinds = schema.get("type", "object")
    if kinds == "object":
        return _moved(schema, place) if "type" in schema else {"allOf": [_moved(schema, f"{place}/allOf/0"), {"type": "object"}]}
    if not isinstance(kinds, (list, tuple)) or "object" not in kinds:
        problem = f"arguments are an object, and the parameters of {tool.function.name!r} are of type {str(kinds)[:80]!r}"
        raise refuse(f"tools: {problem}", param="tools")
    return _moved({**schema, "type": "object"}, place)


def _moved(schema: object, place: str) -> object:
    """``schema`` as part of another: its references to itself lead to ``place``."""
    if isinstance(schema, Mapping):
        return {
            key: place + item[1:] if key == "$ref" and isinstance(item, str) and item.startswith("#") else _moved(item, place)
            for key, item in schema.items()
        }
    return [_moved(item, place) for item in schema] if isinstance(schema, (list, tuple)) else schema

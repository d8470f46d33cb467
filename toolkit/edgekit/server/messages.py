"""A conversation as chat templates take it: what Hugging Face's transformers gives them, from what OpenAI's clients send."""

import json
from collections.abc import Mapping, Sequence

from edgekit.server.problems import refuse
from edgekit.server.requests import Called, Said, Tool


def template_messages(said: Sequence[Said]) -> list[dict[str, object]]:
    """``content`` is text, also where there is none; arguments of tool calls are objects, not text. Raises Refused."""
    return [_message(message, f"messages[{i}]") for i, message in enumerate(said)]


def template_tools(tools: Sequence[Tool]) -> list[dict[str, object]]:
    """Tools as they came, without what was left out: templates write them into the prompt."""
    made: list[dict[str, object]] = []
    for tool in tools:
        function: dict[str, object] = {"name": tool.function.name}
        if tool.function.description is not None:
            function["description"] = tool.function.description
        function["parameters"] = parameters(tool)
        made.append({"type": "function", "function": function})
    return made


def parameters(tool: Tool) -> Mapping[str, object]:
    """The schema of a tool's arguments; one without parameters takes an empty object."""
    return {"type": "object", "properties": {}} if tool.function.parameters is None else tool.function.parameters


def _message(said: Said, where: str) -> dict[str, object]:
    if said.tool_calls is not None and said.role != "assistant":
        raise refuse(f"{where}: only the assistant calls tools", param=where)
    if said.content is None and not said.tool_calls:
        raise refuse(f"{where}.content: wanted a text or its parts", param=where)
    if said.role == "tool" and said.tool_call_id is None:
        raise refuse(f"{where}: a tool's result needs the tool_call_id that it answers", param=where)
    content = said.content if isinstance(said.content, str) else "".join(part.text for part in said.content or ())
    made: dict[str, object] = {"role": "system" if said.role == "developer" else said.role, "content": content}
    if said.name is not None:
        made["name"] = said.name
    if said.tool_call_id is not None:
        made["tool_call_id"] = said.tool_call_id
    if said.tool_calls:
        made["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(said.tool_calls)]
    return made


def _call(call: Called, where: str) -> dict[str, object]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise refuse(f"{where}.function.arguments: wanted the text of a JSON object", param=where)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}

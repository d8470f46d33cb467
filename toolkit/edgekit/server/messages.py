"""A conversation as chat templates take it: what Hugging Face's transformers gives them, from what OpenAI's clients send."""

from collections.abc import Mapping, Sequence

from edgekit.server.problems import refuse
from edgekit.server.requests import Called, Part, Said, Tool, strict_json


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
    """The schema of a tool's arguments as the model is told of it; one without parameters takes an empty object."""
    return tool.function.parameters or {"type": "object", "properties": {}}


def _message(said: Said, where: str) -> dict[str, object]:
    if said.tool_calls is not None and said.role != "assistant":
        raise refuse(f"{where}: only the assistant calls tools", param=where)
    if said.refusal is not None and said.role != "assistant":
        raise refuse(f"{where}: only the assistant refuses", param=where)
    if said.content is None and not said.tool_calls and said.refusal is None:
        raise refuse(f"{where}.content: wanted a text or its parts", param=where)
    if said.role == "tool" and said.tool_call_id is None:
        raise refuse(f"{where}: a tool's result needs the tool_call_id that it answers", param=where)
    given = said.refusal if said.content is None else said.content
    content = given if isinstance(given, str) else "".join(_text(part, said, where) for part in given or ())
    made: dict[str, object] = {"role": "system" if said.role == "developer" else said.role, "content": content}
    if said.name is not None:
        made["name"] = said.name
    if said.tool_call_id is not None:
        made["tool_call_id"] = said.tool_call_id
    if said.tool_calls:
        made["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(said.tool_calls)]
    return made


def _text(part: Part, said: Said, where: str) -> str:
    """What the part says: a refusal is what the assistant said, as any text."""
    text, other = (part.text, part.refusal) if part.type == "text" else (part.refusal, part.text)
    if text is None or other is not None or (part.type == "refusal" and said.role != "assistant"):
        raise refuse(f"{where}.content: a part of type {part.type} is not one of the {said.role}'s, or has no {part.type}", param=where)
    return text


def _call(call: Called, where: str) -> dict[str, object]:
    text = call.function.arguments
    arguments = strict_json(text, f"{where}.function.arguments", param=where) if text else {}
    if not isinstance(arguments, dict):
        raise refuse(f"{where}.function.arguments: wanted the text of a JSON object", param=where)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}

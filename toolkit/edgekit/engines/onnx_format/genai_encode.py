"""Texts and chats through onnxruntime-genai's own tokenizer and templates, in a process where it may crash and its telemetry is off."""

import importlib
from typing import Any

from edgekit import child
from edgekit.errors import EngineError


def main() -> None:
    """The process that ``genai_tokenizer.compared`` asks."""
    child.serve(_encode)


def _encode(request: child.Json) -> child.Json:
    genai = importlib.import_module("onnxruntime_genai")
    if hasattr(genai, "disable_telemetry_events"):
        genai.disable_telemetry_events()
    template, texts, messages = (request[name] for name in ("template", "texts", "messages"))
    try:
        tokenizer = genai.Tokenizer(str(request["directory"]))
        ids = [[int(token) for token in tokenizer.encode(text)] for text in (texts if isinstance(texts, list) else [])]
    except Exception as error:  # the library raises nothing narrower
        raise EngineError(str(error)) from None
    return {"ids": ids, "rendered": [_rendered(tokenizer, template, said) for said in (messages if isinstance(messages, list) else [])]}


def _rendered(tokenizer: Any, template: object, messages: str) -> str:
    """The chat's text, or what the template engine says of it."""
    try:
        return str(tokenizer.apply_chat_template(messages, template_str=template, add_generation_prompt=True))
    except Exception as error:
        return f"an error: {error}"

"""Texts through onnxruntime-genai's own tokenizer, in a process where it may crash; its telemetry is switched off there."""

import importlib

from edgekit import child
from edgekit.errors import EngineError


def main() -> None:
    """The process that ``genai_tokenizer.compared`` asks."""
    child.serve(_encode)


def _encode(request: child.Json) -> child.Json:
    genai = importlib.import_module("onnxruntime_genai")
    if hasattr(genai, "disable_telemetry_events"):
        genai.disable_telemetry_events()
    try:
        tokenizer = genai.Tokenizer(str(request["directory"]))
        texts = request["texts"]
        return {"ids": [[int(token) for token in tokenizer.encode(text)] for text in (texts if isinstance(texts, list) else [])]}
    except Exception as error:  # the library raises nothing narrower
        raise EngineError(str(error)) from None

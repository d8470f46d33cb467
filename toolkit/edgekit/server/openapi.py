"""The OpenAPI document of what this server takes: read off the records that requests are parsed into, so that both say the same."""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union

from edgekit import __version__
from edgekit.server import requests
from edgekit.server.bodies import Document
from edgekit.server.requests import SEEDS, ChatRequest, TextRequest
from edgekit.server.settings import Limits

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
ECHOED = ("refusal", "audio", "function_call", "annotations", "reasoning", "reasoning_content", "parsed")
"""Of an answer's fields, those that clients send back with it."""
PROBLEMS = {
    400: "What was asked for cannot be meant, or does not fit.",
    401: "The API key is missing or wrong.",
    403: "Addressed by an unknown name, or sent by a page of another site.",
    404: "There is no such model.",
    408: "It took longer than this server allows.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "The queue is full; Retry-After says when to come back.",
}
ERROR: Document = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ANSWER: Document = {
    "type": "object",
    "required": ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"enum": ["chat.completion", "text_completion"]},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "system_fingerprint": {"type": "string"},
        "choices": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["index", "finish_reason", "logprobs"],
                "properties": {
                    "index": {"type": "integer"},
                    "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
                    "logprobs": {"type": ["object", "null"]},
                    "message": {"type": "object"},
                    "text": {"type": "string"},
                },
            },
        },
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
            "properties": {key: {"type": "integer"} for key in ("prompt_tokens", "completion_tokens", "total_tokens")},
        },
    },
}


def document(model: str, limits: Limits, context: int, *, key: bool) -> Document:
    """context: of the artifact. key: whether one has to be sent."""
    bounds = _bounds(limits, context)
    chat, text = (_record(kind, bounds) | {"additionalProperties": False} for kind in (ChatRequest, TextRequest))
    for schema in (chat, text):
        properties = typing.cast(dict[str, object], schema["properties"])
        properties["model"] = {"const": model}
    typing.cast(dict[str, object], chat["properties"])["messages"] = {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.messages,
        "items": {"anyOf": _messages(bounds)},
    }
    chat["required"], text["required"] = ["model", "messages"], ["model", "prompt"]
    made: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "edge serve",
            "version": __version__,
            "description": "One model, as OpenAI's clients ask for it. See docs/serve.md.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _operation("Answers a conversation.", chat)},
            "/v1/completions": {"post": _operation("Continues a text.", text)},
            "/v1/models": {"get": _reading("The model.", "application/json", key=key)},
            "/v1/models/{name}": {
                "get": _reading("The model.", "application/json", key=key)
                | {"parameters": [{"name": "name", "in": "path", "required": True, "schema": {"enum": [model]}}]}
            },
            "/health": {"get": _reading("That the server is up.", "application/json", key=False)},
            "/metrics": {"get": _reading("Figures for Prometheus.", "text/plain", key=key)},
            "/openapi.json": {"get": _reading("This document.", "application/json", key=False)},
            "/": {"get": _reading("A page to chat.", "text/html", key=False)},
        },
        "components": {"schemas": {"Problem": ERROR, "Answer": ANSWER}},
    }
    if key:
        made["components"] = {
            "schemas": {"Problem": ERROR, "Answer": ANSWER},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        }
        made["security"] = [{"key": []}]
    return made


def _messages(bounds: Mapping[str, Document]) -> list[Document]:
    """Messages by who says them: what each has to have, its type alone does not say."""
    said = typing.cast(dict[str, object], _record(requests.Said, bounds)["properties"])
    parts = {kind: _part(kind) for kind in ("text", "refusal")}
    kinds: list[Document] = []
    for roles, keys in (
        (["system", "developer", "user"], ()),
        (["assistant"], ECHOED),
        (["assistant"], ("tool_calls", *ECHOED)),
        (["tool"], ("tool_call_id",)),
    ):
        own = {
            "tool_calls": {"type": "array", "minItems": 1, "items": _record(requests.Called, bounds)},
            "tool_call_id": {"type": "string"},
        }
        taken = list(parts.values()) if roles == ["assistant"] else [parts["text"]]
        content: Document = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": taken}}]}
        properties = {"role": {"enum": roles}, "content": content, "name": said["name"], **{key: own.get(key, said[key]) for key in keys}}
        if roles == ["assistant"]:
            properties.setdefault("tool_calls", {"type": "null"})
        if "tool_calls" in keys:
            properties["content"] = {"anyOf": [content, {"type": "null"}]}
        needed = [key for key in keys if key in own]
        required = ["role", *needed] if "tool_calls" in keys else ["role", "content", *needed]
        kinds.append({"type": "object", "properties": properties, "required": required, "additionalProperties": False})
    return kinds


def _part(kind: str) -> Document:
    properties = {"type": {"const": kind}, kind: {"type": "string"}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _operation(summary: str, schema: Document) -> Document:
    good: Document = {
        "description": "The answer; with `stream`, events of chunks of it.",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Answer"}},
            "text/event-stream": {},
        },
    }
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": good, **{str(status): _problem(text) for status, text in PROBLEMS.items()}},
    }


def _reading(summary: str, kind: str, *, key: bool) -> Document:
    responses = {"200": {"description": summary, "content": {kind: {}}}}
    statuses = [403, 404, *([401] if key else [])]
    return {
        "summary": summary,
        "responses": {**responses, **{str(status): _problem(PROBLEMS[status]) for status in statuses}},
        **({} if key else {"security": []}),
    }


def _problem(text: str) -> Document:
    return {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def _bounds(limits: Limits, context: int) -> Mapping[str, Document]:
    """What a number, text or list of a name may be, where its type alone does not say. Some things only words could say: docs/serve.md."""
    tokens: Document = {"minimum": 1, "maximum": context if limits.tokens is None else limits.tokens}
    return {
        "n": {"minimum": 1, "maximum": limits.choices},
        "max_tokens": tokens,
        "max_completion_tokens": tokens,
        "temperature": {"minimum": 0, "maximum": 2},
        "top_p": {"exclusiveMinimum": 0, "maximum": 1},
        "min_p": {"minimum": 0, "maximum": 1},
        "top_k": {"minimum": 0, "maximum": requests.TOP_K},
        "repetition_penalty": {"minimum": 0.01, "maximum": 100},
        "presence_penalty": {"minimum": -2, "maximum": 2},
        "frequency_penalty": {"minimum": -2, "maximum": 2},
        "seed": {"minimum": -SEEDS, "maximum": SEEDS - 1},
        "top_logprobs": {"minimum": 0, "maximum": requests.TOP_CHAT},
        "logprobs": {"minimum": 0, "maximum": requests.TOP_TEXT},
        "stop": {"minLength": 1, "maxLength": requests.STOP_LENGTH, "maxItems": requests.STOPS},
        "messages": {"minItems": 1, "maxItems": limits.messages},
        "tools": {"maxItems": requests.TOOLS},
        "logit_bias": {"propertyNames": {"pattern": "^[0-9]{1,9}$"}},
        "prompt": {"minLength": 1, "minItems": 1},
    }


_KEYWORDS = {
    "integer": ("minimum", "maximum", "exclusiveMinimum"),
    "number": ("minimum", "maximum", "exclusiveMinimum"),
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("propertyNames",),
}


def _record(kind: Any, bounds: Mapping[str, Document]) -> Document:
    hints = typing.get_type_hints(kind)
    known = fields(kind)
    required = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    properties = {f.name: _schema(hints[f.name], bounds.get(f.name, {}), bounds) for f in known}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(hint: Any, bound: Document, bounds: Mapping[str, Document]) -> Document:
    """The types that ``records.parse`` knows."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return _record(hint, bounds)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(arm, bound, bounds) for arm in args]}
    made: Document = {}
    if origin is tuple:
        inner = {key: value for key, value in bound.items() if key in _KEYWORDS["string"]}
        made = {"type": "array", "items": _schema(args[0], inner, bounds)}
    elif origin is Mapping:
        made = {"type": "object", "additionalProperties": _schema(args[1], {}, bounds)}
    elif hint in _TYPES:
        made = {"type": _TYPES[hint]}
    return made | {key: value for key, value in bound.items() if key in _KEYWORDS.get(str(made.get("type")), ())}

"""Parts of answers as OpenAI's documents: whole, or as chunks of a stream."""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgekit.server.answering import Part, TokenLog, Usage
from edgekit.server.tools import Call

Document = dict[str, object]


class Shape(Protocol):
    """How one request is answered."""

    def chunk(self, part: Part) -> Document | None:
        """An event of the stream; None for a part that says nothing."""

    def last(self, usage: Usage) -> Document:
        """The event that tells the usage."""

    def whole(self, parts: Sequence[Part], usage: Usage) -> Document:
        """The document of all ``parts``."""


@dataclass(frozen=True)
class Origin:
    """What every document of one request begins with. print: of the artifact, which tells whether answers can be repeated."""

    model: str
    print: str
    kind: str
    number: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def begin(self, kind: str) -> Document:
        return {
            "id": f"{self.kind}-{self.number}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.print,
        }


class ChatShape:
    """usage: whether a stream tells it, and so every chunk has the key."""

    def __init__(self, origin: Origin, *, usage: bool, logs: bool) -> None:
        self._origin, self._usage, self._logs = origin, usage, logs
        self._begun: dict[int, int] = {}

    def chunk(self, part: Part) -> Document | None:
        first = part.choice not in self._begun
        calls = self._begun.get(part.choice, 0)
        self._begun[part.choice] = calls + len(part.calls)
        delta: Document = {"role": "assistant"} if first else {}
        if part.text or first:
            delta["content"] = part.text
        if part.calls:
            delta["tool_calls"] = [{"index": calls + i, **_call(call)} for i, call in enumerate(part.calls)]
        if not delta and not part.logs and part.reason is None:
            return None
        logs = {"content": [_chat_log(log) for log in part.logs], "refusal": None} if part.logs else None
        choice: Document = {"index": part.choice, "delta": delta, "logprobs": logs, "finish_reason": part.reason}
        return self._origin.begin("chat.completion.chunk") | {"choices": [choice]} | ({"usage": None} if self._usage else {})

    def last(self, usage: Usage) -> Document:
        return self._origin.begin("chat.completion.chunk") | {"choices": [], "usage": _usage(usage)}

    def whole(self, parts: Sequence[Part], usage: Usage) -> Document:
        choices = [self._choice(i, [part for part in parts if part.choice == i]) for i in sorted({part.choice for part in parts})]
        return self._origin.begin("chat.completion") | {"choices": choices, "usage": _usage(usage)}

    def _choice(self, index: int, parts: Sequence[Part]) -> Document:
        text = "".join(part.text for part in parts)
        calls = [_call(call) for part in parts for call in part.calls]
        message: Document = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        logs = {"content": [_chat_log(log) for part in parts for log in part.logs], "refusal": None} if self._logs else None
        return {"index": index, "message": message, "logprobs": logs, "finish_reason": parts[-1].reason}


class TextShape:
    """usage: whether a stream tells it."""

    def __init__(self, origin: Origin, *, usage: bool, logs: bool) -> None:
        self._origin, self._usage, self._logs = origin, usage, logs
        self._offsets: dict[int, int] = {}

    def chunk(self, part: Part) -> Document | None:
        if not part.text and not part.logs and part.reason is None:
            return None
        offset = self._offsets.get(part.choice, 0)
        self._offsets[part.choice] = offset + sum(len(log.text) for log in part.logs)
        choice: Document = {
            "index": part.choice,
            "text": part.text,
            "logprobs": _text_logs(part.logs, offset) if part.logs else None,
            "finish_reason": part.reason,
        }
        return self._origin.begin("text_completion") | {"choices": [choice]} | ({"usage": None} if self._usage else {})

    def last(self, usage: Usage) -> Document:
        return self._origin.begin("text_completion") | {"choices": [], "usage": _usage(usage)}

    def whole(self, parts: Sequence[Part], usage: Usage) -> Document:
        choices: list[Document] = []
        for i in sorted({part.choice for part in parts}):
            own = [part for part in parts if part.choice == i]
            logs = _text_logs([log for part in own for log in part.logs], 0) if self._logs else None
            text = "".join(part.text for part in own)
            choices.append({"index": i, "text": text, "logprobs": logs, "finish_reason": own[-1].reason})
        return self._origin.begin("text_completion") | {"choices": choices, "usage": _usage(usage)}


def event(document: Document) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(document) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def encode(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _usage(usage: Usage) -> Document:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def _call(call: Call) -> Document:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _chat_log(log: TokenLog) -> Document:
    return _one(log) | {"top_logprobs": [_one(top) for top in log.top]}


def _one(log: TokenLog) -> Document:
    return {"token": log.text, "logprob": log.logprob, "bytes": list(log.bytes)}


def _text_logs(logs: Sequence[TokenLog], offset: int) -> Document:
    """Of two alternatives that look alike (no whole character), the likelier one counts."""
    offsets = []
    for log in logs:
        offsets.append(offset)
        offset += len(log.text)
    return {
        "tokens": [log.text for log in logs],
        "token_logprobs": [log.logprob for log in logs],
        "top_logprobs": [{top.text: top.logprob for top in reversed(log.top)} for log in logs],
        "text_offset": offsets,
    }

"""Conformance vectors: what an artifact's tokenizer, template and weights must give, recorded when it is built (docs/artifact.md)."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from edgekit import child, greedy
from edgekit.artifact import ChatVector, Conformance, EncodeVector, Greedy, GreedyVector, Manifest, Message, ToolVector
from edgekit.companions import Companions
from edgekit.errors import EngineError, EngineMissing, TemplateError
from edgekit.runtime.chat import VECTOR_TIME
from edgekit.runtime.templates import TOOLS

# Each is something that tokenizers get wrong: leading and doubled spaces, "space + digit", case, code, scripts, combining marks, emoji.
TEXTS = (
    "Hello, world!",
    " leading, two  spaces, trailing ",
    "room 12, 3.14 and 1,000,000",
    "def f(x):\n\treturn x ** 2\r\n",
    "naïve café, Zürich",
    "cafe\u0301",
    "Привет, мир. 你好,世界。 こんにちは 안녕 שלום مرحبا नमस्ते",
    "👩\u200d👩\u200d👧 🇨🇭 \u200b\ufeff",
    "",
)
CHATS = (
    (("user", "What is 12 plus 30?"),),
    (("user", "Hello!"), ("assistant", "Hi, what can I do?"), ("user", "Turn on the light.")),
    (("system", "You are brief."), ("user", "Who are you?")),
    (("user", '  <b>spaces, "quotes" & {{ braces }}  \n'),),
)
NOT_VERIFIED = "not verified (--no-verify)"


def text_vectors(companions: Companions) -> Conformance:
    """The encode and chat vectors; the greedy ones need the built artifact. Chats the template refuses (no system role) are left out."""
    added = [token.content for _, token in sorted(companions.tokenizer.backend.get_added_tokens_decoder().items())]
    special = list(dict.fromkeys([*added[:9], *added[-3:]]))  # of hundreds, the last are those that other files than tokenizer.json added
    texts = [*TEXTS, *("".join(special[:n]) for n in (1, len(special)) if special), *(f"a{token} b" for token in special)]
    encode = tuple(EncodeVector(text, tuple(companions.tokenizer.encode(text))) for text in dict.fromkeys(texts))
    return Conformance(encode, tuple(_chat_vectors(companions)), Greedy(None, (), NOT_VERIFIED), tuple(_tool_vectors(companions)))


@contextlib.contextmanager
def greedy_vectors(directory: Path, manifest: Manifest, companions: Companions, threads: int | None) -> Iterator[Callable[[], Greedy]]:
    """Begins greedy continuations of a chat and of raw text by the artifact's own engine, opened from ``directory`` in another process.

    Gives what waits for them. Where the engine is not installed here, that returns no vectors but the reason; it raises EngineError when
    the engine is there and cannot run what was built, or crashes. When the block is left the process has ended, whatever happened.
    """
    prompts = [manifest.conformance.chat[0].rendered] if manifest.conformance.chat else []
    prompts.append("The light in the kitchen")
    first = manifest.tokens.opening
    ids = [tuple(companions.tokenizer.encode(text)) for text in prompts]
    ids[-1] = (*first, *ids[-1])
    ids = [prompt for prompt in ids if _fits(prompt, manifest)]
    bare = replace(manifest, chat_template=None, tool_template=None)  # a template must be among the files, and these are listed later
    request: child.Json = {"directory": str(directory), "manifest": bare.to_json(), "prompts": ids, "threads": threads}
    with child.asking("edgekit.greedy", request) as answer:
        yield lambda: _greedy(manifest.engine.name, ids, answer)


def _greedy(engine: str, prompts: Sequence[tuple[int, ...]], answer: Callable[[], child.Json]) -> Greedy:
    try:
        continuations = cast(list[list[int]], answer()["continuations"])
    except EngineMissing as error:
        return Greedy(None, (), str(error))
    except EngineError as error:
        raise EngineError(f"{engine} cannot run what was built, and nothing was written: {error}") from None
    return Greedy(engine, tuple(GreedyVector(p, tuple(c)) for p, c in zip(prompts, continuations, strict=True)))


def _fits(prompt: Sequence[int], manifest: Manifest) -> bool:
    """Inside the context and, with LongRoPE, on one side of the switch: a vector needs no second prefill to be checked."""
    end = len(prompt) + greedy.TOKENS
    switch = manifest.context.rope_switch
    return end <= manifest.context.length and (switch is None or end <= switch or len(prompt) > switch)


def _chat_vectors(companions: Companions) -> list[ChatVector]:
    vectors: list[ChatVector] = []
    if companions.chat is None:
        return vectors
    for chat in CHATS:
        messages = [{"role": role, "content": content} for role, content in chat]
        try:
            rendered = companions.chat.render(messages, now=VECTOR_TIME)
        except TemplateError:
            continue
        vectors.append(ChatVector(tuple(Message(role, content) for role, content in chat), rendered))
    return vectors


def _tool_vectors(companions: Companions) -> list[ToolVector]:
    """One, where the template shows tools."""
    if companions.chat is None:
        return []
    (role, content), *_ = CHATS[0]
    try:
        rendered = companions.chat.render([{"role": role, "content": content}], tools=TOOLS, now=VECTOR_TIME)
    except TemplateError:
        return []
    return [ToolVector((Message(role, content),), json.dumps(TOOLS), rendered)]

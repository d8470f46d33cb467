"""Conformance vectors: what an artifact's tokenizer, template and weights must give, recorded when it is built (docs/artifact.md)."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit.artifact import ChatVector, Conformance, EncodeVector, Greedy, GreedyVector, Manifest, Message
from edgekit.companions import Companions
from edgekit.engines import ENGINES
from edgekit.errors import EngineError, EngineMissing, TemplateError
from edgekit.runtime.chat import VECTOR_TIME
from edgekit.runtime.session import Session

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
GREEDY_TOKENS = 16


def text_vectors(companions: Companions) -> Conformance:
    """The encode and chat vectors; the greedy ones need the built artifact. Chats the template refuses (no system role) are left out."""
    special = [token.content for _, token in sorted(companions.tokenizer.backend.get_added_tokens_decoder().items())][:12]
    texts = [*TEXTS, *("".join(special[:n]) for n in (1, len(special)) if special), *(f"a{token} b" for token in special)]
    encode = tuple(EncodeVector(text, tuple(companions.tokenizer.encode(text))) for text in dict.fromkeys(texts))
    return Conformance(encode, tuple(_chat_vectors(companions)), Greedy(None, (), "not computed"))


def greedy_vectors(directory: Path, manifest: Manifest, companions: Companions, threads: int | None) -> Greedy:
    """Greedy continuations of a chat and of raw text by the artifact's own engine, opened from ``directory``.

    Where the engine is not installed here, no vectors but the reason. Raises EngineError when it is and cannot run what was built.
    """
    prompts = [manifest.conformance.chat[0].rendered] if manifest.conformance.chat else []
    prompts.append("The light in the kitchen")
    first = [manifest.tokens.bos] if manifest.tokens.add_bos and manifest.tokens.bos is not None else []
    ids = [tuple(companions.tokenizer.encode(text)) for text in prompts]
    ids[-1] = (*first, *ids[-1])
    try:
        open_session = importlib.import_module(ENGINES[manifest.engine.name].session).open_session
        session: Session = open_session(directory, manifest, threads=threads)
    except EngineMissing as error:
        return Greedy(None, (), str(error))
    try:
        vectors = tuple(_continue(session, prompt, manifest) for prompt in ids if _fits(prompt, manifest))
    finally:
        session.close()
    return Greedy(manifest.engine.name, vectors)


def _fits(prompt: Sequence[int], manifest: Manifest) -> bool:
    """Inside the context and, with LongRoPE, on one side of the switch: a vector needs no second prefill to be checked."""
    end = len(prompt) + GREEDY_TOKENS
    switch = manifest.context.rope_switch
    return end <= manifest.context.length and (switch is None or end <= switch or len(prompt) > switch)


def _continue(session: Session, prompt: tuple[int, ...], manifest: Manifest) -> GreedyVector:
    session.rewind(0)
    chosen: list[int] = []
    given: Sequence[int] = prompt
    while len(chosen) < GREEDY_TOKENS and not (chosen and chosen[-1] in manifest.tokens.stop):
        logits = session.forward(given)
        if not np.isfinite(logits).all():
            raise EngineError(f"the built model gives logits that are not finite after {session.position} tokens; nothing was written")
        chosen.append(int(np.argmax(logits)))
        given = chosen[-1:]
    return GreedyVector(prompt, tuple(chosen))


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

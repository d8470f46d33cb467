"""Runs an artifact on the device: one loop, one sampler, one tokenizer for every engine.

    session.py    what an engine offers: tokens in, logits out, rewind
    prefix.py     reuses what a session still holds; the LongRoPE switch
    lookup.py     guesses what comes next from what is there already
    sampling.py   greedy, or drawn as transformers does
    constrain.py  answers in a given form: JSON schema, regular expression, grammar
    grammars.py   what such a form may be
    layout.py     how much white space JSON may hold
    closing.py    how such an answer can be completed, and in how many tokens
    generate.py   the loop: steps of text, stops, limits
    tokenizer.py  ids and text, streaming
    chat.py       chat templates

Texts are worked on in a process of its own, with limits (confine.py). Nothing here imports anything of the build side.
"""

import functools
import operator
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from edgekit.artifact import Artifact, Manifest, load_artifact
from edgekit.confine import Confined, Here
from edgekit.errors import EdgekitError, TemplateError, UsageError
from edgekit.runtime.chat import WORK, Messages
from edgekit.runtime.constrain import Constraint, Forms, Guide, constraint
from edgekit.runtime.generate import Completion, Finish, Step, collect, generate
from edgekit.runtime.prefix import PrefixCache
from edgekit.runtime.sampling import GREEDY, Processor, Sampling
from edgekit.runtime.session import Session, open_session
from edgekit.runtime.templates import ChatTemplates, check_templates, open_templates
from edgekit.runtime.tokenizer import Tokenizer, check_tokenizer, open_tokenizer

if TYPE_CHECKING:
    from edgekit.signing import Trust

__all__ = ["Completion", "Finish", "Processor", "Runtime", "Sampling", "Session", "Step", "Tokenizer", "load"]


def load(directory: str | Path, *, threads: int | None = None, trust: "Trust | None" = None, confined: bool = True) -> "Runtime":
    """Opens an artifact: manifest, file sizes, tokenizer and template against their conformance vectors, then the engine.

    threads: that the engine computes with; None leaves the choice to it.
    trust:   whose signature it must bear (``edgekit.signing.Trust``); then every file's digest is compared too, before anything is read.
              None: the keys that EDGEKIT_TRUSTED_KEY pins, if it is set.
    confined: False runs tokenizer and template in this very process, without limits: for a program that can start no Python, and artifacts
              that one trusts.
    Raises SignatureError, ArtifactError, TemplateError, EngineMissing (saying which extra to install), EngineError.
    """
    return open_runtime(load_artifact(directory, trust=trust), threads=threads, confined=confined)


def open_runtime(artifact: Artifact, *, threads: int | None = None, confined: bool = True) -> "Runtime":
    """``load`` of an artifact that was opened already. Raises as it does."""
    with ThreadPoolExecutor(1) as pool:
        texts = pool.submit(open_text, artifact, confined)  # while the engine reads the weights: about 0.1 s of 2
        try:
            session = open_session(artifact.directory, artifact.manifest, threads=threads)
        except EdgekitError:
            texts.result()  # what is wrong with the files is said before what is wrong with the engine
            raise
        try:
            tokenizer, template = texts.result()
        except BaseException:
            session.close()
            raise
    return Runtime(artifact.manifest, tokenizer, template, session)


def open_text(artifact: Artifact, confined: bool = True) -> tuple[Tokenizer, ChatTemplates | None]:
    """Tokenizer and chat template, which give what the manifest's vectors say. Raises ArtifactError, TemplateError."""
    manifest = artifact.manifest
    process = Confined(WORK) if confined else Here(WORK)
    tokenizer = open_tokenizer(artifact.directory, bos=manifest.tokens.bos if manifest.tokens.add_bos else None, process=process)
    check_tokenizer(tokenizer, manifest.conformance.encode)
    template = open_templates(artifact.directory, manifest, process)
    if template is not None:
        check_templates(template, manifest)
    return tokenizer, template


class Runtime:
    """A loaded artifact. Use it in a ``with`` block, or ``close`` it. For one thread at a time.

    The tokens of the last sequence stay in the session's cache: a prompt that begins with them costs only what is new.
    given_up: asked in the search for an answer in a given form; where it says True, that ends with a UsageError.
    """

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, template: ChatTemplates | None, session: Session) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.session = session
        self._template = template
        self._cache = PrefixCache(session, switch=manifest.context.rope_switch)
        self._forms: Forms | None = None
        self.given_up: Callable[[], bool] = lambda: False

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return min(self.session.context, self.manifest.context.length)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        processors: Sequence[Processor] = (),
        lookup: int = 0,
        json_schema: Mapping[str, object] | bool | str | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        top_logprobs: int = 0,
        anew: bool = False,
    ) -> Generator[Step, None, None]:
        """Continues raw text (no chat template) or token ids, one Step a token; see ``generate.generate`` for the arguments.

        The text continues the prompt's: a space before its first word is kept, unless it is to begin ``anew``, as an answer in a chat
        does. Special tokens written in a text are recognized.
        json_schema, regex, grammar (Lark): one of them, and the answer is valid under it, whatever ends it (see constrain.py).
        Raises ContextOverflow, UsageError, EngineError; EngineMissing for a form without llguidance.
        """
        ids = self._ids(prompt)
        wanted = constraint(json_schema=json_schema, regex=regex, grammar=grammar)
        return self._generate(ids, () if anew else ids, sampling, max_tokens, stop, processors, lookup, wanted, top_logprobs)

    def chat(
        self,
        messages: Messages,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        processors: Sequence[Processor] = (),
        lookup: int = 0,
        json_schema: Mapping[str, object] | bool | str | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        top_logprobs: int = 0,
    ) -> Generator[Step, None, None]:
        """Answers messages, ``[{"role": "user", "content": "..."}]``, through the model's chat template; otherwise as ``generate``.

        Raises TemplateError too: the artifact has no template, or it refuses the messages.
        """
        ids = self.encode(self.render(messages, tools=tools))
        wanted = constraint(json_schema=json_schema, regex=regex, grammar=grammar)
        return self._generate(ids, (), sampling, max_tokens, stop, processors, lookup, wanted, top_logprobs)

    def complete(
        self,
        prompt: str | Sequence[int] | Messages,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        processors: Sequence[Processor] = (),
        lookup: int = 0,
        json_schema: Mapping[str, object] | bool | str | None = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> Completion:
        """The whole answer to chat messages, or the continuation of text or token ids, with its timings."""
        began = time.perf_counter()
        if chat := _is_chat(prompt):
            ids: Sequence[int] = self.encode(self.render(cast(Messages, prompt)))
        else:
            ids = self._ids(cast(str | Sequence[int], prompt))
        wanted = constraint(json_schema=json_schema, regex=regex, grammar=grammar)
        steps = self._generate(ids, () if chat else ids, sampling, max_tokens, stop, processors, lookup, wanted, 0)
        return collect(steps, len(ids), began)

    def render(self, messages: Messages, *, tools: Sequence[Mapping[str, object]] | None = None) -> str:
        """The prompt that the chat template makes of ``messages`` (at least one). Raises TemplateError, UsageError."""
        _check_messages(messages)
        if self._template is None:
            raise TemplateError(f"{self.manifest.model.name} has no chat template; give text instead of messages (edge run --raw)")
        return self._template.render(messages, tools=tools)

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """The token ids of a prompt. Raises ContextOverflow where it is known without encoding that it has too many."""
        return self.tokenizer.encode(text, add_bos=add_bos, most=self.context)

    def interrupt(self) -> None:
        """From another thread: ends the rendering or encoding that is under way, which raises EngineError."""
        self.tokenizer.backend.interrupt()

    def forget(self) -> None:
        """What the next call brings is computed from its first token, whatever was asked before."""
        self._cache.clear()

    def close(self) -> None:
        """Frees the model. Calling it twice is allowed."""
        self.session.close()
        self.tokenizer.backend.close()

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids as Python's own integers, whatever holds them (a numpy array, too)."""
        if isinstance(prompt, str):
            return self.encode(prompt, add_bos=True)
        size = self.manifest.tokens.vocab_size
        try:
            ids = [operator.index(token) for token in prompt]
        except TypeError as error:
            raise UsageError(
                f"a prompt is text or a sequence of token ids, messages go to chat; found {type(prompt).__name__}: {error}"
            ) from None
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            raise UsageError(f"token id {wrong} is outside the vocabulary of {size}")
        return ids

    def _generate(
        self,
        ids: Sequence[int],
        shown: Sequence[int],
        sampling: Sampling,
        max_tokens: int | None,
        stop: str | Sequence[str],
        processors: Sequence[Processor],
        lookup: int,
        wanted: Constraint | None,
        top_logprobs: int,
    ) -> Generator[Step, None, None]:
        form = None
        if wanted is not None:
            if self._forms is None:
                self._forms = Forms(self.tokenizer, self.manifest.tokens.vocab_size, self.manifest.tokens.stop)
            form = functools.partial(Guide, wanted, self._forms, given_up=self.given_up)
            shown = self.tokenizer.encode("a")  # what follows a letter is decoded as it is: no leading space is stripped
        return generate(
            self._cache,
            ids,
            self.tokenizer.stream(shown),
            context=self.context,
            stop_tokens=self.manifest.tokens.stop,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            processors=processors,
            lookup=lookup,
            form=form,
            top_logprobs=top_logprobs,
        )


def _is_chat(prompt: str | Sequence[int] | Messages) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _check_messages(messages: object) -> None:
    """A template would take text for messages without a word to say, and answer nothing."""
    listed: Sequence[object] = messages if isinstance(messages, Sequence) else ()
    if not listed or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in listed):
        raise UsageError('chat takes messages: [{"role": "user", "content": "..."}]; for text use generate')

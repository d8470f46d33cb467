"""The seam between the one generation loop and every engine, and what every engine's session checks alike."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Manifest
from edgekit.engines import ENGINES
from edgekit.errors import ArtifactError, ContextOverflow, EdgekitError, EngineError, UsageError
from edgekit.strict_json import brief


class Session(Protocol):
    """A loaded model with its KV cache, for one sequence. Adapters are thin: what users see lives in ``generate``.

    A session does not watch the LongRoPE switch: its graph picks the factors by the length after each call, and
    ``runtime.prefix`` decides when the sequence has to be computed anew.
    """

    @property
    def position(self) -> int:
        """Tokens in the cache."""

    @property
    def context(self) -> int:
        """Most tokens the cache can hold."""

    @property
    def grain(self) -> int:
        """How finely what was computed may be taken up again, which ``runtime.prefix`` goes by.

        1: what a token leaves in the cache, and its logits, are the same bit for bit whether it comes alone or among others, in whatever
        calls. Otherwise they depend on it, and ``forward`` cuts long input into pieces of so many tokens from where the call begins: so a
        piece is the same again if it begins at the same place. Not less than ``context``: nothing but the whole is.
        """

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends ``tokens`` (at least one) and returns the logits after the last, float32 [vocab].

        The array is the caller's. Raises ContextOverflow, leaving the cache as it was, when they do not fit; ValueError without a token;
        EngineError when the engine fails or the session is closed.
        """

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        """As ``forward``, with the logits after each of the ``last`` last tokens, float32 [last, vocab]: row i is that after
        ``tokens[: len(tokens) - last + 1 + i]``. ``forward`` is its only row for ``last`` 1.

        Equal to calling ``forward`` token by token, bit for bit where ``grain`` is 1; elsewhere but for the engine's rounding.
        Raises as ``forward`` does; ValueError too unless 1 <= last <= len(tokens).
        """

    def rewind(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens (0 <= length <= position; else ValueError)."""

    def close(self) -> None:
        """Frees the model. Calling it twice is allowed."""


def open_session(directory: Path, manifest: Manifest, *, threads: int | None = None) -> Session:
    """Loads an artifact with its own engine. threads: that it computes with; None leaves the choice to it.

    Raises ArtifactError (an engine that this edgekit does not know, or files that it did not write), EngineMissing, EngineError.
    """
    engine = ENGINES.get(manifest.engine.name)
    if engine is None:
        raise ArtifactError(
            f"{directory} was built for engine {manifest.engine.name!r}, which this edgekit does not know "
            f"(known: {', '.join(ENGINES)}); upgrade: pip install --upgrade edgekit"
        )
    try:
        session: Session = importlib.import_module(engine.session).open_session(directory, manifest, threads=threads)
    except EdgekitError:
        raise
    except MemoryError as error:
        raise EngineError(f"{directory} does not fit into this machine's memory; build it with a smaller context: --context") from error
    except Exception as error:  # a number or word in the manifest, or in the engine's own file, that no exporter writes
        raise ArtifactError(
            f"{directory}: the files for {manifest.engine.name}, or engine.details of the manifest, are not what edgekit writes "
            f"({brief(error)}); build the artifact again"
        ) from error
    return session


def check_call(tokens: Sequence[int], last: int, position: int, context: int) -> None:
    """What ``Session.forward_last`` refuses before it computes, ``position`` tokens being held. Raises ValueError, ContextOverflow."""
    if not len(tokens):
        raise ValueError("forward needs at least one token")
    if not 1 <= last <= len(tokens):
        raise ValueError(f"logits of the last {last} tokens were asked for, and {len(tokens)} are given")
    if position + len(tokens) > context:
        raise ContextOverflow(
            f"{position} tokens and {len(tokens)} more do not fit into the context of {context} this artifact was built for"
        )


def check_vocabulary(ids: NDArray[np.int64], vocab: int) -> None:
    """An engine would read beside the embedding. Raises UsageError naming the first id that is none of ``vocab``."""
    wrong = ids[(ids < 0) | (ids >= vocab)]
    if wrong.size:
        raise UsageError(f"token {wrong[0]} is outside the vocabulary of {vocab}; encode the text with the artifact's own tokenizer")


def check_rewind(length: int, position: int) -> None:
    """What ``Session.rewind`` refuses. Raises ValueError."""
    if not 0 <= length <= position:
        raise ValueError(f"cannot rewind to {length}: the session holds {position} tokens")

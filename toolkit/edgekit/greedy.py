"""Greedy continuations by an artifact's own engine, in a process of its own.

The engine maps or loads the whole model and may crash in native code; neither happens to the process that builds. ``main`` is that
process: it imports what runs a model, nothing of what builds one.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import child
from edgekit.artifact import GreedyVector, Manifest
from edgekit.errors import EngineError
from edgekit.runtime.session import Session, open_session

TOKENS = 16


def compute(directory: Path, manifest: Manifest, prompts: Sequence[tuple[int, ...]], threads: int | None) -> tuple[GreedyVector, ...]:
    """Opens what lies in ``directory`` and continues each prompt. Raises EngineMissing; EngineError when the engine cannot run it."""
    with closing(open_session(directory, manifest, threads=threads)) as session:
        return tuple(_continue(session, prompt, manifest) for prompt in prompts)


def _continue(session: Session, prompt: tuple[int, ...], manifest: Manifest) -> GreedyVector:
    session.rewind(0)
    chosen: list[int] = []
    given: Sequence[int] = prompt
    while len(chosen) < TOKENS and not (chosen and chosen[-1] in manifest.tokens.stop):
        logits = session.forward(given)
        if not np.isfinite(logits).all():
            raise EngineError(f"the built model gives logits that are not finite after {session.position} tokens; nothing was written")
        chosen.append(int(np.argmax(logits)))
        given = chosen[-1:]
    return GreedyVector(prompt, tuple(chosen))


def main() -> None:
    """The process in which the engine runs (``conformance.greedy_vectors`` asks it)."""
    child.serve(_serve)


def _serve(request: dict[str, Any]) -> child.Json:
    manifest = Manifest.from_json(request["manifest"])
    prompts = [tuple(prompt) for prompt in request["prompts"]]
    vectors = compute(Path(request["directory"]), manifest, prompts, request["threads"])
    return {"continuations": [vector.continuation for vector in vectors]}

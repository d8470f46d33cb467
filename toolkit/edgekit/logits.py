"""Logits of token sequences by an artifact's own engine, in a process of its own: the engine's memory and crashes are not the caller's.

``main`` is that process: it imports what runs a model, nothing of what builds one.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgekit import child
from edgekit.artifact import Artifact, Manifest
from edgekit.errors import EngineError
from edgekit.runtime.prefix import PrefixCache
from edgekit.runtime.session import Session, open_session


@dataclass(frozen=True)
class Ask:
    """tokens: of one sequence. last: the logits after each of this many of its last tokens are wanted (none for 0).
    greedy: how many tokens to continue it with, each the likeliest."""

    tokens: tuple[int, ...]
    last: int = 0
    greedy: int = 0


def compute(artifact: Artifact, asks: Sequence[Ask], place: Path, threads: int | None = None) -> list[list[int]]:
    """Runs an artifact, which may not be sealed yet, in another process. Writes the logits of the i-th sequence, float32 [last, V], to
    ``place / "i.npy"`` and returns the tokens each was continued with.

    Raises what opening and running an artifact raises; EngineError when the engine crashes.
    """
    what = {"directory": str(artifact.directory), "manifest": artifact.manifest.to_json()}
    request: child.Json = {**what, "asks": [asdict(ask) for ask in asks], "place": str(place), "threads": threads}
    said = child.ask("edgekit.logits", request)
    return cast(list[list[int]], said["appended"])


def _answer(session: Session, switch: int | None, ask: Ask, place: Path) -> list[int]:
    session.rewind(0)
    if ask.last:
        # In one call, so that a LongRoPE graph knows the final length from the first token on.
        rows = session.forward_last(ask.tokens, ask.last)
        if not np.isfinite(rows).all():
            raise EngineError("the artifact gives logits that are not finite: its files are damaged, or its engine is; build it again")
        np.save(place, rows)
    chosen: list[int] = []
    cache = PrefixCache(session, switch=switch)
    cache.clear()
    while len(chosen) < ask.greedy:
        chosen.append(int(np.argmax(cache.extend_to([*ask.tokens, *chosen], prompt=len(ask.tokens))[0])))
    return chosen


def _serve(request: dict[str, object]) -> dict[str, object]:
    manifest = Manifest.from_json(str(request["manifest"]))
    threads = cast("int | None", request["threads"])
    with closing(open_session(Path(str(request["directory"])), manifest, threads=threads)) as session:
        asks = [Ask(tuple(a["tokens"]), a["last"], a["greedy"]) for a in cast(list[dict[str, Any]], request["asks"])]
        place = Path(str(request["place"]))
        return {"appended": [_answer(session, manifest.context.rope_switch, ask, place / f"{i}.npy") for i, ask in enumerate(asks)]}


def main() -> None:
    child.serve(_serve)

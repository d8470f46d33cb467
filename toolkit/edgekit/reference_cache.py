"""Logits of the reference decoder, kept by the digest of all they depend on: a second target, scheme or report does not pay again."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit import cache as kept
from edgekit.cache import Cache
from edgekit.divergence import F32
from edgekit.errors import EdgekitError
from edgekit.models.decoder import DecoderConfig
from edgekit.progress import Progress
from edgekit.reference import VERSION, reference_logits_many


@dataclass(frozen=True)
class Weighted:
    """A decoder with weights. tensor: canonical name -> float32 weight. model: its name, for people.

    identity: says, with the decoder, all that the weights are. broken: what is raised when they give logits that are not finite.
    """

    decoder: DecoderConfig
    tensor: Callable[[str], F32]
    model: str
    identity: Sequence[str]
    broken: EdgekitError


def logits(
    weighted: Weighted, wanted: Sequence[tuple[tuple[int, ...], int]], cache: Cache | None, progress: Progress, stage: str
) -> list[F32]:
    """The logits after each of the last ``n`` tokens of each sequence, float32 [n, V], from the cache or by one pass over the layers.

    Progress counts the weights that the pass has asked for, as ``stage``. Raises what ``tensor`` raises, and ``broken``.
    """
    vocab = weighted.decoder.vocab_size
    settings = hashlib.sha256(repr(weighted.decoder).encode()).hexdigest()
    group = kept.group_name(("reference", VERSION, settings, *weighted.identity))
    names = [hashlib.sha256(repr(ask).encode()).hexdigest()[:32] for ask in wanted]
    found: dict[int, F32] = {}
    for i, (name, (_, last)) in enumerate(zip(names, wanted, strict=True)):
        payload = kept.load(cache, group, name, 4 * last * vocab) if cache is not None else None
        if payload is not None:
            found[i] = np.frombuffer(payload, "<f4").astype(np.float32, copy=False).reshape(last, vocab)
    missing = [i for i in range(len(wanted)) if i not in found]
    most = max((wanted[i][1] for i in missing), default=0)
    tensor = _told(weighted, progress, stage)
    computed = reference_logits_many(weighted.decoder, tensor, [wanted[i][0] for i in missing], last=most)
    for i, rows in zip(missing, computed, strict=True):
        found[i] = rows[-wanted[i][1] :]
        if not np.isfinite(found[i]).all():
            raise weighted.broken
        if cache is not None:
            about = {"model": weighted.model, "file": "reference", "format": "logits"}
            kept.store(cache, group, names[i], [memoryview(found[i].astype("<f4", copy=False)).cast("B")], about)
    return [found[i] for i in range(len(wanted))]


def _told(weighted: Weighted, progress: Progress, stage: str) -> Callable[[str], F32]:
    shapes = weighted.decoder.weight_shapes()
    total = sum(map(math.prod, shapes.values())) + (math.prod(shapes["embed_tokens"]) if weighted.decoder.tied else 0)
    done = 0

    def tensor(name: str) -> F32:
        nonlocal done
        weight = weighted.tensor(name)
        done += weight.size
        progress(stage, done, total)
        return weight

    return tensor

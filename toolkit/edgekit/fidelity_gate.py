"""The line between an artifact that may ship and one that may not."""

from dataclasses import dataclass

from edgekit.errors import FidelityError
from edgekit.fidelity import Fidelity


@dataclass(frozen=True)
class Limits:
    """max_kl: of the mean KL divergence, nats. min_top1: of the share of positions with the same likeliest token. None: no limit."""

    max_kl: float | None = None
    min_top1: float | None = None


def check(fidelity: Fidelity, limits: Limits, what: str) -> None:
    """Raises FidelityError naming the figure, its limit and what to do, for the first part that does not keep them."""
    for part in fidelity.parts:
        kl, top = part.figures.mean_kl.value, part.figures.same_top.value
        where = f"{what}, {part.name} context ({part.context} tokens)"
        if limits.max_kl is not None and not kl <= limits.max_kl:
            raise FidelityError(f"{where}: mean KL divergence {kl:.4g} is above {limits.max_kl:g} (--max-kl); {ADVICE}")
        if limits.min_top1 is not None and not top >= limits.min_top1:
            raise FidelityError(
                f"{where}: the likeliest token is the same at {top:.1%}, below {limits.min_top1:.1%} (--min-top1); {ADVICE}"
            )


ADVICE = "build with a finer --scheme (int4-g32), or fit the weights to a text with --calibrate"

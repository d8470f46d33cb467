"""The best choice of one option for each item within a budget: the multiple-choice knapsack, solved exactly.

Dynamic programming over what has been spent (Kellerer, Pferschy & Pisinger, Knapsack Problems, 2004, chapter 11.5). Spending is counted in
the greatest common divisor of all that the options cost more than the cheapest: for formats of equal matrices a large number, so a model
of 32 layers takes some 10,000 places. Where there would be more than ``PLACES``, costs are rounded up to as many: the choice stays
within the budget, and is the best one of a budget smaller by at most one place for each item.
"""

import math
from collections.abc import Sequence

import numpy as np

PLACES = 1 << 18


def allocate(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int] | None:
    """For each item the index of its option: the least sum of ``losses`` with a sum of ``costs`` up to ``budget``. None: there is none.

    Of equal losses the cheaper sum is taken.
    """
    least = [min(cost) for cost in costs]
    room = budget - sum(least)
    if room < 0:
        return None
    extra = [[c - low for c in cost] for cost, low in zip(costs, least, strict=True)]
    room = min(room, sum(max(e) for e in extra))
    unit = max(math.gcd(*(c for e in extra for c in e)) or 1, -(-room // PLACES))
    places = room // unit + 1
    best = np.zeros(places)
    taken: list[np.ndarray[tuple[int], np.dtype[np.uint8]]] = []
    for e, loss in zip(extra, losses, strict=True):
        found, choice = np.full(places, np.inf), np.zeros(places, np.uint8)
        for option, (cost, value) in enumerate(zip(e, loss, strict=True)):
            spent = -(-cost // unit)
            if spent < places:
                reached = best[: places - spent] + value
                better = reached < found[spent:]
                found[spent:][better] = reached[better]
                choice[spent:][better] = option
        best = found
        taken.append(choice)
    at = int(best.argmin())
    chosen: list[int] = []
    for e, choice in zip(reversed(extra), reversed(taken), strict=True):
        chosen.append(int(choice[at]))
        at -= -(-e[chosen[-1]] // unit)
    return chosen[::-1]

"""Ways in which a prompt and an answer come to be computed, which must not show in the logits."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.runtime.prefix import PrefixCache
from edgekit.runtime.session import Session

Logits = NDArray[np.float32]


def answer(cache: PrefixCache, prompt: Sequence[int], said: Sequence[int], *, exact: bool = True) -> list[Logits]:
    """The logits after the prompt and after each token that is said, as ``generate`` asks for them."""
    whole = [*prompt, *said]
    return [cache.extend_to(whole[:n], prompt=len(prompt), exact=exact)[0] for n in range(len(prompt), len(whole) + 1)]


def fresh(session: Session, switch: int | None, prompt: Sequence[int], said: Sequence[int]) -> list[Logits]:
    session.rewind(0)
    return answer(PrefixCache(session, switch=switch), prompt, said)


def check(session: Session, switch: int | None, prompt: Sequence[int], said: Sequence[int], other: Sequence[int]) -> None:
    """Every history gives the bits of a session that held nothing. other: tokens of other sequences, not fewer than prompt and answer."""
    wanted = fresh(session, switch, prompt, said)
    whole, half, context = [*prompt, *said], len(prompt) // 2, session.context
    turn, reply = [*whole, *other[: min(5, context - len(whole) - len(said))]], said
    after = fresh(session, switch, turn, reply)
    between = [whole[:n] for n in range(1, len(whole))]

    def interrupted(cache: PrefixCache) -> None:
        compute = session.forward

        def broken(tokens: Sequence[int]) -> Logits:
            compute(tokens)
            raise KeyboardInterrupt

        answer(cache, prompt, said[:2])
        with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(session, "forward", broken)
            cache.extend_to([*whole[: len(prompt) + 2], *other[:3]])

    histories: dict[str, Callable[[PrefixCache], object]] = {
        "the same before": lambda cache: answer(cache, prompt, said),
        "another before": lambda cache: answer(cache, other[: len(prompt)], other[: len(said)]),
        "a part of the prompt": lambda cache: cache.extend_to(prompt[: max(1, half)]),
        "a prompt that parts": lambda cache: cache.extend_to([*prompt[:half], *other[: len(prompt) - half]]),
        "all as one prompt": lambda cache: cache.extend_to(whole),
        "token by token": lambda cache: [cache.extend_to(tokens) for tokens in between],
        "said after less": lambda cache: answer(cache, prompt[: max(1, half)], whole[max(1, half) :]),
        "drawn without a seed": lambda cache: answer(cache, prompt[: max(1, half)], whole[max(1, half) :], exact=False),
        "interrupted": interrupted,
        "a longer one": lambda cache: answer(cache, turn, reply),
    }
    if PrefixCache(session).drafts:
        histories["a draft"] = lambda cache: cache.extend_with(prompt, [*said[:1], *other[:2]], prompt=len(prompt))
    for name, before in histories.items():
        session.rewind(0)
        cache = PrefixCache(session, switch=switch)
        before(cache)
        for at, (got, want) in enumerate(zip(answer(cache, prompt, said), wanted, strict=True)):
            np.testing.assert_array_equal(got, want, err_msg=f"after {name}, {at} tokens of the answer")
        for at, (got, want) in enumerate(zip(answer(cache, turn, reply), after, strict=True)):
            np.testing.assert_array_equal(got, want, err_msg=f"second turn after {name}, {at} tokens of the answer")
    if PrefixCache(session).drafts:
        session.rewind(0)
        rows = PrefixCache(session, switch=switch).extend_with(prompt, said, prompt=len(prompt))[0]
        for got, want in zip(rows, wanted, strict=False):
            np.testing.assert_array_equal(got, want, err_msg="as a draft")

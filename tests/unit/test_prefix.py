"""Which calls the prefix cache makes: recorded by a session that also refuses what a real one would get wrong."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.engines.null.session import NullSession
from edgekit.errors import ContextOverflow
from edgekit.runtime.prefix import PrefixCache

VOCAB = 16


class Recorder(NullSession):
    """Notes every call. ``interrupt``: raise KeyboardInterrupt in the next forward, before or after the cache has grown."""

    def __init__(self, context: int = 64, switch: int | None = None) -> None:
        super().__init__(VOCAB, context, switch=switch)
        self.calls: list[tuple[str, int]] = []
        self.interrupt: str | None = None

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.calls.append(("forward", len(tokens)))
        moment, self.interrupt = self.interrupt, None
        if moment == "before":
            raise KeyboardInterrupt
        logits = super().forward(tokens)
        if moment == "after":
            raise KeyboardInterrupt
        return logits

    def rewind(self, length: int) -> None:
        self.calls.append(("rewind", length))
        super().rewind(length)


def fresh(tokens: Sequence[int], switch: int | None = None) -> NDArray[np.float32]:
    return NullSession(VOCAB, 1000, switch=switch).forward(tokens)


def test_growing_by_one_token_computes_one() -> None:
    session = Recorder()
    cache = PrefixCache(session)
    assert cache.extend_to([1, 2, 3])[1] == 3
    logits, computed = cache.extend_to([1, 2, 3, 4])
    assert (computed, session.calls) == (1, [("forward", 3), ("forward", 1)])
    assert (logits == fresh([1, 2, 3, 4])).all()
    assert cache.held == (1, 2, 3, 4)


def test_common_prefix_is_kept_and_the_rest_computed() -> None:
    session = Recorder()
    cache = PrefixCache(session)
    cache.extend_to([1, 2, 3, 4, 5])
    logits, computed = cache.extend_to([1, 2, 9])
    assert (computed, session.calls[1:]) == (1, [("rewind", 2), ("forward", 1)])
    assert (logits == fresh([1, 2, 9])).all()


def test_the_same_or_a_shorter_sequence_computes_its_last_token_again() -> None:
    session = Recorder()
    cache = PrefixCache(session)
    cache.extend_to([1, 2, 3])
    assert cache.extend_to([1, 2, 3])[1] == 1
    assert cache.extend_to([1])[1] == 1
    assert session.calls[1:] == [("rewind", 2), ("forward", 1), ("rewind", 0), ("forward", 1)]


def test_crossing_the_longrope_switch_upward_computes_the_whole_sequence_again_once() -> None:
    session = Recorder(switch=4)
    cache = PrefixCache(session, switch=4)
    tokens = [1, 2, 3]
    computed = []
    for token in (4, 5, 6, 7):
        computed.append(cache.extend_to(tokens)[1])
        tokens.append(token)
    assert computed == [3, 1, 5, 1]
    assert session.calls == [("forward", 3), ("forward", 1), ("rewind", 0), ("forward", 5), ("forward", 1)]


def test_going_back_below_the_switch_computes_again_but_staying_above_reuses() -> None:
    session = Recorder(switch=4)
    cache = PrefixCache(session, switch=4)
    cache.extend_to([1, 2, 3, 4, 5, 6])
    session.calls.clear()
    cache.extend_to([1, 2, 3, 9, 9, 9])
    assert session.calls == [("rewind", 3), ("forward", 3)], "kept keys have the long factors, and the whole is long"
    cache.extend_to([1, 2, 3, 4])
    assert session.calls[2:] == [("rewind", 0), ("forward", 4)]


@settings(max_examples=200, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=8),
    switch=st.sampled_from([None, 1, 5, 11]),
    interrupted=st.lists(st.sampled_from([None, None, "before", "after"]), min_size=8, max_size=8),
)
def test_logits_always_equal_those_of_a_fresh_session(
    sequences: list[list[int]], switch: int | None, interrupted: list[str | None]
) -> None:
    """Whatever was computed before, whichever call was interrupted, on whatever side of the switch."""
    session = Recorder(switch=switch)
    cache = PrefixCache(session, switch=switch)
    for tokens, moment in zip(sequences, interrupted, strict=False):
        session.interrupt = moment
        if moment:
            with pytest.raises(KeyboardInterrupt):
                cache.extend_to(tokens)
        logits, _ = cache.extend_to(tokens)
        assert (logits == fresh(tokens, switch)).all()
        assert session.position == len(tokens) == len(cache.held)


def test_a_sequence_that_does_not_fit_is_refused_and_the_next_works() -> None:
    cache = PrefixCache(Recorder(context=4))
    cache.extend_to([1, 2])
    with pytest.raises(ContextOverflow):
        cache.extend_to([1, 2, 3, 4, 5])
    assert (cache.extend_to([1, 2, 3])[0] == fresh([1, 2, 3])).all()


def test_an_empty_sequence_has_no_logits() -> None:
    with pytest.raises(ValueError, match="at least one"):
        PrefixCache(Recorder()).extend_to([])


def test_a_list_that_grows_later_does_not_change_what_is_held() -> None:
    cache, tokens = PrefixCache(Recorder()), [1, 2]
    cache.extend_to(tokens)
    tokens.append(3)
    assert cache.held == (1, 2)


def test_clear_forgets() -> None:
    session = Recorder()
    cache = PrefixCache(session)
    cache.extend_to([1, 2])
    cache.clear()
    assert (cache.held, session.position) == ((), 0)

"""Filters against a plain float64 implementation, draws against the distribution they should follow."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import EngineError, UsageError
from edgekit.runtime.sampling import Sampler, Sampling, candidates, likeliest, penalized

Array = NDArray[np.float32]


def logits_of(seed: int, size: int = 50, scale: float = 3.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def plain(scores: Array, s: Sampling) -> dict[int, float]:
    """The definitions, one token at a time."""
    x = {i: float(np.float32(v) / np.float32(s.temperature)) for i, v in enumerate(scores) if v > -math.inf}

    def probabilities() -> dict[int, float]:
        top = max(x.values())
        total = math.fsum(math.exp(v - top) for v in x.values())
        return {i: math.exp(v - top) / total for i, v in x.items()}

    if s.top_k:
        least = sorted(x.values(), reverse=True)[: s.top_k][-1]
        x = {i: v for i, v in x.items() if v >= least}
    if s.top_p < 1:
        gathered, kept = 0.0, set()
        for i, p in sorted(probabilities().items(), key=lambda item: (-item[1], item[0])):
            if gathered < s.top_p:
                kept.add(i)
            gathered += p
        x = {i: v for i, v in x.items() if i in kept}
    p = probabilities()
    x = {i: v for i, v in x.items() if p[i] >= s.min_p * max(p.values())}
    return probabilities()


samplings = st.builds(
    Sampling,
    temperature=st.floats(0.1, 3),
    top_k=st.sampled_from([0, 1, 2, 7, 49, 50, 1000]),
    top_p=st.sampled_from([0.01, 0.3, 0.77, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.31, 1.0]),
)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10_000), sampling=samplings, forbidden=st.integers(0, 49))
def test_filters_equal_their_definitions(seed: int, sampling: Sampling, forbidden: int) -> None:
    scores = logits_of(seed)
    scores[:forbidden] = -np.inf
    ids, p = candidates(scores, sampling)
    expected = plain(scores, sampling)
    assert ids.tolist() == sorted(expected)
    np.testing.assert_allclose(p, [expected[i] for i in ids], rtol=1e-9)


def test_ties_of_top_k_stay_and_ties_of_top_p_go_by_id() -> None:
    scores = np.array([1, 2, 2, 2, 0], np.float32)
    assert candidates(scores, Sampling(temperature=1, top_k=2))[0].tolist() == [1, 2, 3]
    assert candidates(np.zeros(4, np.float32), Sampling(temperature=1, top_p=0.5))[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.6, top_k=8, seed=2),
        Sampling(temperature=1.7, top_p=0.8, seed=3),
        Sampling(temperature=1.0, min_p=0.1, top_k=20, seed=4),
    ],
)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    """Chi-square over 20,000 draws; the seeds are fixed, so this passes or fails for good."""
    scores = logits_of(7, size=24, scale=1.5)
    ids, p = candidates(scores, sampling)
    sampler, draws = Sampler(sampling), 20_000
    counts = np.bincount([sampler.choose([], scores)[0] for _ in range(draws)], minlength=24)
    assert counts.sum() == counts[ids].sum()
    statistic = float((((counts[ids] - draws * p) ** 2) / (draws * p)).sum())
    freedom = ids.size - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_a_seed_fixes_the_tokens_on_every_platform() -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.95, seed=42))
    drawn = [sampler.choose([], np.arange(10, dtype=np.float32) / 4)[0] for _ in range(12)]
    assert drawn == [9, 7, 9, 8, 3, 9, 9, 9, 3, 7, 6, 9]


def test_without_a_seed_draws_differ() -> None:
    flat = np.zeros(1000, np.float32)
    first, second = (
        [s.choose([], flat)[0] for _ in range(8)] for s in (Sampler(Sampling(temperature=1)), Sampler(Sampling(temperature=1)))
    )
    assert first != second


def test_greedy_takes_the_lowest_id_of_the_best() -> None:
    token, logprob = Sampler(Sampling()).choose([], np.array([0, 3, 3, 1], np.float32))
    assert token == 1
    assert logprob == pytest.approx(3 - math.log(1 + 2 * math.exp(3) + math.e), abs=1e-6)


def test_repetition_penalty_looks_at_the_whole_sequence_and_counts_a_token_once() -> None:
    logits = np.array([4, -2, 3, 1], np.float32)
    seen = np.array([True, True, False, False])
    assert penalized(logits, seen, 2.0).tolist() == [2, -4, 3, 1]
    sampler, tokens = Sampler(Sampling(repetition_penalty=2.0)), [0, 1, 0]
    assert sampler.choose(tokens, logits)[0] == 2
    tokens.append(2)
    assert sampler.choose(tokens, logits)[0] == 0
    assert logits.tolist() == [4, -2, 3, 1]


def test_processors_come_after_the_penalty_and_before_the_filters_and_may_write_in_place() -> None:
    seen: list[list[float]] = []

    def note_and_forbid(tokens: object, scores: Array) -> Array:
        seen.append(scores.tolist())
        scores[0] = -np.inf
        return scores

    logits = np.array([4, 1, 0], np.float32)
    sampler = Sampler(Sampling(temperature=1, top_k=1, repetition_penalty=2, seed=0), [note_and_forbid])
    token, logprob = sampler.choose([0], logits)
    assert (token, seen) == (1, [[2.0, 1.0, 0.0]])
    assert logits[0] == 4
    assert logprob == pytest.approx(1 - math.log(math.exp(4) + math.e + 1), abs=1e-6), "the model's own probability"


def test_processors_that_leave_nothing_or_another_shape_are_refused() -> None:
    logits = np.zeros(3, np.float32)
    with pytest.raises(UsageError, match="left no token"):
        Sampler(Sampling(), [lambda t, x: np.full_like(x, -np.inf)]).choose([1], logits)
    for returned, found in {
        (2,): r"float32 of shape \(2,\)",
        (1, 3): r"float32 of shape \(1, 3\)",
    }.items():
        with pytest.raises(UsageError, match=rf"must return the logits \(float32 \[vocab\], here 3\); found {found}"):
            Sampler(Sampling(), [lambda t, x, shape=returned: np.zeros(shape, np.float32)]).choose([1], logits)
    for value, found in ((None, "NoneType"), ([0.0, 1.0, 2.0], "list"), (np.array([1, 2, 3]), "int")):
        with pytest.raises(UsageError, match=f"must return the logits.*found {found}"):
            Sampler(Sampling(), [lambda t, x, value=value: value]).choose([1], logits)  # type: ignore[list-item]


def test_a_processor_may_return_another_precision() -> None:
    chosen = Sampler(Sampling(), [lambda t, x: x + np.array([0.0, 0.0, 1.0])]).choose([1], np.zeros(3, np.float32))  # type: ignore[list-item]
    assert chosen[0] == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_engine_error(bad: float, temperature: float) -> None:
    with pytest.raises(EngineError, match="after 2 tokens"):
        Sampler(Sampling(temperature=temperature)).choose([1, 2], np.array([0, bad, 1], np.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("temperature", "1"),
        ("temperature", True),
        ("top_k", True),
        ("top_p", None),
        ("seed", 1.5),
        # Without a temperature nothing is drawn.
        ("top_k", 5),
        ("top_p", 0.9),
        ("min_p", 0.1),
        ("seed", 1),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=field):
        Sampling(**{field: value})


@pytest.mark.parametrize("count", [1, 3, 50, 80])
def test_the_likeliest_are_those_of_a_full_sort(count: int) -> None:
    logits = logits_of(3).round(0)  # with ties
    by_hand = sorted(range(logits.size), key=lambda i: (-logits[i], i))[:count]
    total = math.log(math.fsum(math.exp(float(v)) for v in logits))
    found = likeliest(logits, count)
    assert [i for i, _ in found] == by_hand
    assert [p for _, p in found] == pytest.approx([float(logits[i]) - total for i in by_hand], abs=1e-6)

"""The figures of divergence.py against their definitions, written out number by number."""

import math

import numpy as np
import pytest

from edgekit.divergence import compare, figures, join


def by_hand(p: list[float], q: list[float], token: int) -> tuple[float, float, float, float]:
    """KL, delta-p and both negative log-likelihoods of one position, in plain Python floats."""
    logs = []
    for row in (p, q):
        total = math.log(math.fsum(math.exp(v - max(row)) for v in row)) + max(row)
        logs.append([v - total for v in row])
    a, b = logs
    kl = math.fsum(math.exp(x) * (x - y) for x, y in zip(a, b, strict=True))
    return kl, math.exp(b[token]) - math.exp(a[token]), -a[token], -b[token]


def test_scores_and_figures() -> None:
    rng = np.random.default_rng(3)
    p = (rng.standard_normal((150, 40)) * 4).astype(np.float32)
    q = (p + rng.standard_normal(p.shape) * 0.3).astype(np.float32)
    tokens = rng.integers(0, 40, 150).tolist()
    scores = compare(p, q, tokens)
    wanted = np.array([by_hand([float(v) for v in a], [float(v) for v in b], t) for a, b, t in zip(p, q, tokens, strict=True)])
    got = np.stack([scores.kl, scores.delta_p, scores.reference_nll, scores.nll], axis=1)
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    found = figures(scores)
    assert found.positions == 150
    assert found.mean_kl.value == pytest.approx(wanted[:, 0].mean())
    assert found.mean_kl.error == pytest.approx(wanted[:, 0].std(ddof=1) / math.sqrt(150))
    assert found.rms_delta_p.value == pytest.approx(math.sqrt((wanted[:, 1] ** 2).mean()))
    assert found.perplexity.value == pytest.approx(math.exp(wanted[:, 3].mean()))
    assert found.perplexity_ratio.value == pytest.approx(found.perplexity.value / found.reference_perplexity.value)
    assert found.same_top.value == np.mean(p.argmax(-1) == q.argmax(-1))
    assert found.kl_median <= found.kl_p99 <= found.kl_p999 <= found.kl_max == scores.kl.max()


def test_equal_logits_and_a_constant_between_them_have_no_divergence() -> None:
    p = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    found = figures(compare(p, p + np.float32(2), [1, 2, 3, 4, 5]))
    assert found.mean_kl.value == pytest.approx(0, abs=1e-12)
    assert (found.same_top.value, found.perplexity_ratio.value) == (1, pytest.approx(1))


def test_joining_is_comparing_together() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.standard_normal((2, 10, 7)).astype(np.float32)
    parts = join([compare(p[:4], q[:4], [0] * 4), compare(p[4:], q[4:], [0] * 6)])
    np.testing.assert_array_equal(parts.kl, compare(p, q, [0] * 10).kl)


def test_a_single_position_has_no_error_and_misuse_is_refused() -> None:
    p = np.zeros((1, 3), np.float32)
    assert math.isnan(figures(compare(p, p, [0])).mean_kl.error)
    with pytest.raises(ValueError, match="tokens"):
        compare(p, p, [0, 1])
    with pytest.raises(ValueError, match="not finite"):
        compare(p, np.full((1, 3), np.nan, np.float32), [0])


@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0])
def test_the_definitions_are_those_of_scipy(noise: float) -> None:
    """An implementation that nobody here wrote; tests/oracle compares with PyTorch's as well."""
    special = pytest.importorskip("scipy.special")
    rng = np.random.default_rng(5)
    p = (rng.standard_normal((200, 997)) * 5).astype(np.float32)
    q = (p + noise * rng.standard_normal(p.shape)).astype(np.float32)
    tokens = rng.integers(0, 997, 200)
    scores, rows = compare(p, q, tokens.tolist()), np.arange(200)
    a, b = (special.softmax(x.astype(np.float64), axis=-1) for x in (p, q))
    np.testing.assert_allclose(scores.kl, special.rel_entr(a, b).sum(-1), atol=1e-6, rtol=0)
    np.testing.assert_allclose(scores.delta_p, (b - a)[rows, tokens], atol=1e-6, rtol=0)
    for found, logits in ((scores.reference_nll, p), (scores.nll, q)):
        np.testing.assert_allclose(found, -special.log_softmax(logits.astype(np.float64), axis=-1)[rows, tokens], atol=1e-6, rtol=0)

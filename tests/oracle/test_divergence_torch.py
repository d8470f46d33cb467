"""Definitions of divergence.py against PyTorch's own kl_div and cross_entropy."""

import numpy as np
import pytest

from edgekit.divergence import compare, figures

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0])
def test_kl_and_perplexity_are_those_of_torch(noise: float) -> None:
    rng = np.random.default_rng(5)
    p = (rng.standard_normal((300, 997)) * 5).astype(np.float32)
    q = (p + noise * rng.standard_normal(p.shape)).astype(np.float32)
    tokens = rng.integers(0, 997, 300)
    scores = compare(p, q, tokens.tolist())
    a, b = (torch.from_numpy(x).double() for x in (p, q))
    kl = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(scores.kl, kl.numpy(), atol=1e-6, rtol=0)
    entropy = torch.nn.functional.cross_entropy(b, torch.from_numpy(tokens))
    assert figures(scores).perplexity.value == pytest.approx(float(entropy.exp()), rel=1e-6)
    change = b.softmax(-1).gather(1, torch.from_numpy(tokens)[:, None]) - a.softmax(-1).gather(1, torch.from_numpy(tokens)[:, None])
    np.testing.assert_allclose(scores.delta_p, change[:, 0].numpy(), atol=1e-6, rtol=0)

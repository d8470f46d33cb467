"""The filters keep the same tokens with the same scores as transformers' logits processors and warpers, in its order."""

import numpy as np
import pytest

from edgekit.runtime.sampling import Sampling, candidates, penalized

torch = pytest.importorskip("torch")
logits_process = pytest.importorskip("transformers.generation.logits_process")
pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.0, top_k=13),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=1.0, min_p=0.05),
        Sampling(temperature=1.4, top_k=100, top_p=0.8, min_p=0.02, repetition_penalty=1.3),
        Sampling(temperature=0.5, top_k=5000, top_p=0.99, repetition_penalty=0.8),
    ],
)
def test_same_tokens_and_scores_as_transformers(sampling: Sampling, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(2000) * 3).astype(np.float32)
    tokens = rng.integers(0, 2000, 60)
    p = logits_process
    chain = [p.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)] if sampling.repetition_penalty != 1 else []
    chain += [p.TemperatureLogitsWarper(sampling.temperature)]
    chain += [p.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    chain += [p.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    chain += [p.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    scores = torch.from_numpy(logits[None].copy())
    for process in chain:
        scores = process(torch.from_numpy(tokens[None]), scores)
    expected = torch.softmax(scores[0].double(), -1).numpy()

    seen = np.zeros(2000, bool)
    seen[tokens] = True
    ids, probabilities = candidates(penalized(logits, seen, sampling.repetition_penalty), sampling)
    assert ids.tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(probabilities, expected[ids], rtol=1e-5)

"""The null engine: deterministic, and a session like any other."""

from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.engines.null.session import NullSession
from edgekit.errors import ArtifactError, TargetError
from tiny_artifact import build_tiny


def test_logits_are_the_same_on_every_platform() -> None:
    logits = NullSession(8, 10, seed=b"edgekit").forward([1, 2, 3])
    assert logits.dtype == np.float32
    expected = [-3.29, -2.951, 5.104, 3.281, 0.226, -4.374, -6.73, 3.656]
    np.testing.assert_allclose(logits, expected, atol=6e-4)


def test_every_token_counts_and_so_does_the_seed() -> None:
    base = NullSession(8, 10).forward([1, 2, 3])
    for other in (
        NullSession(8, 10).forward([2, 2, 3]),
        NullSession(8, 10).forward([1, 2, 4]),
        NullSession(8, 10, seed=b"x").forward([1, 2, 3]),
    ):
        assert (base != other).any()


def test_a_sequence_across_the_switch_differs_from_one_in_a_piece() -> None:
    stepwise, whole = NullSession(8, 10, switch=2), NullSession(8, 10, switch=2)
    stepwise.forward([1, 2])
    assert (stepwise.forward([3]) != whole.forward([1, 2, 3])).any()


def test_build_and_load_without_any_engine_installed(tmp_path: Path) -> None:
    artifact = build_tiny(tmp_path, "null")
    assert edgekit.load_artifact(artifact).manifest.conformance.greedy.computed_by == "null"
    with edgekit.load(artifact) as runtime:
        assert runtime.complete("the light", max_tokens=4).prompt_tokens > 0
    with pytest.raises(TargetError, match="speed"):
        build_tiny(tmp_path / "other", "null", options="speed = 1")
    (artifact / "null.json").write_text("x" * (artifact / "null.json").stat().st_size, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"null\.json"):
        edgekit.load(artifact)

"""The reference decoder against a plain float64 one written position by position, and its own promises."""

from pathlib import Path

import numpy as np
import pytest

from checkpoints import SWITCH, VARIANTS, make_checkpoint
from edgekit import reference
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.errors import ContextOverflow, UsageError
from edgekit.models import Model, open_model
from edgekit.models.decoder import DecoderConfig
from edgekit.reference import reference_logits, reference_logits_many


def opened(tmp_path: Path, name: str) -> Model:
    return open_model(open_checkpoint(make_checkpoint(tmp_path / name, name), Source("test", "local", None, None)))


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 320, n).tolist()


def rotated(x: np.ndarray, position: int, d: DecoderConfig, length: int) -> np.ndarray:
    """One head [head_dim] turned by its position, pair by pair."""
    freqs = d.rope.long_inv_freq if d.rope.is_long(length) else d.rope.inv_freq
    out = x.copy()
    half = d.rope.dims // 2
    for j, f in enumerate(freqs):
        c, s = np.cos(position * f) * d.rope.scale, np.sin(position * f) * d.rope.scale
        out[j], out[j + half] = x[j] * c - x[j + half] * s, x[j + half] * c + x[j] * s
    return out


def naive(model: Model, ids: list[int]) -> np.ndarray:
    d = model.decoder
    w = {name: model.tensor(name).astype(np.float64) for name in model.slices}
    norm = lambda x, name: x / np.sqrt((x * x).mean() + d.norm_eps) * w[name]  # noqa: E731
    hidden = [w["embed_tokens"][t] for t in ids]
    for i in range(d.layers):
        at = f"layers.{i}."
        q, k, v = [], [], []
        for p, h in enumerate(hidden):
            x = norm(h, at + "input_norm")
            for into, part, turn in ((q, "q_proj", True), (k, "k_proj", True), (v, "v_proj", False)):
                heads = (w[at + part] @ x + w.get(at + part + ".bias", 0)).reshape(-1, d.head_dim)
                into.append([rotated(y, p, d, len(ids)) if turn else y for y in heads])
        for p in range(len(ids)):
            seen = range(max(0, p - (d.windows[i] or 10**9) + 1), p + 1)
            mixed = []
            for head in range(d.heads):
                kv = head // (d.heads // d.kv_heads)
                score = np.array([q[p][head] @ k[o][kv] for o in seen]) / np.sqrt(d.head_dim)
                weight = np.exp(score - score.max())
                mixed.append(sum(a * v[o][kv] for a, o in zip(weight / weight.sum(), seen, strict=True)))
            hidden[p] = hidden[p] + w[at + "o_proj"] @ np.concatenate(mixed)
            x = norm(hidden[p], at + "post_attention_norm")
            gate = w[at + "gate_proj"] @ x
            hidden[p] = hidden[p] + w[at + "down_proj"] @ (gate / (1 + np.exp(-gate)) * (w[at + "up_proj"] @ x))
    head = w["embed_tokens"] if d.tied else w["lm_head"]
    return np.array([head @ norm(h, "norm") for h in hidden])


@pytest.mark.parametrize("name", VARIANTS)
def test_agrees_with_a_plain_decoder(name: str, tmp_path: Path) -> None:
    model = opened(tmp_path, name)
    for length in (5, SWITCH + 3):
        ours = reference_logits(model.decoder, model.tensor, tokens(length))
        assert ours.dtype == np.float32 and ours.shape == (length, 320)
        np.testing.assert_allclose(ours, naive(model, tokens(length)), atol=1e-4)


def test_several_at_once_are_as_one_by_one(tmp_path: Path) -> None:
    model = opened(tmp_path, "phi3-longrope")
    sequences = [tokens(n, seed=n) for n in (1, SWITCH, SWITCH + 1, 60)]
    asked: list[str] = []

    def tensor(name: str) -> np.ndarray:
        asked.append(name)
        return model.tensor(name)

    together = reference_logits_many(model.decoder, tensor, sequences)
    assert len(asked) == len(set(asked)) == len(model.slices)
    for ids, logits in zip(sequences, together, strict=True):
        np.testing.assert_allclose(logits, reference_logits(model.decoder, model.tensor, ids), atol=1e-5)
    last = reference_logits_many(model.decoder, model.tensor, sequences, last=2)
    assert [len(x) for x in last] == [1, 2, 2, 2]
    for all_of, some in zip(together, last, strict=True):
        np.testing.assert_allclose(some, all_of[-2:], atol=1e-5)
    assert reference_logits_many(model.decoder, model.tensor, []) == []


def test_the_future_changes_nothing_below_the_switch(tmp_path: Path) -> None:
    model = opened(tmp_path, "phi3-longrope")
    whole = reference_logits(model.decoder, model.tensor, tokens(SWITCH))
    np.testing.assert_allclose(whole[:10], reference_logits(model.decoder, model.tensor, tokens(SWITCH)[:10]), atol=1e-5)
    # One token more turns the whole sequence to the long frequencies.
    across = reference_logits(model.decoder, model.tensor, tokens(SWITCH + 1))
    assert np.abs(across[5:10] - whole[5:10]).max() > 0.01


def test_a_window_forgets(tmp_path: Path) -> None:
    model = opened(tmp_path, "mistral-window")
    a, b = tokens(60), tokens(60)
    b[0] = (b[0] + 1) % 320
    x, y = (reference_logits(model.decoder, model.tensor, ids) for ids in (a, b))
    reach = 2 * (12 - 1)  # through two layers
    assert np.abs(x[reach] - y[reach]).max() > 0
    np.testing.assert_array_equal(x[reach + 1 :], y[reach + 1 :])


@pytest.mark.parametrize("name", ["mistral-window", "qwen2"])
def test_chunks_do_not_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(tmp_path, name)
    whole = reference_logits(model.decoder, model.tensor, tokens(90))
    monkeypatch.setattr(reference, "SCORES", 4 * 90 * 7)
    monkeypatch.setattr(reference, "ROWS", 13)
    np.testing.assert_allclose(reference_logits(model.decoder, model.tensor, tokens(90)), whole, atol=1e-5)


def test_what_cannot_be_run(tmp_path: Path) -> None:
    model = opened(tmp_path, "llama")
    with pytest.raises(UsageError, match="at least one token"):
        reference_logits(model.decoder, model.tensor, [])
    with pytest.raises(UsageError, match=r"0\.\.319"):
        reference_logits(model.decoder, model.tensor, [0, 320])
    with pytest.raises(UsageError):
        reference_logits(model.decoder, model.tensor, [-1])
    with pytest.raises(ContextOverflow, match="97 tokens; the model's context holds 96"):
        reference_logits(model.decoder, model.tensor, [1] * 97)

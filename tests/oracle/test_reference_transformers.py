"""reference.py against transformers in float32, a full forward without cache, on small random checkpoints of every architecture."""

from pathlib import Path

import numpy as np
import pytest

from checkpoints import SWITCH, VARIANTS, Variant, make_checkpoint
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.models import open_model
from edgekit.reference import reference_logits_many

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (1, 7, SWITCH - 1, SWITCH, SWITCH + 1, SWITCH + 9, 96)
TOLERANCE = 1e-4


def oracle_for(directory: Path):
    """transformers' own model. Its 5.x no longer reads "su", the old name of LongRoPE, so it is shown the new one."""
    config = directory / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"type": "su"', '"type": "longrope"'), encoding="utf-8")
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def worst(directory: Path, record_property) -> float:
    """Largest absolute difference of any logit over all lengths."""
    model = open_model(open_checkpoint(directory, Source("test", "local", None, None)))
    oracle = oracle_for(directory)
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, model.decoder.vocab_size, n).tolist() for n in LENGTHS]
    ours = reference_logits_many(model.decoder, model.tensor, sequences)
    errors, size = [], 0.0
    with torch.no_grad():
        for tokens, logits in zip(sequences, ours, strict=True):
            theirs = oracle(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
            errors.append(float(np.abs(theirs - logits).max()))
            size = max(size, float(np.abs(theirs).max()))
    assert size > 1, "logits too small for the comparison to mean anything"
    record_property("max_abs_error", max(errors))
    print(f"max abs error {max(errors):.2e}, logits up to {size:.1f}")
    return max(errors)


@pytest.mark.parametrize("name", VARIANTS)
def test_agrees(name: str, tmp_path: Path, record_property) -> None:
    assert worst(make_checkpoint(tmp_path / "m", name), record_property) < TOLERANCE


@pytest.mark.parametrize("name", ["phi3-longrope-partial-tied", "mistral-head-dim", "llama3", "qwen2"])
def test_agrees_on_a_grid_and_in_shards(name: str, tmp_path: Path, record_property) -> None:
    assert worst(make_checkpoint(tmp_path / "m", name, grid=64, shards=3), record_property) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["phi3-longrope", "phi3-longrope-partial-tied", "mistral-window", "llama3", "qwen2-window", "llama-linear"]
)
def test_agrees_on_what_transformers_saves_itself(name: str, tmp_path: Path, record_property) -> None:
    """The config.json that transformers 5 writes (rope_parameters, layer_types, dtype) means the same as the older one it read."""
    directory = make_checkpoint(tmp_path / "m", name, dtype="F32")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved", max_shard_size="300KB")
    assert list((tmp_path / "saved").glob("model-00001-of-*.safetensors")), "meant to be sharded"
    assert worst(tmp_path / "saved", record_property) < TOLERANCE


def test_agrees_when_positions_reach_far(tmp_path: Path, record_property) -> None:
    """Thousands of positions: the angles of RoPE must be formed as transformers forms them."""
    long = {"max_position_embeddings": 4096, "num_hidden_layers": 1, "original_max_position_embeddings": 64}
    variant = Variant("phi3", {**VARIANTS["phi3-longrope"].config, **long, "sliding_window": 500})
    directory = make_checkpoint(tmp_path / "m", variant, dtype="F32")
    model = open_model(open_checkpoint(directory, Source("test", "local", None, None)))
    oracle = oracle_for(directory)
    tokens = np.random.default_rng(2).integers(0, 320, 3000).tolist()
    ours = reference_logits_many(model.decoder, model.tensor, [tokens], last=40)[0]
    with torch.no_grad():
        theirs = oracle(torch.tensor([tokens]), use_cache=False).logits[0, -40:].numpy()
    error = float(np.abs(theirs - ours).max())
    record_property("max_abs_error", error)
    assert error < TOLERANCE


def test_frequencies_are_those_of_transformers(tmp_path: Path) -> None:
    for name in VARIANTS:
        directory = make_checkpoint(tmp_path / name, name)
        rope = open_model(open_checkpoint(directory, Source("test", "local", None, None))).decoder.rope
        oracle = oracle_for(directory).model.rotary_emb
        np.testing.assert_allclose(np.array(rope.inv_freq), oracle.inv_freq.numpy(), rtol=2.5e-7, err_msg=name)
        assert rope.scale == pytest.approx(oracle.attention_scaling, rel=1e-12), name

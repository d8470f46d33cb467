"""Keys of config.json that do nothing in transformers, shown by its own logits with and without them; and other names of tensors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from checkpoints import IGNORED, VARIANTS, Variant, make_checkpoint, write_safetensors
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.models import open_model
from edgekit.reference import reference_logits_many

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = np.random.default_rng(1).integers(0, 320, 90).tolist()
TOLERANCE = 1e-4


def theirs(directory: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()


def ours(directory: Path) -> np.ndarray:
    model = open_model(open_checkpoint(directory, Source("test", "local", None, None)))
    return reference_logits_many(model.decoder, model.tensor, [TOKENS])[0]


@pytest.mark.parametrize(("name", "changes"), IGNORED)
def test_transformers_ignores_them_too(name: str, changes: dict[str, object], tmp_path: Path) -> None:
    variant = VARIANTS[name]
    plain = theirs(make_checkpoint(tmp_path / "plain", name, dtype="F32"))
    changed = make_checkpoint(tmp_path / "changed", Variant(variant.model_type, {**variant.config, **changes}), dtype="F32")
    np.testing.assert_array_equal(theirs(changed), plain)
    assert np.abs(ours(changed) - plain).max() < TOLERANCE


@pytest.mark.parametrize("types", [["sliding_attention", "full_attention"], ["full_attention", "sliding_attention"]])
def test_layers_that_slide_by_name(types: list[str], tmp_path: Path) -> None:
    variant = Variant("qwen2", {"use_sliding_window": True, "sliding_window": 12, "layer_types": types})
    directory = make_checkpoint(tmp_path / "m", variant, dtype="F32")
    assert np.abs(ours(directory) - theirs(directory)).max() < TOLERANCE


def head_only(tensors: dict[str, np.ndarray]) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def no_prefix(tensors: dict[str, np.ndarray]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


@pytest.mark.parametrize("edit", [head_only, no_prefix])
@pytest.mark.parametrize("name", ["phi3-longrope-partial-tied", "llama3", "qwen2-tied"])
def test_tied_weights_under_other_names(name: str, edit: Callable[[dict[str, np.ndarray]], None], tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "m", name, dtype="F32")
    stored = open_checkpoint(directory, Source("test", "local", None, None))
    tensors = {tensor: stored.rows(tensor) for tensor in stored.tensors}
    edit(tensors)
    write_safetensors(directory / "model.safetensors", tensors)
    assert np.abs(ours(directory) - theirs(directory)).max() < TOLERANCE

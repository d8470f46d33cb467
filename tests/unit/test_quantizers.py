"""The comparison of quantizers: its checkpoints, edgekit's side of it, and how its tables name winners and losers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.catalog import resolve
from edgekit.models import Model, open_model
from edgekit.progress import silent
from edgekit.reference import reference_logits
from edgekit.runtime.tokenizer import open_tokenizer
from tiny_phi.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "docs")]

import measured  # noqa: E402

import fidelity_own  # noqa: E402

DATA = ROOT / "bench" / "data"


def opened(name: str) -> Model:
    return open_model(resolve(str(DATA / f"tiny-{name}"), progress=silent))


@pytest.mark.parametrize("name", ["mistral", "llama"])
def test_the_checkpoints_are_what_the_script_trains(name: str) -> None:
    model = opened(name)
    assert json.loads((DATA / f"tiny-{name}" / "config.json").read_text(encoding="utf-8")) == SHAPES[name].config
    tokens = open_tokenizer(DATA / f"tiny-{name}").encode("<|user|>\nturn on the kitchen light<|end|>\n<|assistant|>\n")
    logits = reference_logits(model.decoder, model.tensor, tokens).astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    loss = -logits[np.arange(len(tokens) - 1), tokens[1:]].mean()
    assert loss < 0.6 * np.log(model.decoder.vocab_size), "far better than chance"


def test_the_channels_have_outliers() -> None:
    weight = np.abs(opened("llama").tensor("layers.0.gate_proj")).mean(axis=0)
    typical = np.median(weight)
    assert (weight > 4 * typical).sum() >= 4
    assert (weight < typical / 4).sum() >= 4


def test_edgekit_is_measured_as_it_builds() -> None:
    model = opened("llama")
    plain = fidelity_own.Way("int4-g128", "minmax")(model, [])
    assert not plain.calibrated
    assert plain.bits["layers.0.q_proj"] / (256 * 256) == 4 + 20 / 128
    assert set(plain.weights) == set(model.decoder.weight_shapes())
    error = np.abs(plain.weights["layers.0.q_proj"] - model.tensor("layers.0.q_proj"))
    assert 0 < error.mean() < 0.1 * np.abs(model.tensor("layers.0.q_proj")).mean() + 0.1


def row(name: str, by: str, bits: float, kl: float, *, calibrated: bool = False) -> dict[str, object]:
    return {"name": name, "by": by, "calibrated": calibrated, "layers": {"bits": bits, "mean_kl": kl}}


def test_losses_are_shown() -> None:
    rows = [
        row("edgekit plain", "edgekit", 4.2, 0.004),
        row("edgekit fitted", "edgekit", 4.2, 0.001, calibrated=True),
        row("edgekit large", "edgekit", 5.0, 0.0001, calibrated=True),
        row("other", "x", 4.5, 0.002),
        row("small", "x", 4.0, 0.02),
    ]
    table = measured.duels(rows)
    assert "| other | 4.500 | 0.002000 | plain | **lost**, 2.0x more | fitted | won, 2.0x less |" in table
    assert "| small | 4.000 | 0.020000 | none |  | none |  |" in table

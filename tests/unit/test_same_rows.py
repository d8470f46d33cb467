"""A real model's answers do not depend on what was asked before, with edgekit's own products and with the engines'."""

from pathlib import Path

import pytest

import edgekit
from edgekit.runtime import Sampling
from histories import check
from smollm2 import smollm2

ANSWER = 8
"""Tokens."""
ASKED = ("What is the capital of France?", "Copy this twice: milk, bread, butter, eggs.", "Name three fruits.")
SAMPLINGS = (Sampling(), Sampling(temperature=0.9, top_p=0.95, seed=5))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2(tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="module", params=["cpu", "intel-cpu"])
def artifact(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param) / "artifact"
    edgekit.build(model, target=request.param, scheme="int4-g32", output=out, verify=False)
    return out


@pytest.mark.parametrize("products", ["edgekit", "engine"])
def test_a_real_models_logits_and_answers(artifact: Path, products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, engine in (("EDGEKIT_ONNX_PRODUCTS", "onnxruntime"), ("EDGEKIT_OPENVINO_PRODUCTS", "openvino")):
        monkeypatch.setenv(variable, products if products == "edgekit" else engine)
        # Half of what it is, so that a shorter prompt has a whole piece.
        monkeypatch.setattr(f"edgekit.engines.{engine.removesuffix('runtime')}.session.PIECE", 64)
    with edgekit.load(artifact) as runtime:
        assert (runtime.session.grain == 1) == (products == "edgekit")
        text = runtime.tokenizer.encode(" ".join(ASKED) * 8)
        check(runtime.session, None, text[:80], text[80:82], text[3:])
        lookups = (0, 4) if products == "edgekit" else (0,)
        asks = [([{"role": "user", "content": asked}], sampling) for asked in ASKED for sampling in SAMPLINGS]
        first = [runtime.complete(messages, sampling=sampling, max_tokens=ANSWER).tokens for messages, sampling in asks]
        for lookup in lookups:
            for at in (3, 0, 5, 2, 2, 1, 4):
                messages, sampling = asks[at]
                assert runtime.complete(messages, sampling=sampling, max_tokens=ANSWER, lookup=lookup).tokens == first[at]

"""openvino_genai opens the artifact unaided and says what the reference and the runtime do."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino_genai")

import openvino
import openvino_genai as genai

import edgekit
from checkpoints import SWITCH, VARIANTS
from onnx_artifact import random_tokens
from openvino_artifact import EXACT, Built, build

TOKENS = random_tokens(60)
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "KV_CACHE_PRECISION": "f32"}
TOLERANCE = 1e-3
"""Of logits that reach 7: paged attention rounds otherwise."""


def continued(pipeline: "genai.LLMPipeline", prompt: list[int], count: int) -> list[int]:
    config = genai.GenerationConfig(max_new_tokens=count, do_sample=False, ignore_eos=True)
    ids = np.array([prompt], np.int64)
    result = pipeline.generate(genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))), config)
    return list(result.tokens[0])


def greedy_by_the_reference(built: Built, prompt: list[int], said: list[int]) -> bool:
    """Each token is the reference's most likely one, or ties with it."""
    for i, token in enumerate(said):
        logits = built.reference(prompt + said[:i])
        if logits[token] < logits.max() - TOLERANCE:
            return False
    return True


PAGED = ("phi3-window", "mistral-window", "llama3", "qwen2")
"""Of the variants that by default run in paged attention, those that run in the other as well."""


@pytest.mark.parametrize(
    ("variant", "backend"), [*((v, {}) for v in VARIANTS), *((v, {"ATTENTION_BACKEND": "SDPA"}) for v in PAGED)], ids=str
)
def test_it_continues_as_the_reference_does(tmp_path: Path, variant: str, backend: dict[str, str]) -> None:
    """Both of its attention backends (the default is paged attention but for LongRoPE); below, at and beyond the LongRoPE switch and
    the windows, in prompts that begin alike."""
    built = build(tmp_path, variant, options={**EXACT, "tokenizer": True})
    pipeline = genai.LLMPipeline(str(built.directory), "CPU", **backend, **FLOAT32)
    for length, count in ((1, 8), (9, SWITCH - 9), (SWITCH, 1), (SWITCH + 1, 8), (40, 8)):
        said = continued(pipeline, TOKENS[:length], count)
        assert len(said) == count and greedy_by_the_reference(built, TOKENS[:length], said), (length, said)


def test_paged_attention_refuses_longrope(tmp_path: Path) -> None:
    """Its prefix cache would mix keys of both factors (graph.rotary)."""
    built = build(tmp_path, "phi3-longrope", options={**EXACT, "tokenizer": True})
    with pytest.raises(RuntimeError):
        genai.LLMPipeline(str(built.directory), "CPU", scheduler_config=genai.SchedulerConfig(), **FLOAT32)


def test_by_default_it_does_not_cross_the_switch(tmp_path: Path) -> None:
    """Beyond it, it would go on with keys that were rotated with the short factors."""
    built = build(tmp_path, "phi3-longrope", options={**EXACT, "tokenizer": True})
    pipeline = genai.LLMPipeline(str(built.directory), "CPU", **FLOAT32)
    assert pipeline.get_generation_config().max_length == SWITCH
    config = pipeline.get_generation_config()
    config.ignore_eos = True
    ids = np.array([TOKENS[:10]], np.int64)
    result = pipeline.generate(genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))), config)
    assert len(result.tokens[0]) == SWITCH - 10


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tiny") / "tiny-phi"
    edgekit.build("tiny-phi", target="intel-cpu", output=output)
    return output


UNDERSTOOD = ["turn on the kitchen light", "set the bedroom thermostat to 21 degrees", "What is 12 plus 30?"]


@pytest.mark.parametrize(
    ("said", "products"), [*((said, wish) for said in UNDERSTOOD for wish in ("", "openvino")), ("héllo, 2×3?", "openvino")]
)
def test_its_answers_to_tiny_phi_are_ours(tiny: Path, said: str, products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own tokenizer, chat template, loop and detokenizer, with nothing set but the length. What the model knows no answer to depends
    on rounding, and so on whose products compute it."""
    monkeypatch.setenv("EDGEKIT_OPENVINO_PRODUCTS", products)
    with edgekit.load(tiny) as runtime:
        ours = runtime.complete([{"role": "user", "content": said}], max_tokens=60)
    pipeline = genai.LLMPipeline(str(tiny), "CPU")
    assert str(pipeline.generate(said, max_new_tokens=60)) == ours.text
    assert ours.finish == "stop"


def test_its_tokenizer_is_the_models_own(tiny: Path) -> None:
    with edgekit.load(tiny) as runtime:
        tokenizer = genai.Tokenizer(str(tiny))
        for vector in runtime.manifest.conformance.encode:
            if vector.text:
                ids = tokenizer.encode(vector.text, add_special_tokens=False).input_ids.data[0].tolist()
                assert ids == list(vector.ids), vector.text
        assert "openvino_tokenizer" not in runtime.manifest.engine.details

"""The embedded model works, and its published figures are those of the weights that ship."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import edgekit
from edgekit.runtime import Runtime
from tiny_phi import exam, text

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "toolkit/edgekit/tiny_phi"
DIVERGENCE = json.loads((ROOT / "bench/results/divergence.json").read_text(encoding="utf-8"))
FIGURES = json.loads((ROOT / "bench/results/tiny_phi.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    directory = tmp_path_factory.mktemp("tiny-phi") / "artifact"
    edgekit.build("tiny-phi", target="cpu", output=directory)
    with edgekit.load(directory) as opened:
        yield opened


def test_it_answers_held_out_prompts_before_and_beyond_the_switch(runtime: Runtime) -> None:
    prompts = list(exam.prompts(3, lambda messages: len(runtime.tokenizer.encode(runtime.render(messages))), seed=11))
    wrong = [p for p in prompts if runtime.complete(p.messages, max_tokens=60).text != p.answer]
    assert len(prompts) == 3 * len(text.TASKS) * len(exam.CONTEXTS)
    assert len(wrong) <= len(prompts) // 10, [(p.context, p.messages[-1], p.answer) for p in wrong]


def test_answers_that_cross_the_switch_are_computed_anew_there(runtime: Runtime) -> None:
    switch = runtime.manifest.context.rope_switch
    assert switch == 256
    rng, right = Random(2), 0
    for _ in range(5):
        asked = crossing(runtime, rng, switch)
        steps = list(runtime.chat(asked.messages, max_tokens=60))
        assert max(step.computed for step in steps[1:]) == switch + 1
        right += "".join(step.text for step in steps) == asked.answer
    assert right >= 4


def crossing(runtime: Runtime, rng: Random, switch: int) -> text.Examination:
    """A command (its answer has some twenty tokens) whose prompt ends shortly before the switch."""
    while True:
        asked = text.examination(rng, "command", rng.randrange(15, 27))
        if switch - 12 < len(runtime.tokenizer.encode(runtime.render(asked.messages))) <= switch:
            return asked


def test_figures_hold_what_is_promised() -> None:
    bf16, schemes = FIGURES["scores"]["bf16"], [name for name in FIGURES["scores"] if name != "bf16"]
    assert {"int4-g32", "int4-g128"} <= set(schemes)
    for context in exam.CONTEXTS:
        assert exam.mean(bf16, context) >= 0.95
    for context in exam.CONTEXTS:
        assert exam.mean(FIGURES["scores"]["int4-g128"], context) >= 0.95 * exam.mean(bf16, context)


def test_figures_are_of_the_weights_that_ship() -> None:
    weights = MODEL / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert FIGURES["weights_sha256"] == DIVERGENCE["weights_sha256"] == digest
    assert weights.stat().st_size <= 12_000_000

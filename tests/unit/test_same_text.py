"""Two engines, one answer: sampled text with the same seed, from the same weights."""

from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.runtime import Runtime, Sampling
from tiny_artifact import write_target

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

MARGIN = 1e-3
"""Of logits that reach 16: engines that differ by less take the same draw, unless it falls into a gap of that size."""
PROMPTS = ("turn on the kitchen light", "What is 12 plus 30?", "Hello, who are you?", "set the bedroom thermostat to 21 degrees")
EXACT = {
    "onnx": "accuracy_level = 0",
    "openvino": 'precision = "float32"\ndynamic_quantization = "off"\nkv_cache = "float32"\ntokenizer = false',
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    for engine, options in EXACT.items():
        target = write_target(folder / f"{engine}.toml", engine, context=512, options=options)
        edgekit.build("tiny-phi", target=target, output=folder / engine)
    return {engine: folder / engine for engine in EXACT}


def difference(one: Runtime, other: Runtime, tokens: list[int]) -> float:
    """Greatest difference of the logits after ``tokens``."""
    rows = []
    for runtime in (one, other):
        runtime.session.rewind(0)
        rows.append(runtime.session.forward(tokens))
    return float(np.abs(rows[0] - rows[1]).max())


@pytest.mark.parametrize("seed", range(5))
def test_sampled_text_is_the_same_on_both(artifacts: dict[str, Path], seed: int) -> None:
    with edgekit.load(artifacts["onnx"]) as one, edgekit.load(artifacts["openvino"]) as other:
        for prompt in PROMPTS:
            chat = [{"role": "user", "content": prompt}]
            sampling = Sampling(temperature=1.3, top_p=0.98, seed=seed)
            a, b = (runtime.complete(chat, sampling=sampling, max_tokens=48) for runtime in (one, other))
            if a.tokens == b.tokens:
                assert a.text == b.text
                continue
            at = next(i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y)
            ids = [*one.tokenizer.encode(one.render(chat)), *a.tokens[:at]]
            off = difference(one, other, ids)
            assert off > MARGIN, f"{prompt!r}, seed {seed}: token {at} differs though the logits are within {off:g}"
            print(f"{prompt!r}, seed {seed}: token {at} differs, the logits by {off:g}")

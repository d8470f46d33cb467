"""onnxruntime-genai opens the artifact unaided and computes what the reference does."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import SWITCH, VARIANTS, Variant, longrope
from edgekit.engines.onnx.genai_config import MAX_LENGTH, PHI3_RESTART
from edgekit.reference import reference_logits
from onnx_artifact import ROUNDING, build, random_tokens, skip_unless_runnable

og = pytest.importorskip("onnxruntime_genai", minversion="0.18", reason="older ones refuse logits of the last position only")

TOKENS = random_tokens(96)


def generator(model: "og.Model", tokens: list[int], max_length: int | None = None) -> "og.Generator":
    params = og.GeneratorParams(model)
    if max_length is not None:
        params.set_search_options(max_length=max_length)
    new = og.Generator(model, params)
    new.append_tokens(np.array(tokens, np.int32))
    return new


def last_logits(generator: "og.Generator") -> NDArray[np.float32]:
    return np.array(generator.get_logits()).reshape(-1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_reference(tmp_path: Path, variant: str) -> None:
    built = build(tmp_path, variant)
    skip_unless_runnable(built)
    model = og.Model(str(built.directory))
    for length in (1, 9, 13, SWITCH, SWITCH + 1, 60):
        assert np.abs(last_logits(generator(model, TOKENS[:length], max_length=96)) - built.reference(TOKENS[:length])).max() < ROUNDING
    for begin, end in ((3, SWITCH), (40, 55)):
        decoding = generator(model, TOKENS[:begin], max_length=96)
        for i in range(begin, end):
            decoding.append_tokens(np.array(TOKENS[i : i + 1], np.int32))
        assert np.abs(last_logits(decoding) - built.reference(TOKENS[:end])).max() < ROUNDING


def test_by_default_it_does_not_cross_a_switch_that_it_does_not_know(tmp_path: Path) -> None:
    """Its sequences end at the switch: beyond it, it would go on with keys that were rotated with the short factors."""
    model = og.Model(str(build(tmp_path, "phi3-longrope", stop=[319]).directory))
    running = generator(model, TOKENS[: SWITCH - 3])
    while not running.is_done():
        running.generate_next_token()
    assert len(running.get_sequence(0)) == SWITCH
    with pytest.raises(RuntimeError, match="exceeds max length"):
        generator(model, TOKENS[: SWITCH + 1])


@pytest.mark.parametrize("variant", ["phi3", "mistral-window", "llama3", "qwen2"])
def test_its_generation_stops_at_each_stop_id(tmp_path: Path, variant: str) -> None:
    """The stop set holds the token that greedy decoding of the reference comes to, once as its first and once as its second id."""
    (tmp_path / "plain").mkdir()
    built = build(tmp_path / "plain", variant)
    prompt, said = TOKENS[:6], list[int]()
    while len(said) < 20:
        said.append(int(built.reference(prompt + said).argmax()))
    never = next(t for t in range(300) if t not in said)
    end = next(i for i in range(4, 20) if said[i] not in said[:i])
    for name, stop in (("first", [said[end], never]), ("second", [never, said[end]])):
        (tmp_path / name).mkdir()
        model = og.Model(str(build(tmp_path / name, variant, stop=stop).directory))
        running = generator(model, prompt)
        while not running.is_done():
            running.generate_next_token()
        assert list(running.get_sequence(0)) == prompt + said[:end]  # the stop id itself is not kept


def test_generation_ends_at_the_context(tmp_path: Path) -> None:
    built = build(tmp_path, "llama", context=40, stop=[319])
    running = generator(og.Model(str(built.directory)), TOKENS[:6])
    while not running.is_done():
        running.generate_next_token()
    assert len(running.get_sequence(0)) <= 40


def test_its_restart_at_the_switch_of_phi3_is_used(tmp_path: Path) -> None:
    """At 4096, the switch of the real models, genai itself computes the sequence anew with the long factors."""
    config = {"original_max_position_embeddings": PHI3_RESTART, "max_position_embeddings": 4200, "rope_scaling": longrope(16)}
    built = build(tmp_path, Variant("phi3", config), stop=[319])
    running = generator(og.Model(str(built.directory)), random_tokens(PHI3_RESTART - 1), max_length=4200)
    for _ in range(3):
        running.generate_next_token()
    sequence = [int(t) for t in running.get_sequence(0)]
    assert len(sequence) == PHI3_RESTART + 2
    decoder = built.model.decoder
    said = [int(row.argmax()) for row in reference_logits(decoder, built.model.tensor, sequence[:-1], last=1)]
    assert said == sequence[-1:]


def test_a_long_context_reserves_no_giant_cache(tmp_path: Path) -> None:
    built = build(tmp_path, Variant("llama", {"max_position_embeddings": 131072}), stop=[319])
    assert generator(og.Model(str(built.directory)), TOKENS[:4]).token_count() == 4
    assert f'"max_length": {MAX_LENGTH}' in (built.directory / "genai_config.json").read_text(encoding="utf-8")


def test_its_tokenizer_opens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    built = build(tmp_path, "phi3")
    tokenizer = og.Tokenizer(og.Model(str(built.directory)))
    # Single words: where a space and a word could merge, genai's tokenizer may cut otherwise than the tokenizers library.
    text = "<|user|>\nhello<|end|>\n"
    assert list(tokenizer.encode(text)) == Tokenizer.from_file(str(built.directory / "tokenizer.json")).encode(text).ids

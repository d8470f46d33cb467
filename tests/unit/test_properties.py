"""Properties that hold for whatever comes: packing, the quantizer's bound in C and in NumPy, drawing, stop strings over tokens, rewind."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

import edgekit
from edgekit.engines.null.session import NullSession
from edgekit.quant import QuantizedTensor, dequantize, native, quantize
from edgekit.quant.pack import pack_nibbles, pack_zero_points, unpack_nibbles, unpack_zero_points
from edgekit.quant.scheme import Format
from edgekit.runtime import Runtime, Sampling
from edgekit.runtime.sampling import Sampler, candidates
from tiny_artifact import build_tiny

NIBBLES = st.integers(0, 15)


@settings(deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(0, 5), st.integers(0, 9).map(lambda n: 2 * n)), elements=NIBBLES))
def test_packing_can_be_undone(values: NDArray[np.uint8]) -> None:
    packed = pack_nibbles(values)
    assert packed.shape == (values.shape[0], values.shape[1] // 2)
    np.testing.assert_array_equal(unpack_nibbles(packed), values)
    np.testing.assert_array_equal(packed & 15, values[:, 0::2])


@settings(deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=NIBBLES))
def test_packing_zero_points_can_be_undone_whatever_their_number(zeros: NDArray[np.uint8]) -> None:
    packed = pack_zero_points(zeros)
    assert packed.shape[1] == -(-zeros.shape[1] // 2)
    np.testing.assert_array_equal(unpack_zero_points(packed, zeros.shape[1]), zeros)
    assert zeros.shape[1] % 2 == 0 or (packed[:, -1] < 16).all()


@settings(max_examples=80, deadline=None)
@given(
    weight=arrays.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 140)), elements=st.floats(-1000, 1000, width=32, allow_subnormal=True)
    ),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 128]),
    search=st.booleans(),
    compiled=st.booleans(),
)
def test_what_is_quantized_comes_back_within_the_bound(
    weight: NDArray[np.float32], bits: int, group: int, search: bool, compiled: bool
) -> None:
    """By min/max: half a step, and what rounding the scale moved the edge by. A searched scale has a squared error that is no larger."""
    plain = quantized(weight, Format(bits, group), False, compiled)
    error = np.abs(dequantize(plain).astype(np.float64) - weight)
    edge = 15 / 128 if bits == 4 else 255 / 2048
    steps = np.repeat(plain.scales.astype(np.float64), group, axis=1)[:, : weight.shape[1]]
    assert (error <= (0.5 + edge) * steps * (1 + 1e-6)).all()
    if search and bits == 4:
        better = quantized(weight, Format(bits, group), True, compiled)
        found = np.square(dequantize(better).astype(np.float64) - weight).sum()
        assert found <= np.square(error).sum() * (1 + 1e-4) + 1e-12


def quantized(weight: NDArray[np.float32], form: Format, search: bool, compiled: bool) -> QuantizedTensor:
    with mock.patch.object(native, "KERNEL", native.KERNEL if compiled else None):
        return quantize(weight, form, name="w", search=search)


logits = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-60, 60, width=32))
warm = st.builds(
    Sampling,
    temperature=st.floats(0.05, 10),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 1 << 32),
)


@settings(max_examples=200, deadline=None)
@given(scores=logits, sampling=warm)
def test_what_is_drawn_from_is_a_distribution_in_the_order_of_the_logits(scores: NDArray[np.float32], sampling: Sampling) -> None:
    ids, p = candidates(scores, sampling)
    assert ids.size >= 1
    assert math.isclose(float(p.sum()), 1, rel_tol=1e-9)
    tie = 1e-5  # two logits nearer than this may be one after the temperature, and their order is then that of their ids
    assert scores[ids].max() >= scores.max() - tie
    order = np.argsort(scores[ids], kind="stable")
    assert (np.diff(p[order]) >= -1e-12).all(), "a greater logit is never less likely"
    left_out = np.setdiff1d(np.arange(scores.size), ids)
    assert left_out.size == 0 or scores[left_out].max() <= scores[ids].min() + tie
    assert Sampler(sampling).choose([], scores)[0] in ids


@settings(max_examples=60, deadline=None)
@given(scores=arrays.arrays(np.float32, st.integers(2, 8), elements=st.floats(-2, 2, width=32)), sampling=warm)
def test_draws_follow_the_distribution_they_are_from(scores: NDArray[np.float32], sampling: Sampling) -> None:
    """No probability is off by more than five standard deviations in 400 draws, plus one draw for the very rare."""
    ids, p = candidates(scores, sampling)
    sampler, draws = Sampler(sampling), 400
    counts = np.bincount([sampler.choose([], scores)[0] for _ in range(draws)], minlength=scores.size)[ids]
    assert counts.sum() == draws
    assert (np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p)) + 2).all()


class Script(NullSession):
    """After the prompt, token n of the answer is ``script[n]``."""

    def __init__(self, vocab_size: int, context: int, prompt: int, script: Sequence[int]) -> None:
        super().__init__(vocab_size, context)
        self.prompt, self.script = prompt, script

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        values = super().forward(tokens)
        at = self.position - self.prompt
        values[self.script[at] if at < len(self.script) else 0] = 100
        return values


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    artifact: Path = build_tiny(tmp_path_factory.mktemp("properties"), "null", "llama")
    with edgekit.load(artifact) as runtime:
        yield runtime


@settings(max_examples=150, deadline=None)
@given(
    text=st.text("the lamp on\né👩", min_size=1, max_size=30),
    stops=st.lists(st.text("the lamp on\né👩", min_size=1, max_size=6), max_size=3),
    bytewise=st.booleans(),
)
def test_stop_strings_end_an_answer_wherever_its_tokens_are_cut(plain: Runtime, text: str, stops: list[str], bytewise: bool) -> None:
    """In words of the vocabulary, or with every byte a token of its own, so that a stop string ends in the middle of anything."""
    single = [plain.tokenizer.backend.token_to_id(symbol) for symbol in _symbols(text)]
    said = single if bytewise else plain.tokenizer.encode(text)
    if len(said) > 80:
        return
    session = Script(plain.manifest.tokens.vocab_size, plain.context, 2, said)
    runtime = Runtime(plain.manifest, plain.tokenizer, None, session)
    steps = list(runtime.generate([5, 6], stop=stops, max_tokens=len(said)))
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert "".join(step.text for step in steps) == (text[: min(ends)[1]] if ends else text)
    assert steps[-1].finish == ("stop" if ends else "length")


def _symbols(text: str) -> list[str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [n for n in range(256) if n not in printable]
    return [chr(n) if n in printable else chr(256 + others.index(n)) for n in text.encode()]


@settings(max_examples=100, deadline=None)
@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.lists(st.integers(0, 7), min_size=1, max_size=5)), st.tuples(st.just("back"), st.floats(0, 1))
        ),
        max_size=12,
    )
)
def test_after_any_rewinding_a_session_is_as_a_fresh_one(moves: list[tuple[str, list[int] | float]]) -> None:
    session, held = NullSession(8, 1000), list[int]()
    for kind, what in moves:
        if kind == "add":
            assert isinstance(what, list)
            values = session.forward(what)
            held += what
            assert (values == NullSession(8, 1000).forward(held)).all()
        else:
            assert isinstance(what, float)
            held = held[: int(what * len(held))]
            session.rewind(len(held))
        assert session.position == len(held)

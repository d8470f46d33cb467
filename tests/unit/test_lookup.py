"""Prompt lookup: what is guessed, and that the answer is the one without it, whatever ends it and wherever it is broken off."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgekit
from command import Edge
from edgekit.engines.null.session import NullSession
from edgekit.errors import UsageError
from edgekit.runtime import Runtime, Sampling, Step
from edgekit.runtime.generate import generate
from edgekit.runtime.lookup import LONGEST, SHORTEST, Lookup
from edgekit.runtime.prefix import PrefixCache
from tiny_artifact import build_tiny

SWITCH, CONTEXT, VOCAB = 24, 96, 320


class Repeating(NullSession):
    """Says what depends mostly on the last two tokens, so it repeats itself and its prompt, and a little on all of them and on how they
    were computed, so a wrong cache shows in the log-probabilities. Notes every call: what it held before, how many came, rows asked."""

    def __init__(self, switch: int | None = SWITCH, context: int = CONTEXT) -> None:
        super().__init__(VOCAB, context, switch=switch)
        self.tokens: list[int] = []
        self.calls: list[tuple[int, int, int]] = []
        self.interrupt = False

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        return self._rows(tokens, last, super().forward_last(tokens, last))

    def rewind(self, length: int) -> None:
        super().rewind(length)
        del self.tokens[length:]

    def _rows(self, tokens: Sequence[int], last: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls.append((len(self.tokens), len(tokens), last))
        self.tokens += tokens
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        rows = rows * np.float32(0.01)
        for row, end in zip(rows, range(len(self.tokens) - last + 1, len(self.tokens) + 1), strict=True):
            a, b = [0, *self.tokens][end - 1 : end + 1]
            row[65 : 65 + 8] += np.random.default_rng([a % 3, b % 5]).normal(4, 1.5, 8)
        return rows


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("lookup"), "null")


@pytest.fixture(scope="module")
def plain(artifact: Path) -> Iterator[Runtime]:
    with edgekit.load(artifact) as runtime:
        yield runtime


def repeating(plain: Runtime, stop: tuple[int, ...] = (), switch: int | None = SWITCH) -> tuple[Runtime, Repeating]:
    session = Repeating(switch)
    context, tokens = replace(plain.manifest.context, rope_switch=switch), replace(plain.manifest.tokens, stop=stop)
    return Runtime(replace(plain.manifest, context=context, tokens=tokens), plain.tokenizer, None, session), session


def essence(steps: Sequence[Step]) -> list[tuple[object, ...]]:
    """What a step is but for its costs."""
    return [(s.token, s.text, s.finish, s.logprob) for s in steps]


@pytest.mark.parametrize(
    ("tokens", "most", "draft"),
    [
        ([1, 2, 3, 4, 9, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 9, 1, 2], 9, [3, 4, 9, 1, 2, 3, 4, 9, 1]),  # on into itself
        ([5, 5, 5], 4, [5, 5, 5, 5]),
        ([1, 2, 3, 8, 2, 4, 1, 2], 1, [3]),
        ([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1, [3]),  # three match, before two that are nearer
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, [4]),  # the latest of equals
        ([1, 2, 3], 5, []),
        ([1, 2, 1], 5, []),  # a single token is no match
        ([1, 2, 3, 4, 1, 2], 0, []),
        ([1], 5, []),
        ([1, 2], 5, []),
    ],
)
def test_what_is_drafted(tokens: list[int], most: int, draft: list[int]) -> None:
    assert Lookup(20).draft(tokens, most) == draft


def test_a_draft_ends_before_a_stop_token() -> None:
    assert Lookup(20).draft([1, 2, 3, 4, 9, 1, 2], 5, {9}) == [3, 4]
    assert Lookup(20).draft([1, 2, 3, 4, 9, 1, 2], 5, {3}) == []


def defined(tokens: list[int], most: int) -> list[int]:
    """By the words of the docstring, letter by letter."""
    for size in range(min(LONGEST, len(tokens) - 1), SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[len(tokens) - size :]:
                line = list(tokens)
                while len(line) < len(tokens) + most:
                    line.append(line[end + len(line) - len(tokens)])
                return line[len(tokens) :]
    return []


@settings(max_examples=300, deadline=None)
@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=40), most=st.integers(1, 6), pieces=st.integers(1, 5))
def test_drafts_are_as_defined_however_the_sequence_grew(tokens: list[int], most: int, pieces: int) -> None:
    lookup = Lookup(len(tokens))
    for end in [*range(1, len(tokens), pieces), len(tokens)]:
        assert lookup.draft(tokens[:end], most) == defined(tokens[:end], most)


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(st.integers(65, 70), min_size=1, max_size=40),
    lookup=st.integers(1, 12),
    max_tokens=st.one_of(st.none(), st.integers(1, 60)),
    stop_tokens=st.sets(st.integers(65, 75), max_size=1),
    stop=st.lists(st.text("ABCDEFGH", min_size=1, max_size=3), max_size=2),
    sampling=st.sampled_from(
        [
            Sampling(),
            Sampling(repetition_penalty=1.3),
            Sampling(temperature=0.5, seed=3),
            Sampling(temperature=0.8, top_k=5, top_p=0.9, min_p=0.02, repetition_penalty=0.9, seed=8),
        ]
    ),
    switch=st.sampled_from([None, SWITCH]),
    forbidden=st.integers(65, 72),
)
def test_the_answer_is_the_one_without_lookup(
    plain: Runtime,
    prompt: list[int],
    lookup: int,
    max_tokens: int | None,
    stop_tokens: set[int],
    stop: list[str],
    sampling: Sampling,
    switch: int | None,
    forbidden: int,
) -> None:
    """Tokens, text, finish and log-probabilities compared with ==; the processor is called with the same tokens, in the same order."""
    seen: dict[int, list[list[int]]] = {0: [], lookup: []}
    answers = {}
    for most in (0, lookup):
        session = Repeating(switch)

        def process(tokens: Sequence[int], logits: NDArray[np.float32], most: int = most) -> NDArray[np.float32]:
            seen[most].append(list(tokens))
            if len(tokens) % 7 == 0:
                logits[forbidden] = -np.inf
            return logits

        steps = generate(
            PrefixCache(session, switch=switch),
            prompt,
            plain.tokenizer.stream(prompt),
            context=CONTEXT,
            stop_tokens=stop_tokens,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            processors=[process],
            lookup=most,
        )
        answers[most] = list(steps)
        assert (
            all(start + count <= len(prompt) + len(answers[most]) for start, count, _ in session.calls)
            or answers[most][-1].finish == "stop"
        )
        assert all(start + count < CONTEXT for start, count, _ in session.calls)
        assert all(last <= 1 + lookup for _, _, last in session.calls)
        assert sum(step.computed > 0 for step in answers[most]) == len(session.calls)
        assert sum(step.computed for step in answers[most]) == sum(count for _, count, _ in session.calls)
    assert essence(answers[lookup]) == essence(answers[0])
    assert seen[lookup] == seen[0]


def test_what_repeats_takes_fewer_calls(plain: Runtime) -> None:
    runtime, session = repeating(plain, switch=None)
    steps = list(runtime.generate([65, 66] * 5, max_tokens=60))
    assert len(session.calls) == 60 and {s.computed for s in steps[1:]} == {1}
    runtime, session = repeating(plain, switch=None)
    again = list(runtime.generate([65, 66] * 5, max_tokens=60, lookup=7))
    assert essence(again) == essence(steps)
    assert len(session.calls) < 30
    assert session.calls[0] == (0, 10, 1), "no draft delays the first token"
    accepted = [s for s in again if s.computed == 0]
    assert len(accepted) == 60 - len(session.calls) and {s.seconds for s in accepted} == {0.0}
    assert session.position == 69, "neither a token beyond the last nor the last itself was computed"


def test_a_draft_never_crosses_the_longrope_switch(plain: Runtime) -> None:
    """It stops at 24 tokens; the 25th computes everything anew, and may bring a draft of its own."""
    cycle = [s.token for s in repeating(plain, switch=None)[0].generate([65, 66], max_tokens=80)][-40:]
    seen: list[tuple[int, int, int]] = []
    for length in range(10, SWITCH):
        runtime, session = repeating(plain)
        steps = list(runtime.generate(cycle[:length], max_tokens=40, lookup=9))
        assert essence(steps) == essence(list(repeating(plain)[0].generate(cycle[:length], max_tokens=40)))
        for start, count, last in session.calls:
            assert start + count <= SWITCH or ((start == 0 or start > SWITCH) and start + count - last + 1 > SWITCH)
        seen += session.calls
    assert any(start + count == SWITCH and last > 1 for start, count, last in seen), "it does come up to it"
    assert any(start == 0 and count > SWITCH and last > 1 for start, count, last in seen)


def test_a_stop_token_among_accepted_ones_ends_the_answer(plain: Runtime) -> None:
    whole = [s.token for s in repeating(plain)[0].generate([65, 66] * 5, max_tokens=60)]
    stop = next(t for t in whole[20:] if t not in whole[:20]) if set(whole[20:]) - set(whole[:20]) else whole[25]
    steps = [list(repeating(plain, (stop,))[0].generate([65, 66] * 5, max_tokens=60, lookup=most)) for most in (0, 8)]
    assert essence(steps[1]) == essence(steps[0])
    assert (steps[1][-1].token, steps[1][-1].finish) == (stop, "stop")


def test_breaking_off_leaves_the_runtime_usable(plain: Runtime) -> None:
    runtime, session = repeating(plain)
    whole = essence(list(runtime.generate([65, 66] * 5, max_tokens=50, lookup=6)))
    for taken in (1, 2, 5, 14, 30):
        steps = runtime.generate([65, 66] * 5, max_tokens=50, lookup=6)
        assert essence([next(steps) for _ in range(taken)]) == whole[:taken]
        session.interrupt = True
        with pytest.raises(KeyboardInterrupt):
            list(steps)
        steps = runtime.generate([65, 66] * 5, max_tokens=50, lookup=6)
        assert essence([next(steps) for _ in range(taken)]) == whole[:taken]
        steps.close()  # type: ignore[attr-defined]
        assert essence(list(runtime.generate([65, 66] * 5, max_tokens=50, lookup=6))) == whole


def test_answers_taken_by_turns_do_not_mix(plain: Runtime) -> None:
    alone = [essence(list(repeating(plain)[0].generate(p, max_tokens=20))) for p in ([65, 66] * 9, [67, 68] * 9)]
    runtime, _ = repeating(plain)
    turns = zip(*(runtime.generate(p, max_tokens=20, lookup=5) for p in ([65, 66] * 9, [67, 68] * 9)), strict=True)
    for mine, theirs in zip(zip(*turns, strict=True), alone, strict=True):
        assert essence(mine) == theirs


def test_extend_with_gives_a_row_for_each_token_of_the_draft() -> None:
    session = NullSession(VOCAB, CONTEXT, switch=SWITCH)
    cache = PrefixCache(session, switch=SWITCH)
    cache.extend_to([1] * 20)
    rows, computed = cache.extend_with([1] * 21, [2, 3, 4, 5])
    assert (rows.shape, computed, session.position) == ((4, VOCAB), 4, SWITCH)
    for i, row in enumerate(rows):
        assert (row == NullSession(VOCAB, CONTEXT, switch=SWITCH).forward([*[1] * 21, 2, 3, 4][: 21 + i])).all()
    assert cache.held == (*[1] * 21, 2, 3, 4)
    logits, computed = cache.extend_to([*[1] * 21, 2, 9])
    assert computed == 1 and (logits == NullSession(VOCAB, CONTEXT, switch=SWITCH).forward([*[1] * 21, 2, 9])).all()
    rows, computed = cache.extend_with([1] * 25, [2, 3])
    assert (rows.shape, computed) == ((3, VOCAB), 27)
    assert (rows[1] == NullSession(VOCAB, CONTEXT, switch=SWITCH).forward([*[1] * 25, 2])).all()
    with pytest.raises(ValueError, match="at least one"):
        cache.extend_with([], [1])


def test_lookup_must_not_be_negative(plain: Runtime) -> None:
    with pytest.raises(UsageError, match=r"lookup has to be 0 .* found -1"):
        plain.generate("a", lookup=-1)


def test_complete_and_chat_take_it_too(plain: Runtime) -> None:
    message = [{"role": "user", "content": "turn on the light"}]
    for prompt in (message, "the light the light"):
        one, other = (plain.complete(prompt, max_tokens=12, lookup=most) for most in (0, 4))
        assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
    assert essence(list(plain.chat(message, max_tokens=12, lookup=4))) == essence(list(plain.chat(message, max_tokens=12)))


def test_the_commands_take_it(edge: Edge, artifact: Path) -> None:
    plain = edge("run", str(artifact), "turn on the light", "--max-tokens", "20")
    assert plain.code == 0
    guessed = edge("run", str(artifact), "turn on the light", "--max-tokens", "20", "--lookup", "5", "--stats")
    assert (guessed.code, guessed.out) == (0, plain.out)
    assert edge("run", str(artifact), "hello", "--lookup", "-1").code == 2
    assert '"passes": 3' in edge("run", str(artifact), "turn on", "--max-tokens", "4", "--lookup", "2", "--json").out

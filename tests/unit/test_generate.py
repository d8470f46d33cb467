"""The loop with scripted logits: what is shown, when it ends, and that it can be broken off anywhere."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgekit
from edgekit.engines.null.session import NullSession
from edgekit.errors import ArtifactError, ContextOverflow, TemplateError, UsageError
from edgekit.runtime import Runtime
from edgekit.runtime.generate import Step, StopBuffer
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.tokenizer import Tokenizer
from tiny_artifact import build_tiny


class Scripted(NullSession):
    """The most likely token at position n is ``script[n]``, whatever came before; it can interrupt at a call."""

    def __init__(self, vocab_size: int, context: int, script: Sequence[int]) -> None:
        super().__init__(vocab_size, context)
        self.script = script
        self.calls = 0
        self.interrupt_at: int | None = None

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.calls += 1
        logits = super().forward(tokens)
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        if self.position - 1 < len(self.script):
            logits[self.script[self.position - 1]] = 100
        return logits


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A null artifact with a byte-level tokenizer and a Phi-like chat template; context 96, LongRoPE switch at 24."""
    return build_tiny(tmp_path_factory.mktemp("null"), "null")


@pytest.fixture(scope="module")
def plain(artifact: Path) -> Iterator[Runtime]:
    with edgekit.load(artifact) as runtime:
        yield runtime


def scripted(plain: Runtime, prompt: str | list[int], answer: list[int], template: bool = True) -> tuple[Runtime, Scripted]:
    """A runtime whose session answers ``prompt`` with ``answer``."""
    start = len(plain.tokenizer.encode(prompt)) if isinstance(prompt, str) else len(prompt)
    session = Scripted(plain.manifest.tokens.vocab_size, plain.context, [0] * (start - 1) + answer)
    manifest = replace(plain.manifest, context=replace(plain.manifest.context, rope_switch=None))
    return Runtime(manifest, plain.tokenizer, plain._template if template else None, session), session


def stop_id(runtime: Runtime) -> int:
    return runtime.manifest.tokens.stop[0]


def texts(steps: Sequence[Step]) -> str:
    return "".join(step.text for step in steps)


def test_a_stop_token_ends_the_answer_and_is_not_shown(plain: Runtime) -> None:
    said = plain.tokenizer.encode("the lamp")
    for stop in plain.manifest.tokens.stop:
        runtime, session = scripted(plain, "hello", [*said, stop, 5, 5])
        steps = list(runtime.generate("hello", max_tokens=50))
        assert [s.token for s in steps] == [*said, stop]
        assert (texts(steps), steps[-1].finish) == ("the lamp", "stop")
        assert session.calls == len(steps), "nothing is computed after the end"
        assert [s.finish for s in steps[:-1]] == [None] * len(said)


def test_max_tokens_ends_with_length_and_a_cut_character_is_replaced(plain: Runtime) -> None:
    said = plain.tokenizer.encode("é👩")
    runtime, _ = scripted(plain, "hello", said)
    steps = list(runtime.generate("hello", max_tokens=len(said) - 1))
    assert [s.text for s in steps][:2] == ["", "é"]
    assert (texts(steps), steps[-1].finish) == ("é\ufffd", "length")
    assert texts(list(runtime.generate("hello", max_tokens=len(said)))) == "é👩"


def test_the_answer_fills_the_context_and_says_so(plain: Runtime) -> None:
    runtime, session = scripted(plain, [1] * 90, [65] * 20)
    steps = list(runtime.generate([1] * 90))
    assert (len(steps), steps[-1].finish) == (6, "context")
    assert session.position == 95, "the last token needs no logits"
    assert list(runtime.generate([1] * 90, max_tokens=6))[-1].finish == "length"
    assert list(runtime.generate([1] * 95))[-1].finish == "context"


def test_a_prompt_that_leaves_no_room_is_refused_at_once(plain: Runtime) -> None:
    with pytest.raises(ContextOverflow, match=r"96 tokens .* holds 96.* where the model itself can hold more, .*--context"):
        plain.generate([1] * 96)
    with pytest.raises(ContextOverflow):
        plain.chat([{"role": "user", "content": "x" * 200}])
    assert plain.complete([1] * 10, max_tokens=1).finish == "length", "and the runtime still works"


def test_arguments_are_checked_at_once(plain: Runtime) -> None:
    for problem, call in {
        "max_tokens": lambda: plain.generate("a", max_tokens=0),
        "stop string": lambda: plain.generate("a", stop=["x", ""]),
        "empty": lambda: plain.generate([]),
        "token id 320": lambda: plain.generate([1, 320]),
        "token id -1": lambda: plain.generate([-1]),
    }.items():
        with pytest.raises(UsageError, match=problem):
            call()


@pytest.mark.parametrize("ids", [np.array([5, 6, 7]), np.array([5, 6, 7], np.uint16), (5, 6, 7), range(5, 8)])
def test_token_ids_come_in_any_sequence(plain: Runtime, ids: Sequence[int]) -> None:
    expected = [s.token for s in plain.generate([5, 6, 7], max_tokens=4)]
    assert [s.token for s in plain.generate(ids, max_tokens=4)] == expected
    assert list(plain.complete(ids, max_tokens=4).tokens) == expected
    assert all(type(token) is int for token in plain._cache.held)


@pytest.mark.parametrize("prompt", [[1.0], np.array([1.5]), np.array([[1, 2]]), np.array(3), ["a"], [None], None, [{"role": "user"}]])
def test_what_is_no_prompt_is_refused(plain: Runtime, prompt: list[int]) -> None:
    with pytest.raises(UsageError, match="text or a sequence of token ids"):
        plain.generate(prompt)


@pytest.mark.parametrize("messages", ["hello", b"hello", "", [], None, {"role": "user"}, ["hello"], [{"content": "x"}], [{"role": 1}]])
def test_what_are_no_messages_is_refused(plain: Runtime, messages: list[dict[str, object]]) -> None:
    with pytest.raises(UsageError, match=r"chat takes messages: .* for text use generate"):
        plain.chat(messages)
    with pytest.raises(UsageError, match="chat takes messages"):
        plain.render(messages)


def test_a_stop_string_over_several_tokens_is_never_shown(plain: Runtime) -> None:
    said = plain.tokenizer.encode("turn on\nUser: off")
    runtime, session = scripted(plain, "hello", said)
    steps = list(runtime.generate("hello", stop="\nUser:", max_tokens=50))
    assert (texts(steps), steps[-1].finish) == ("turn on", "stop")
    assert all("\n" not in s.text for s in steps)
    assert session.calls == len(steps) == len(plain.tokenizer.encode("turn on\nUser:"))


def test_what_only_began_like_a_stop_string_is_shown(plain: Runtime) -> None:
    said = [*plain.tokenizer.encode("a\nUse"), stop_id(plain)]
    runtime, _ = scripted(plain, "hello", said)
    steps = list(runtime.generate("hello", stop=("\nUser:", "zzz")))
    assert steps[0].text == "a"
    assert texts(steps) == "a\nUse"


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The definition: read letter by letter until some stop string is complete."""
    for end in range(len(text) + 1):
        matched = [s for s in stops if text[:end].endswith(s)]
        if matched:
            return text[: end - max(map(len, matched))]
    return text


@settings(max_examples=500, deadline=None)
@given(
    text=st.text("abc", max_size=40),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
    seed=st.integers(0, 1 << 32),
)
def test_stop_strings_do_not_depend_on_how_the_text_comes(text: str, stops: list[str], seed: int) -> None:
    random, buffer, at, shown = Random(seed), StopBuffer(stops), 0, ""
    expected = cut_at_stop(text, stops)
    while at < len(text):
        size = random.randrange(0, 6)
        shown += buffer.push(text[at : at + size])
        at += size
        assert expected.startswith(shown), "never more than may be shown"
        held = min(at, len(text)) - len(shown)
        assert buffer.stopped_by or held <= max((len(s) - 1 for s in stops), default=0), "nor kept back for nothing"
    assert shown + buffer.finish() == expected
    assert (buffer.stopped_by is not None) == (expected != text)
    assert buffer.stopped_by is None or (buffer.stopped_by in stops and text.startswith(expected + buffer.stopped_by))


@settings(max_examples=500, deadline=None)
@given(
    said=st.lists(st.sampled_from(["a", "b", "ab", "<s>", "<t>", "<"]), max_size=20),
    stops=st.lists(st.sampled_from(["<s>", "<t>", "a<s>", "<s>b", "<s><t>", "ab", "b<s>a", "aa"]), min_size=1, max_size=3),
)
def test_special_tokens_in_stop_strings(said: list[str], stops: list[str]) -> None:
    """Where a string names a special token it is found with that token in its place, else in the text that is shown."""
    special = {"<s>": "\ud800", "<t>": "\ud801"}
    buffer = StopBuffer(stops, special)
    shown, expected, stopped = "", "", None
    for piece in said:
        shown += buffer.push(special.get(piece, piece))
        assert not set(shown) & set(special.values())
        for letter in [piece] if piece in special else piece:
            if stopped is None:
                expected += special.get(letter, letter)
                stopped = max((s for s in stops if ends_with(expected, s, special)), key=len, default=None)
    shown += buffer.finish()
    if stopped is not None:
        assert buffer.stopped_by is not None and ends_with(expected, buffer.stopped_by, special)
        assert plain_text(expected, special).startswith(shown)
        ending = buffer.stopped_by.replace("<s>", "").replace("<t>", "")
        assert shown + ending == plain_text(expected, special)
    else:
        assert (buffer.stopped_by, shown) == (None, plain_text(expected, special))


def plain_text(text: str, special: dict[str, str]) -> str:
    return "".join(letter for letter in text if letter not in special.values())


def ends_with(text: str, stop: str, special: dict[str, str]) -> bool:
    exact = stop
    for name, letter in special.items():
        exact = exact.replace(name, letter)
    return text.endswith(exact) if exact != stop else plain_text(text, special).endswith(stop) and text[-1] not in special.values()


def special_id(runtime: Runtime, text: str) -> int:
    token = runtime.tokenizer.backend.token_to_id(text)
    assert token in runtime.tokenizer.silent
    return int(token)


@pytest.mark.parametrize("stop", ["<|user|>", "off<|user|>", "ff<|user|>now", "<|system|><|user|>"])
@pytest.mark.parametrize("lookup", [0, 4])
def test_a_special_token_in_a_stop_string_stops(plain: Runtime, stop: str, lookup: int) -> None:
    user, system = special_id(plain, "<|user|>"), special_id(plain, "<|system|>")
    said = [*plain.tokenizer.encode("turn off"), *([system] if "system" in stop else []), user, *plain.tokenizer.encode("now it goes on")]
    runtime, _ = scripted(plain, "hello", said)
    steps = list(runtime.generate("hello", stop=stop, max_tokens=30, lookup=lookup))
    assert (texts(steps), steps[-1].finish, steps[-1].stopped_by) == ("turn off".removesuffix(stop.split("<")[0]), "stop", stop)


def test_a_stop_token_in_a_stop_string(plain: Runtime) -> None:
    """It ends the answer by itself; the string says what of the text before it is not shown."""
    end = plain.tokenizer.backend.id_to_token(stop_id(plain))
    said = [*plain.tokenizer.encode("turn off"), stop_id(plain)]
    runtime, _ = scripted(plain, "hello", said)
    for stop, shown, by in ((end, "turn off", end), (f" off{end}", "turn", f" off{end}"), (f"x{end}", "turn off", None)):
        steps = list(runtime.generate("hello", stop=stop))
        assert (texts(steps), steps[-1].finish, steps[-1].stopped_by, len(steps)) == (shown, "stop", by, len(said))


def test_what_a_stop_string_names_may_also_be_written_out(plain: Runtime) -> None:
    said = [token for letter in "so <|user|> said" for token in plain.tokenizer.encode(letter)]
    runtime, _ = scripted(plain, "hello", said)
    steps = list(runtime.generate("hello", stop="<|user|>", max_tokens=30))
    assert (texts(steps), steps[-1].stopped_by) == ("so ", "<|user|>")


def test_text_lies_across_special_tokens(plain: Runtime) -> None:
    said = [*plain.tokenizer.encode("turn o"), special_id(plain, "<|user|>"), *plain.tokenizer.encode("ff now")]
    for stops in (["off"], ["off", "<|system|>"]):
        runtime, _ = scripted(plain, "hello", said)
        steps = list(runtime.generate("hello", stop=stops, max_tokens=30))
        assert (texts(steps), steps[-1].stopped_by) == ("turn ", "off")


@pytest.mark.parametrize("half", ["\ud800", "a\udfffb", "\U0001f600\ud83d"])
def test_half_a_character_is_refused_for_what_it_is(plain: Runtime, half: str) -> None:
    """Wherever a text may be given."""
    for ask in (
        lambda: plain.generate(half),
        lambda: plain.complete(half),
        lambda: plain.chat([{"role": "user", "content": half}]),
        lambda: plain.complete([{"role": "user", "content": half}]),
        lambda: plain.generate("x", stop=half),
        lambda: plain.generate("x", stop=["a", half]),
        lambda: plain.tokenizer.encode(half),
        lambda: plain.generate("x", regex=half),
        lambda: plain.generate("x", grammar=f'start: "{half}"'),
    ):
        with pytest.raises(UsageError, match="half a character"):
            ask()


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": 1.5}, {"max_tokens": True}, {"max_tokens": "3"}, {"max_tokens": 0}, {"lookup": 1.5},
        {"lookup": None}, {"lookup": -1},
        {"top_logprobs": 2.0}, {"top_logprobs": "a"}, {"stop": None}, {"stop": 3}, {"stop": [1]}, {"stop": b"a"},
        {"stop": ""}, {"stop": ["a", ""]},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_another_kind_are_refused_by_name(plain: Runtime, given: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(given))):
        plain.generate("x", **given)  # type: ignore[arg-type]


def test_processors_run_on_every_step_and_see_all_tokens(plain: Runtime) -> None:
    seen: list[int] = []

    def only_zero(tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(len(tokens))
        allowed = np.full_like(logits, -np.inf)
        allowed[48] = 0
        return allowed

    assert plain.complete([1, 2], processors=[only_zero], max_tokens=3).tokens == (48, 48, 48)
    assert seen == [2, 3, 4]


def test_a_processor_cannot_change_the_sequence(plain: Runtime) -> None:
    def meddle(tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        with pytest.raises(AttributeError):
            tokens.append(0)  # type: ignore[attr-defined]
        return logits

    assert plain.complete([1, 2], processors=[meddle], max_tokens=3).tokens == plain.complete([1, 2], max_tokens=3).tokens


@pytest.mark.parametrize("call", [1, 2, 4])
def test_an_interrupt_leaves_the_runtime_usable(plain: Runtime, call: int) -> None:
    said = [*plain.tokenizer.encode("the light is on"), stop_id(plain)]
    runtime, session = scripted(plain, "hello", said)
    session.interrupt_at = call
    with pytest.raises(KeyboardInterrupt):
        list(runtime.generate("hello"))
    assert texts(list(runtime.generate("hello"))) == "the light is on"


def test_closing_the_generator_leaves_the_runtime_usable(plain: Runtime) -> None:
    steps = plain.generate("the light", max_tokens=20)
    first = [next(steps).token for _ in range(3)]
    steps.close()  # type: ignore[attr-defined]
    assert [s.token for s in plain.generate("the light", max_tokens=20)][:3] == first


def test_answers_taken_by_turns_do_not_mix(plain: Runtime) -> None:
    """They share one cache, which goes back and forth, across the LongRoPE switch as well."""
    alone = [list(plain.generate(p, max_tokens=12)) for p in ([1] * 18, [2] * 18)]
    one, two = plain.generate([1] * 18, max_tokens=12), plain.generate([2] * 18, max_tokens=12)
    mixed = list(zip(one, two, strict=False))
    for mine, theirs in zip(zip(*mixed, strict=True), alone, strict=True):
        assert [s.token for s in mine] == [s.token for s in theirs][: len(mine)]


def test_the_longrope_switch_shows_in_what_was_computed(plain: Runtime) -> None:
    """24 tokens are the last with short factors; the 25th makes the whole sequence long."""
    free = replace(plain.manifest, tokens=replace(plain.manifest.tokens, stop=()))
    runtime = Runtime(free, plain.tokenizer, None, plain.session)
    assert [s.computed for s in runtime.generate([7] * 22, max_tokens=5)] == [22, 1, 1, 25, 1]


def test_a_seed_repeats_an_answer(plain: Runtime) -> None:
    warm = Sampling(temperature=1.0, seed=3)
    first = plain.complete("the lamp", sampling=warm, max_tokens=20).tokens
    assert plain.complete("the lamp", sampling=warm, max_tokens=20).tokens == first
    assert plain.complete("the lamp", sampling=replace(warm, seed=4), max_tokens=20).tokens != first


def test_chat_goes_through_the_template_and_complete_collects_it(plain: Runtime) -> None:
    messages = [{"role": "user", "content": "hello"}]
    rendered = plain.render(messages)
    assert rendered == "<|user|>\nhello<|end|>\n<|assistant|>\n"
    prompt = plain.tokenizer.encode(rendered)
    steps = list(plain.chat(messages, max_tokens=8))
    whole = plain.complete(messages, max_tokens=8)
    assert [s.token for s in steps] == [s.token for s in plain.generate(prompt, max_tokens=8)] == list(whole.tokens)
    assert (whole.text, whole.finish) == (texts(steps), steps[-1].finish)
    assert whole.prompt_tokens == len(prompt)
    assert whole.prefilled == 1, "the prompt was still held"
    assert whole.prefill_seconds > 0
    assert whole.ttft >= whole.prefill_seconds
    assert whole.tokens_per_second == (len(whole.tokens) - 1) / whole.decode_seconds


def test_without_a_template_chat_says_so(plain: Runtime) -> None:
    runtime, _ = scripted(plain, "hello", [], template=False)
    with pytest.raises(TemplateError, match="has no chat template"):
        runtime.chat([{"role": "user", "content": "hi"}])


def test_add_bos_of_the_manifest_holds_for_text_only(plain: Runtime) -> None:
    bos = plain.manifest.tokens.bos
    tokenizer = Tokenizer(plain.tokenizer.backend, bos, plain.tokenizer.silent, plain.tokenizer.bytes_)
    runtime = Runtime(plain.manifest, tokenizer, plain._template, plain.session)
    assert runtime.complete("hello", max_tokens=1).prompt_tokens == plain.complete("hello", max_tokens=1).prompt_tokens + 1
    message = [{"role": "user", "content": "hello"}]
    assert runtime.complete(message, max_tokens=1).prompt_tokens == plain.complete(message, max_tokens=1).prompt_tokens


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        (("conformance", "encode", 0, "ids"), [1, 2], "the manifest says"),
        (("conformance", "chat", 0, "rendered"), "x", "the manifest says 'x'"),
        (("engine", "name"), "abacus", "'abacus', which this edgekit does not know"),
    ],
)
def test_load_refuses_what_does_not_conform(
    artifact: Path, tmp_path: Path, key: tuple[str | int, ...], value: object, problem: str
) -> None:
    shutil.copytree(artifact, tmp_path / "copy")
    path = tmp_path / "copy" / "edgekit.json"
    manifest = place = json.loads(path.read_text(encoding="utf-8"))
    for part in key[:-1]:
        place = place[part]
    place[key[-1]] = value
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match=problem):
        edgekit.load(tmp_path / "copy")


def test_steps_name_the_likeliest_tokens_only_when_asked(plain: Runtime) -> None:
    named = list(plain.generate("abc", max_tokens=5, top_logprobs=4))
    for step in named:
        assert len(step.top) == 4 and step.top[0] == (step.token, step.logprob)
        assert [p for _, p in step.top] == sorted((p for _, p in step.top), reverse=True)
    assert [step.token for step in plain.generate("abc", max_tokens=5)] == [step.token for step in named]
    assert all(step.top == () for step in plain.generate("abc", max_tokens=5))
    with pytest.raises(UsageError, match="top_logprobs"):
        plain.generate("abc", top_logprobs=-1)


def test_the_last_step_says_which_stop_string_it_was(plain: Runtime) -> None:
    answer = plain.tokenizer.encode("one two three")
    runtime, _ = scripted(plain, "abc", answer)
    steps = list(runtime.generate("abc", max_tokens=len(answer), stop=["three", "two"]))
    assert (steps[-1].finish, steps[-1].stopped_by) == ("stop", "two")
    assert all(step.stopped_by is None for step in steps[:-1])

"""What users see is the same on every engine."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from contract_subject import Logits, Subject

from checkpoints import SWITCH
from edgekit.errors import ContextOverflow
from edgekit.runtime import Runtime, Sampling
from edgekit.runtime.prefix import PrefixCache
from edgekit.runtime.session import Session

FLOAT32 = 1e-3
"""Engines that keep to this compute in float32."""


def test_token_by_token_across_the_switch_gives_the_reference_logits(subject: Subject, session: Session, tokens: list[int]) -> None:
    """The reference computes every sequence in one piece: short factors up to the switch (24), long ones beyond, for all positions."""
    cache = PrefixCache(session, switch=subject.manifest.context.rope_switch)
    for length in range(20, 30):
        subject.same(cache.extend_to(tokens[:length])[0], subject.expected(tokens[:length]))
    for length in (23, 26, 25, 24, 40, 1):
        changed = [*tokens[: length - 1], 9]
        subject.same(cache.extend_to(changed)[0], subject.expected(changed))


def test_greedy_generation_across_the_switch_takes_the_references_tokens(subject: Subject, runtime: Runtime, tokens: list[int]) -> None:
    manifest = replace(subject.manifest, tokens=replace(subject.manifest.tokens, stop=()))
    free = Runtime(manifest, runtime.tokenizer, None, runtime.session)
    sequence = tokens[:20]
    for step in free.generate(sequence, max_tokens=10):
        logits = subject.expected(sequence)
        assert logits[step.token] >= logits.max() - 2 * subject.tolerance
        assert step.logprob == pytest.approx(
            logits[step.token] - np.log(np.exp(logits.astype(np.float64)).sum()), abs=max(1e-3, 2 * subject.tolerance)
        )
        sequence.append(step.token)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9, seed=4)], ids=["greedy", "sampled"])
def test_lookup_gives_the_same_answer(subject: Subject, runtime: Runtime, tokens: list[int], sampling: Sampling) -> None:
    """From a prompt that begins again, the model left free and, so that drafts are accepted, made to copy it; across the switch."""
    if runtime.session.grain > 1:
        pytest.skip("refused: test_same.py")
    free = Runtime(replace(subject.manifest, tokens=replace(subject.manifest.tokens, stop=())), runtime.tokenizer, None, runtime.session)
    prompt = [*tokens[:12], 299, *tokens[:4]]

    def copy(so_far: Sequence[int], logits: Logits) -> Logits:
        logits[prompt[(len(so_far) - 13) % 13]] += 10 + 100 * (len(so_far) % 10 > 0)
        return logits

    for processors in ((), (copy,)):
        one, other = (
            list(free.generate(prompt, sampling=sampling, max_tokens=50, processors=processors, lookup=lookup)) for lookup in (0, 5)
        )
        assert [(s.token, s.text, s.finish, s.logprob) for s in other] == [(s.token, s.text, s.finish, s.logprob) for s in one]
        assert len(processors) == 0 or sum(s.computed > 0 for s in other) < 25


def test_the_manifests_greedy_vectors_are_met(subject: Subject, runtime: Runtime) -> None:
    vectors = subject.manifest.conformance.greedy.vectors
    assert vectors or subject.manifest.context.rope_switch == SWITCH, "no vector fits on one side of so low a switch"
    for vector in vectors:
        steps = runtime.generate(vector.prompt, max_tokens=len(vector.continuation))
        assert tuple(step.token for step in steps) == vector.continuation


def test_a_seed_repeats_an_answer_whatever_was_asked_before(runtime: Runtime, tokens: list[int]) -> None:
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=11)
    first = runtime.complete(tokens[:6], sampling=sampling, max_tokens=12)
    runtime.complete(tokens[10:30], max_tokens=5)
    again = runtime.complete(tokens[:6], sampling=sampling, max_tokens=12)
    assert (again.tokens, again.text, again.finish) == (first.tokens, first.text, first.finish)


def test_a_stop_token_ends_the_answer(subject: Subject, runtime: Runtime, tokens: list[int]) -> None:
    free = Runtime(replace(subject.manifest, tokens=replace(subject.manifest.tokens, stop=())), runtime.tokenizer, None, runtime.session)
    whole = [step.token for step in free.generate(tokens[:6], max_tokens=8)]
    stop = whole[5]
    stopping = replace(subject.manifest, tokens=replace(subject.manifest.tokens, stop=(stop,)))
    steps = list(Runtime(stopping, runtime.tokenizer, None, runtime.session).generate(tokens[:6], max_tokens=8))
    assert [step.token for step in steps] == whole[: whole.index(stop) + 1]
    assert steps[-1].finish == "stop"


def test_a_stop_string_ends_the_answer(subject: Subject, runtime: Runtime, tokens: list[int]) -> None:
    whole = runtime.complete(tokens[:6], max_tokens=20).text
    middle = whole[len(whole) // 2 :][:3]
    answer = runtime.complete(tokens[:6], max_tokens=20, stop=middle)
    assert answer.text == whole[: whole.index(middle)]
    assert answer.finish == "stop"


def test_chat_and_the_context_limit(runtime: Runtime) -> None:
    answer = runtime.complete([{"role": "user", "content": "hello"}], max_tokens=200)
    assert answer.finish in ("stop", "context")
    assert answer.prompt_tokens + len(answer.tokens) <= runtime.context
    with pytest.raises(ContextOverflow, match="96"):
        runtime.complete([{"role": "user", "content": "long " * 100}])
    assert runtime.complete("hello", max_tokens=2).tokens


def test_an_answer_in_a_given_form_is_valid_within_any_limit(runtime: Runtime, tokens: list[int]) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}, "required": ["n", "s"]}
    for limit in (30, 60):
        for sampling in (Sampling(), Sampling(temperature=1.2, seed=limit)):
            answers = [
                runtime.complete(tokens[:6], json_schema=schema, max_tokens=limit, sampling=sampling, lookup=lookup)
                for lookup in (0, 4 * (runtime.session.grain == 1))
            ]
            found = json.loads(answers[0].text)
            assert isinstance(found["n"], int) and isinstance(found["s"], str)
            assert len(answers[0].tokens) <= limit
            assert answers[1].tokens == answers[0].tokens

"""An answer does not depend on what the cache held: equal logits, bit for bit, for every history."""

import pytest
from contract_subject import Subject

from edgekit.errors import UsageError
from edgekit.runtime import Runtime, Sampling
from edgekit.runtime.session import Session
from histories import check


@pytest.mark.parametrize(("prompt", "said"), [(12, 6), (22, 6), (30, 4), (1, 3)])
def test_logits_are_the_same_after_every_history(subject: Subject, session: Session, tokens: list[int], prompt: int, said: int) -> None:
    """Below, across and beyond the LongRoPE switch (24)."""
    switch = subject.manifest.context.rope_switch
    other = [(token * 7 + 3) % 300 for token in tokens]
    check(session, switch, tokens[:prompt], tokens[prompt : prompt + said], other)


def test_pieces_of_a_long_prompt(subject: Subject, session: Session, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With pieces so short that some are whole, where the engine has any."""
    module = __import__(type(session).__module__, fromlist=["PIECE"])
    if not hasattr(module, "PIECE"):
        pytest.skip("no pieces")
    monkeypatch.setattr(module, "PIECE", 8)
    opened = subject.open()
    check(opened, subject.manifest.context.rope_switch, tokens[:21], tokens[21:24], [(token * 7 + 3) % 300 for token in tokens])
    opened.close()


def test_lookup_is_refused_where_it_would_change_the_answer(runtime: Runtime, tokens: list[int]) -> None:
    if runtime.session.grain == 1:
        sampling = Sampling(temperature=0.9, seed=3)
        prompt = [*tokens[:10], *tokens[:3]]
        plain = runtime.complete(prompt, sampling=sampling, max_tokens=20)
        assert runtime.complete(prompt, sampling=sampling, max_tokens=20, lookup=4).tokens == plain.tokens
        return
    with pytest.raises(UsageError, match="lookup would change this answer"):
        runtime.generate(tokens[:4], lookup=3)

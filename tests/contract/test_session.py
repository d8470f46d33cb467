"""What every engine's session promises (``runtime/session.py``)."""

import numpy as np
import pytest
from contract_subject import Subject

from edgekit.errors import ContextOverflow, EngineError
from edgekit.runtime.session import Session

BELOW = 20
"""Tokens below every LongRoPE switch: there a sequence may be computed in any pieces."""


def test_logits_are_float32_finite_and_as_many_as_the_vocabulary(subject: Subject, session: Session, tokens: list[int]) -> None:
    logits = session.forward(tokens[:5])
    assert (logits.dtype, logits.shape) == (np.float32, (subject.manifest.tokens.vocab_size,))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("length", [1, 2, 11, 12, 13, 24, 25, 40])
def test_a_sequence_in_one_call_gives_the_reference_logits(subject: Subject, session: Session, tokens: list[int], length: int) -> None:
    """Below, at and beyond the window and the LongRoPE switch."""
    subject.same(session.forward(tokens[:length]), subject.expected(tokens[:length]))


@pytest.mark.parametrize("pieces", [[1] * BELOW, [19, 1], [1, 19], [7, 6, 7], [3, 3, 3, 3, 8]])
def test_pieces_give_the_same_logits_as_one_call(subject: Subject, session: Session, tokens: list[int], pieces: list[int]) -> None:
    at = 0
    for size in pieces:
        logits = session.forward(tokens[at : at + size])
        at += size
        subject.same(logits, subject.expected(tokens[:at]))


@pytest.mark.parametrize("kept", [0, 1, 10, 19, 20])
def test_rewind_forgets_exactly_what_came_after(subject: Subject, session: Session, tokens: list[int], kept: int) -> None:
    session.forward(tokens[:BELOW])
    session.rewind(kept)
    assert session.position == kept
    other = [*tokens[:kept], 7, 8, 9]
    subject.same(session.forward(other[kept:]), subject.expected(other))


@pytest.mark.parametrize(("before", "new", "last"), [(0, 1, 1), (0, BELOW, 1), (0, BELOW, BELOW), (5, 8, 3), (19, 1, 1), (9, 4, 4)])
def test_logits_after_each_of_the_last_tokens(
    subject: Subject, session: Session, tokens: list[int], before: int, new: int, last: int
) -> None:
    """Each row as if the sequence ended there, and the cache as after ``forward``."""
    if before:
        session.forward(tokens[:before])
    end = before + new
    rows = session.forward_last(tokens[before:end], last)
    assert (rows.dtype, rows.shape) == (np.float32, (last, subject.manifest.tokens.vocab_size))
    for length, row in zip(range(end - last + 1, end + 1), rows, strict=True):
        subject.same(row, subject.expected(tokens[:length]))
    assert session.position == end
    subject.same(session.forward([7]), subject.expected([*tokens[:end], 7]))


def test_tokens_that_end_an_answer_are_read_like_any_other(subject: Subject, session: Session, tokens: list[int]) -> None:
    """One at a time, as in a conversation that goes on; the vocabulary's first and last token as well."""
    ends = sorted({*subject.manifest.tokens.stop, 0, subject.manifest.tokens.vocab_size - 1})
    sequence = tokens[:3]
    session.forward(sequence)
    for token in (*ends, 5, *ends[::-1], 7):
        sequence.append(token)
        subject.same(session.forward([token]), subject.expected(sequence))


def test_a_draft_that_was_wrong_leaves_nothing_behind(subject: Subject, session: Session, tokens: list[int]) -> None:
    """What prompt lookup does: several tokens at once, back to the last right one, and on."""
    session.forward(tokens[:8])
    for length, draft in ((9, 4), (10, 2), (12, 7), (13, 1)):
        session.rewind(length - 1)
        rows = session.forward_last([tokens[length - 1], *[3] * draft], draft + 1)
        subject.same(rows[0], subject.expected(tokens[:length]))
        subject.same(rows[1], subject.expected([*tokens[:length], 3]))
        session.rewind(length)
        session.forward_last(tokens[length : length + 1], 1)
    assert session.position == 14


@pytest.mark.parametrize("last", [-1, 0, 4])
def test_logits_of_tokens_that_were_not_given_are_refused(session: Session, tokens: list[int], last: int) -> None:
    with pytest.raises(ValueError, match=f"last {last} tokens .* 3 are given"):
        session.forward_last(tokens[:3], last)
    assert session.position == 0


def test_rewind_to_nothing_and_a_long_sequence_then_a_short_one(subject: Subject, session: Session, tokens: list[int]) -> None:
    session.forward(tokens)
    session.rewind(0)
    subject.same(session.forward(tokens[:3]), subject.expected(tokens[:3]))


def test_position_and_context(subject: Subject, session: Session, tokens: list[int]) -> None:
    assert (session.position, session.context) == (0, subject.manifest.context.length)
    session.forward(tokens[:7])
    assert session.position == 7
    session.forward(tokens[7:8])
    assert session.position == 8
    session.rewind(8)
    assert session.position == 8
    session.rewind(3)
    assert session.position == 3


@pytest.mark.parametrize("length", [-1, 6])
def test_rewind_to_where_the_session_never_was_is_refused(session: Session, tokens: list[int], length: int) -> None:
    session.forward(tokens[:5])
    with pytest.raises(ValueError, match="5"):
        session.rewind(length)
    assert session.position == 5


def test_forward_needs_a_token(session: Session) -> None:
    with pytest.raises(ValueError, match="at least one"):
        session.forward([])


def test_the_context_can_be_filled_and_no_more(subject: Subject, session: Session) -> None:
    full = [i % 300 for i in range(session.context)]
    session.forward(full[:-2])
    with pytest.raises(ContextOverflow, match="96"):
        session.forward([1, 2, 3])
    with pytest.raises(ContextOverflow, match="96"):
        session.forward_last([1, 2, 3], 3)
    assert session.position == session.context - 2, "as it was"
    logits = session.forward_last(full[-2:], 2)[1]
    subject.same(logits, subject.expected(full))
    with pytest.raises(ContextOverflow):
        session.forward([1])
    assert session.position == session.context


def test_logits_stay_the_callers(session: Session, tokens: list[int]) -> None:
    first, rows = session.forward(tokens[:4]), session.forward_last(tokens[4:8], 3)
    copy, copies = first.copy(), rows.copy()
    session.forward(tokens[8:9])
    session.forward_last(tokens[9:12], 3)
    assert (first == copy).all() and (rows == copies).all()


def test_the_same_call_gives_the_same_bits(session: Session, tokens: list[int]) -> None:
    first = session.forward(tokens)
    session.rewind(0)
    assert (session.forward(tokens) == first).all()


def test_sessions_of_one_artifact_are_apart(subject: Subject, session: Session, tokens: list[int]) -> None:
    other = subject.open()
    session.forward(tokens[:9])
    other.forward(tokens[20:23])
    subject.same(session.forward(tokens[9:10]), subject.expected(tokens[:10]))
    other.close()
    subject.same(session.forward(tokens[10:11]), subject.expected(tokens[:11]))


def test_close_twice_and_no_more_work(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.forward([1])
    with pytest.raises(EngineError, match="closed"):
        session.forward_last([1], 1)

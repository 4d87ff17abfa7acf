"""The client's state machine: what it sends next, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import InternalError
from common.types import Draft, DraftDistribution, FinishReason, Outcome, Verdict
from edge_client.session import ClientSession, Round

PROMPT = (1, 2, 3)


def verified(
    step_id: int, position: int, accepted: int, next_token_id: int | None, **more: object
) -> Verdict:
    verdict = Verdict(step_id, 0, Outcome.VERIFIED, position, accepted, next_token_id)
    return replace(verdict, **more)  # type: ignore[arg-type]


def send(session: ClientSession, *token_ids: int) -> Draft:
    session.guess(token_ids)
    return session.next_draft()


def waiting() -> ClientSession:
    """Returns a session with one settled round behind it and the draft 7, 8, 9 in flight."""
    session = ClientSession(PROMPT)
    send(session, 4)
    session.apply(verified(1, 5, 1, 5))
    send(session, 7, 8, 9)
    return session


def snapshot(session: ClientSession) -> object:
    return (session.num_in_flight, session.history, session.tokens, session.epoch, session.finished)


def test_a_full_acceptance_brings_the_bonus_token_too() -> None:
    session = ClientSession(PROMPT)
    draft = send(session, 4, 5)
    assert (draft.step_id, draft.position, draft.epoch) == (1, 3, 0)
    assert (draft.token_ids, draft.confirmed_token_ids) == ((4, 5), ())
    assert session.apply(verified(1, 6, 2, 6)) == Round((4, 5, 6), 2, 2, None)
    assert session.history == (1, 2, 3, 4, 5, 6)
    following = send(session)
    assert (following.step_id, following.position, following.epoch) == (2, 6, 0)


def test_each_rejection_begins_an_epoch() -> None:
    session = waiting()
    assert session.apply(verified(2, 7, 1, 6)) == Round((7, 6), 3, 1, None, num_wasted_tokens=2)
    assert session.history == (*PROMPT, 4, 5, 7, 6)
    assert send(session, 1).epoch == 1


def test_a_plain_decode_step_is_no_rejection() -> None:
    session = ClientSession(PROMPT)
    send(session)
    session.apply(verified(1, 4, 0, 9))
    assert send(session).epoch == 0


def test_what_the_server_lost_is_sent_again_and_the_lost_round_counts_nothing() -> None:
    session = waiting()
    lost = Verdict(2, 0, Outcome.MISMATCH, position=4)
    assert session.apply(lost) == Round(num_wasted_tokens=3)
    again = send(session, 7)
    assert (again.step_id, again.position) == (3, 4)
    assert (again.confirmed_token_ids, again.token_ids) == ((5,), (7,))
    assert session.apply(verified(3, 7, 1, 8)).token_ids == (7, 8)
    assert send(session).position == 7


def test_a_generation_may_end_within_the_accepted_tokens() -> None:
    session = waiting()
    end = verified(2, 7, 2, None, finish_reason=FinishReason.EOS)
    assert session.apply(end) == Round((7, 8), 3, 2, FinishReason.EOS, num_wasted_tokens=1)
    assert session.finished
    with pytest.raises(InternalError, match="finished"):
        session.next_draft()
    with pytest.raises(InternalError, match="finished"):
        session.guess((1,))
    with pytest.raises(InternalError, match="finished"):
        session.commit((1,))


@pytest.mark.parametrize(
    "verdict",
    [
        verified(1, 5, 1, 5),  # the verdict before, once more
        verified(3, 9, 3, 1),  # a step nobody asked for
        verified(2, 9, 3, 1, epoch=1),
        verified(2, 10, 4, 1),  # more accepted than drafted
        verified(2, 10, 3, 1),  # another count than ours
        verified(2, 8, 3, None),  # neither a token of its own nor an end
        verified(2, 5, 0, None, finish_reason=FinishReason.EOS),
        Verdict(2, 0, Outcome.STALE, 5),
        Verdict(2, 0, Outcome.MISMATCH, 2),  # inside the prompt
        Verdict(2, 0, Outcome.MISMATCH, 5),  # where the draft stood: it would come for ever
    ],
)
def test_an_illegal_verdict_is_refused_and_changes_nothing(verdict: Verdict) -> None:
    session = waiting()
    before = snapshot(session)
    with pytest.raises(InternalError, match="broke the protocol"):
        session.apply(verdict)
    assert snapshot(session) == before
    session.apply(verified(2, 9, 3, 1))  # and the right one is still taken


def test_a_draft_behind_another_assumes_a_bonus_token() -> None:
    session = waiting()
    before = snapshot(session)
    with pytest.raises(InternalError, match="assumes no bonus token"):
        session.next_draft()
    assert snapshot(session) == before
    with pytest.raises(InternalError, match="1 in flight"):
        session.commit((1,))
    behind = send(session, 5, 6)
    assert (behind.step_id, behind.position, behind.epoch) == (3, 9, 0)
    assert (behind.assumed_bonus_token_id, behind.token_ids) == (5, (6,))
    last = send(session, 8)
    assert (last.position, last.assumed_bonus_token_id, last.token_ids) == (11, 8, ())


def test_what_was_sent_ahead_stands_when_all_came_out_as_assumed() -> None:
    session = waiting()
    send(session, 5, 6)
    session.guess((8,))
    assert session.apply(verified(2, 9, 3, 5)) == Round((7, 8, 9, 5), 3, 3, None)
    assert session.tokens == [*PROMPT, 4, 5, 7, 8, 9, 5, 6, 8]
    assert (session.num_standing, session.num_unsent_tokens, session.epoch) == (1, 1, 0)
    assert session.apply(verified(3, 11, 1, 8)) == Round((6, 8), 1, 1, None)
    assert session.tokens == [*PROMPT, 4, 5, 7, 8, 9, 5, 6, 8]
    assert (session.num_in_flight, session.num_unsent_tokens) == (0, 0)
    alone = send(session, 9)
    assert (alone.position, alone.assumed_bonus_token_id, alone.token_ids) == (11, None, (9,))


@pytest.mark.parametrize(
    ("verdict", "wasted"),
    [
        (verified(2, 7, 1, 6), 2 + 3),  # a guess rejected
        (verified(2, 9, 3, 4), 3),  # all right, and another bonus token
        (Verdict(2, 0, Outcome.MISMATCH, 4), 3 + 3),  # lost by the server
    ],
)
def test_any_other_verdict_overtakes_what_was_sent_ahead(verdict: Verdict, wasted: int) -> None:
    session = waiting()
    send(session, 5, 6)
    session.guess((8,))
    assert session.apply(verdict).num_wasted_tokens == wasted
    assert (session.epoch, session.num_in_flight, session.num_standing) == (1, 1, 0)
    assert session.tokens == list(session.history)
    fresh = send(session, 1)
    assert (fresh.epoch, fresh.assumed_bonus_token_id) == (1, None)
    before = snapshot(session)
    for outcome in (Outcome.VERIFIED, Outcome.MISMATCH):
        with pytest.raises(InternalError, match="overtaken"):
            session.apply(replace(verified(3, 11, 1, 8), outcome=outcome))
        assert snapshot(session) == before
    assert session.apply(Verdict(3, 0, Outcome.STALE, 7)) == Round(overtaken=True)
    assert (session.num_in_flight, session.num_standing) == (1, 1)


def test_a_draft_that_nothing_overtook_cannot_be_stale() -> None:
    session = waiting()
    send(session, 5, 6)
    session.apply(verified(2, 9, 3, 5))
    before = snapshot(session)
    for outcome, position in ((Outcome.STALE, 9), (Outcome.STALE, 2), (Outcome.MISMATCH, 4)):
        with pytest.raises(InternalError, match=r"nothing overtook|what it lost"):
            session.apply(Verdict(3, 0, outcome, position))
        assert snapshot(session) == before


def test_what_was_lost_before_a_draft_sent_ahead_came_is_sent_again() -> None:
    session = waiting()
    send(session, 5, 6)
    session.apply(verified(2, 9, 3, 5))
    assert session.apply(Verdict(3, 0, Outcome.STALE, 4)) == Round(num_wasted_tokens=1)
    again = send(session, 6)
    assert (again.position, again.confirmed_token_ids) == (4, (5, 7, 8, 9, 5))
    assert again.assumed_bonus_token_id is None


def test_an_unsent_bonus_token_that_came_out_otherwise_is_dropped_without_an_epoch() -> None:
    session = waiting()
    session.guess((5, 6))
    assert session.apply(verified(2, 9, 3, 4)).num_wasted_tokens == 2
    assert (session.epoch, session.num_unsent_tokens) == (0, 0)


def test_what_a_guess_was_drawn_from_goes_with_it() -> None:
    first, bonus, second = (DraftDistribution((n,), (1,)) for n in range(3))
    session = ClientSession(PROMPT)
    session.guess((4,), (first,))
    assert session.next_draft().distributions == (first,)
    session.guess((5, 6), (bonus, second))
    assert session.next_draft().distributions == (second,)
    session.guess((7,), (first,))
    session.apply(verified(1, 5, 1, 5))
    session.guess((8,), (second,))
    assert session.next_draft().distributions == (second,)


def test_a_verdict_nobody_waits_for_is_refused() -> None:
    session = ClientSession(PROMPT)
    with pytest.raises(InternalError, match="0 in flight"):
        session.apply(verified(1, 4, 0, 9))

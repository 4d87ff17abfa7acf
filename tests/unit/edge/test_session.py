"""The client's state machine: what it sends next, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import InternalError
from common.types import FinishReason, Outcome, Verdict
from edge_client.session import ClientSession, Round, State

PROMPT = (1, 2, 3)


def verified(
    step_id: int, position: int, accepted: int, next_token_id: int | None, **more: object
) -> Verdict:
    verdict = Verdict(step_id, 0, Outcome.VERIFIED, position, accepted, next_token_id)
    return replace(verdict, **more)  # type: ignore[arg-type]


def waiting() -> ClientSession:
    """Returns a session with one settled round behind it and the draft 7, 8, 9 in flight."""
    session = ClientSession(PROMPT)
    session.next_draft((4,))
    session.apply(verified(1, 5, 1, 5))
    session.next_draft((7, 8, 9))
    return session


def snapshot(session: ClientSession) -> object:
    return (session.state, session.history, session.epoch)


def test_a_full_acceptance_brings_the_bonus_token_too() -> None:
    session = ClientSession(PROMPT)
    draft = session.next_draft((4, 5))
    assert (draft.step_id, draft.position, draft.epoch) == (1, 3, 0)
    assert (draft.token_ids, draft.confirmed_token_ids) == ((4, 5), ())
    assert session.apply(verified(1, 6, 2, 6)) == Round((4, 5, 6), 2, 2, None)
    assert session.history == (1, 2, 3, 4, 5, 6)
    following = session.next_draft(())
    assert (following.step_id, following.position, following.epoch) == (2, 6, 0)


def test_each_rejection_begins_an_epoch() -> None:
    session = waiting()
    assert session.apply(verified(2, 7, 1, 6)) == Round((7, 6), 3, 1, None)
    assert session.history == (*PROMPT, 4, 5, 7, 6)
    assert session.next_draft((1,)).epoch == 1


def test_a_plain_decode_step_is_no_rejection() -> None:
    session = ClientSession(PROMPT)
    session.next_draft(())
    session.apply(verified(1, 4, 0, 9))
    assert session.next_draft(()).epoch == 0


def test_what_the_server_lost_is_sent_again_and_the_lost_round_counts_nothing() -> None:
    session = waiting()
    lost = Verdict(2, 0, Outcome.MISMATCH, position=4)
    assert session.apply(lost) == Round((), 0, 0, None)
    again = session.next_draft((7,))
    assert (again.step_id, again.position) == (3, 4)
    assert (again.confirmed_token_ids, again.token_ids) == ((5,), (7,))
    assert session.apply(verified(3, 7, 1, 8)).token_ids == (7, 8)
    assert session.next_draft(()).position == 7


def test_a_generation_may_end_within_the_accepted_tokens() -> None:
    session = waiting()
    end = verified(2, 7, 2, None, finish_reason=FinishReason.EOS)
    assert session.apply(end) == Round((7, 8), 3, 2, FinishReason.EOS)
    assert session.state is State.FINISHED
    with pytest.raises(InternalError, match="finished"):
        session.next_draft(())


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


def test_one_draft_is_in_flight_at_a_time() -> None:
    session = waiting()
    before = snapshot(session)
    with pytest.raises(InternalError, match="waiting"):
        session.next_draft((1,))
    assert snapshot(session) == before


def test_a_verdict_nobody_waits_for_is_refused() -> None:
    session = ClientSession(PROMPT)
    with pytest.raises(InternalError, match="ready"):
        session.apply(verified(1, 4, 0, 9))

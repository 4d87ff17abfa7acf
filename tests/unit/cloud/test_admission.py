"""Who is let in: whatever comes and goes, no limit is broken but by one alone, and none is left."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.admission import Admission
from common.config import CloudSection
from common.errors import InvalidRequestError, OverloadedError, PromptError, UnavailableError
from common.types import OpenSession, Peer, SamplingParams, StopParams

LIMITS = CloudSection(
    max_sessions=5, max_client_sessions=3, max_waiting_tokens=40, max_client_tokens=25
)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.booleans()), max_size=40))
def test_no_limit_is_ever_broken_but_by_one_alone(events: list[tuple[str, int, bool]]) -> None:
    admission = Admission(LIMITS)
    inside: list[ExitStack] = []
    for client, tokens, leave in events:
        if leave and inside:
            inside.pop(0).close()
            continue
        stack = ExitStack()
        before = set(admission.guests)
        try:
            stack.enter_context(admission.guest(client, tokens, 0))
        except OverloadedError:
            assert admission.guests == before
            continue
        inside.append(stack)
        own = [guest for guest in admission.guests if guest.client == client]
        assert len(admission.guests) <= 5
        assert len(own) <= 3
        assert sum(guest.in_flight for guest in own) <= 25 or len(own) == 1
        others = sum(guest.in_flight for guest in admission.guests) - tokens
        assert others + tokens <= 40 or others == 0
    for stack in inside:
        stack.close()
    assert admission.guests == set()
    assert admission.in_flight == 0


def test_each_limit_is_named_by_its_key() -> None:
    def refusal(*guests: tuple[str, int]) -> str:
        admission = Admission(LIMITS)
        with ExitStack() as stack:
            for client, tokens in guests[:-1]:
                stack.enter_context(admission.guest(client, tokens, 0))
            with pytest.raises(OverloadedError) as caught, admission.guest(*guests[-1], 0):
                pass
        assert caught.value.retry_after_s is not None
        return str(caught.value)

    assert "cloud.max_sessions" in refusal(*((str(n), 1) for n in range(6)))
    assert "cloud.max_client_sessions" in refusal(*(("a", 1) for _ in range(4)))
    assert "cloud.max_client_tokens" in refusal(("a", 20), ("a", 6))
    assert "cloud.max_waiting_tokens" in refusal(("a", 20), ("b", 20), ("c", 1))


def test_what_is_too_much_by_itself_has_its_turn_alone() -> None:
    admission = Admission(LIMITS)
    with admission.guest("a", 1000, 0):
        pass
    with (
        admission.guest("a", 1, 0),
        pytest.raises(OverloadedError),
        admission.guest("a", 1000, 0),
    ):
        pass


def test_a_guest_whose_tokens_are_through_makes_room_for_others() -> None:
    admission = Admission(LIMITS)
    with admission.guest("a", 25, 0) as guest:
        guest.in_flight = 0
        with admission.guest("a", 25, 0):
            assert admission.in_flight == 25


def test_nobody_is_let_in_once_it_is_closed_and_who_is_in_stays() -> None:
    admission = Admission(LIMITS)
    with admission.guest("a", 1, 0):
        admission.closed = "draining"
        with pytest.raises(UnavailableError, match="draining"), admission.guest("a", 1, 0):
            pass
        assert len(admission.guests) == 1


def test_when_to_ask_again_follows_how_long_guests_stay_and_how_many_there_are() -> None:
    admission = Admission(LIMITS)
    assert admission.retry_after_s == 1.0  # nothing is known yet
    admission.stayed(10.0)
    with admission.guest("a", 1, 0), admission.guest("b", 1, 0):
        assert admission.retry_after_s == 5.0
        admission.stayed(5.0)
        assert admission.retry_after_s == pytest.approx((0.8 * 10 + 0.2 * 5) / 2)
    admission.stayed(1e6)
    assert admission.retry_after_s == 5.0


@pytest.mark.parametrize(
    ("prompt", "new", "error", "key"),
    [
        (21, 10, PromptError, "cloud.max_prompt_tokens"),
        (20, 51, InvalidRequestError, "cloud.max_new_tokens"),
        (20, 50, None, ""),
    ],
)
def test_more_than_any_client_may_ask_is_refused(
    prompt: int, new: int, error: type[Exception] | None, key: str
) -> None:
    admission = Admission(CloudSection(max_prompt_tokens=20, max_new_tokens=50))
    opening = OpenSession(Peer("", "", 0, ""), (1,) * prompt, SamplingParams(), StopParams(new))
    if error is None:
        admission.check_opening(opening)
        return
    with pytest.raises(error, match=key):
        admission.check_opening(opening)

"""Run-ahead in simulated time: never slower than the target alone, whatever the link."""

from __future__ import annotations

import pytest

from common.types import AheadTokens, Outcome, StepTiming, Verdict
from edge_client.adaptive import ADAPTIVE_LENGTHS, AdaptivePace
from edge_client.draft_length import FixedPace
from edge_client.loop import LISTEN_S
from edge_client.rivals import RunAheadPace
from edge_client.session import ClientSession
from tests.unit.edge import pair
from tests.unit.edge.simulated import LONGEST, World, rate, simulate, target

TOKENS = 256
M = 64


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "CONTEXT", LONGEST)
    monkeypatch.setattr(pair, "target", target)


def world(draft_ms: float, rtt_ms: float, acceptance: float) -> World:
    return World(draft_ms, lambda _: rtt_ms, acceptance)


def adaptive() -> RunAheadPace:
    return RunAheadPace(AdaptivePace(ADAPTIVE_LENGTHS, 64))


def cloud_optimized(rtt_ms: float) -> float:
    """Returns the tokens a second of the target alone: one way up, all tokens, one way down."""
    each = World(1, lambda _: 1, 1)
    return TOKENS * 1e3 / (rtt_ms + TOKENS * (each.target_ms + each.target_token_ms))


@pytest.mark.parametrize("acceptance", [0.6, 0.8, 0.9])
@pytest.mark.parametrize("draft_ms", [0.35, 10.0, 60.0])
@pytest.mark.parametrize("rtt_ms", [0.3, 20.0, 50.0, 100.0, 200.0])
def test_it_is_never_slower_than_the_target_alone(
    rtt_ms: float, draft_ms: float, acceptance: float
) -> None:
    rates = [
        rate(world(draft_ms, rtt_ms, acceptance), adaptive(), TOKENS, n, run_ahead=M)
        for n in range(2)
    ]
    assert min(rates) >= 0.97 * cloud_optimized(rtt_ms)


def test_without_it_a_long_link_makes_speculation_slower() -> None:
    """So there is something to gain."""
    slow = rate(world(60.0, 200.0, 0.6), adaptive(), TOKENS)
    assert slow < 0.5 * cloud_optimized(200.0)


@pytest.mark.parametrize("rtt_ms", [0.3, 50.0])
def test_drafts_that_only_slow_the_target_down_are_left_off(rtt_ms: float) -> None:
    """As on one machine for both ends, where the target stands still while somebody drafts."""
    pace = adaptive()
    made = World(2.0, lambda _: rtt_ms, 0.3, contention=2.0)
    simulate(made, pace, TOKENS, run_ahead=M)
    guessed = made.num_guessed
    pace.begin()
    assert rate(made, pace, TOKENS, run_ahead=M) >= 0.97 * cloud_optimized(rtt_ms)
    assert made.num_guessed - guessed < TOKENS / 8


def test_drafts_that_pay_go_on() -> None:
    pace = adaptive()
    simulate(world(0.35, 0.3, 0.9), pace, TOKENS, run_ahead=M)
    pace.begin()
    fast = rate(world(0.35, 0.3, 0.9), pace, TOKENS, run_ahead=M)
    assert fast >= 2 * cloud_optimized(0.3)


def test_a_target_that_writes_alone_is_hardly_asked() -> None:
    """Only so that it does not come to the end of what it may write alone."""
    alone = FixedPace(0, 64)
    steps = [step for _, step in simulate(world(1.0, 0.3, 0.6), alone, TOKENS, run_ahead=M)]
    assert sum(step.asked is True for step in steps) <= TOKENS / (M // 4) + 1
    assert rate(world(1.0, 0.3, 0.6), alone, TOKENS, run_ahead=M) >= 0.99 * cloud_optimized(0.3)


def test_a_target_that_falls_silent_is_asked() -> None:
    """A step may have no room for what nobody asked for; then the target writes nothing alone."""
    full = World(1.0, lambda _: 20.0, 0.6, most_alone=0)
    steps = [step for _, step in simulate(full, FixedPace(0, 64), 32, run_ahead=M)]
    assert [len(step.token_ids) for step in steps] == [1] * 32
    assert not any(step.run_ahead for step in steps)


@pytest.mark.parametrize("most_alone", [0, 3, 8])
def test_of_a_server_that_grants_less_than_was_asked_nothing_is_expected_twice(
    most_alone: int,
) -> None:
    """A text is at most one wait slower than one in which nobody listens."""
    alone, taken = FixedPace(0, 64), {}
    for granted in (most_alone, M):
        made = World(1.0, lambda _: 0.3, 0.6, most_alone=granted)
        simulate(made, alone, TOKENS, run_ahead=M)
        taken[granted] = made.now / 1e9
    a_round_s = 0.0005
    assert taken[most_alone] <= taken[M] + LISTEN_S + TOKENS * a_round_s


def test_more_may_be_expected_of_a_server_with_room_again() -> None:
    session = ClientSession((300,), run_ahead=M)
    session.next_draft()
    session.fall_silent()
    assert not session.is_written_on
    session.apply(Verdict(1, 0, Outcome.VERIFIED, accepted=0, next_token_id=7, position=2))
    for n in range(5):
        session.receive_ahead(AheadTokens(2 + n, (7,), None, StepTiming()))
    session.next_draft()
    assert session.is_written_on


def test_drafts_are_made_however_far_the_target_may_write_alone() -> None:
    made = world(0.35, 0.3, 0.95)
    assert rate(made, adaptive(), TOKENS, run_ahead=1024) >= 2 * cloud_optimized(0.3)


def test_each_way_is_timed_by_its_own_tokens() -> None:
    """Verdicts on drafts sent before come late on a long link, and bring many tokens at once."""
    pace = adaptive()
    for seed in range(2):
        pace.begin()
        simulate(world(0.35, 200.0, 0.97), pace, 400, seed, run_ahead=M)
    alone = World(1, lambda _: 1, 1)
    per_token_ns = (alone.target_ms + alone.target_token_ms) * 1e6
    assert pace.tokens_a_second(drafts=False) == pytest.approx(1e9 / per_token_ns, rel=0.01)


def test_a_trial_of_drafts_begins_with_their_first_verdict() -> None:
    """Until then what comes was written without: here twice as fast."""
    pace = adaptive()
    made = World(2.0, lambda _: 200.0, 0.05, contention=2.0)
    for seed in range(4):
        pace.begin()
        simulate(made, pace, TOKENS, seed, run_ahead=M)
    with_drafts, without = (pace.tokens_a_second(drafts=drafts) for drafts in (True, False))
    assert with_drafts is not None
    assert without is not None
    assert with_drafts == pytest.approx(without / 2, rel=0.05)


def test_what_the_target_wrote_alone_is_no_round() -> None:
    steps = [step for _, step in simulate(world(60.0, 100.0, 0.8), adaptive(), 64, run_ahead=M)]
    alone = [step for step in steps if step.run_ahead]
    assert alone
    assert {(s.num_accepted_tokens, s.num_draft_tokens, s.elapsed_ns, s.asked) for s in alone} == {
        (None, None, None, None)
    }
    assert sum(len(step.token_ids) for step in steps) == 64


def test_a_draft_that_is_never_done_in_time_still_tells_the_server_to_go_on() -> None:
    """Eight guesses take as long as sixty tokens of the target's."""
    slow = rate(world(60.0, 100.0, 0.6), FixedPace(8, 64), TOKENS, run_ahead=32)
    assert slow >= 0.9 * cloud_optimized(100.0)

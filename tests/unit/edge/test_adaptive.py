"""The adaptive pace, in simulated time: near the best fixed one everywhere, and quick to follow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.types import StepTiming
from edge_client.adaptive import ADAPTIVE_LENGTHS, AdaptivePace
from edge_client.draft_length import FixedPace, Pace
from edge_client.expectation import Situation, alone, tokens_a_second
from edge_client.policy import Drafted
from edge_client.steps import Step
from tests.unit.edge import pair
from tests.unit.edge.simulated import LONGEST, MS, World, rate, simulate, target

TOKENS = 192
SEEDS = range(2)


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "CONTEXT", LONGEST)
    monkeypatch.setattr(pair, "target", target)


def adaptive(ahead: int | None = None) -> AdaptivePace:
    return AdaptivePace(ADAPTIVE_LENGTHS, 64, ahead)


def world(draft_ms: float, rtt_ms: float, acceptance: float) -> World:
    target_ms = 2.5 if draft_ms < 1 else 8.0
    return World(draft_ms, lambda _: rtt_ms, acceptance, target_ms, target_token_ms=0.1)


def mean_rate(draft_ms: float, rtt_ms: float, acceptance: float, pace: Pace | None) -> float:
    """Returns tokens a second over all seeds; None is the adaptive pace, a fresh one a text."""
    seconds = sum(
        1 / rate(world(draft_ms, rtt_ms, acceptance), pace or adaptive(), TOKENS, seed)
        for seed in SEEDS
    )
    return len(SEEDS) / seconds


@pytest.mark.parametrize("acceptance", [0.6, 0.9])
@pytest.mark.parametrize("rtt_ms", [0.3, 20.0, 50.0, 200.0])
@pytest.mark.parametrize("draft_ms", [0.35, 10.0, 60.0])
def test_it_is_near_the_best_fixed_setting_found_by_sweep(
    draft_ms: float, rtt_ms: float, acceptance: float
) -> None:
    best = max(
        mean_rate(draft_ms, rtt_ms, acceptance, FixedPace(length, 64, ahead))
        for length in (0, 1, 2, 4, 6, 8, 16, 24)
        for ahead in (0, 3, 32)
    )
    assert mean_rate(draft_ms, rtt_ms, acceptance, None) >= 0.95 * best


@pytest.mark.parametrize(
    ("draft_ms", "rtt_ms", "acceptance", "length", "ahead"),
    [(60.0, 0.3, 0.9, 0, 0), (0.35, 0.3, 0.9, 12, 1), (10.0, 100.0, 0.9, 3, 32)],
)
def test_a_short_text_begins_with_what_the_one_before_it_taught(
    draft_ms: float, rtt_ms: float, acceptance: float, length: int, ahead: int
) -> None:
    """It would be over before a pace that knows nothing had found the setting."""

    def short(pace: Pace) -> float:
        pace.begin()
        return rate(world(draft_ms, rtt_ms, acceptance), pace, 48, seed=1)

    taught = adaptive()
    simulate(world(draft_ms, rtt_ms, acceptance), taught, 48, seed=2)
    known = short(taught)
    assert known >= 0.95 * short(FixedPace(length, 64, ahead))
    assert known >= short(adaptive())


@pytest.mark.parametrize(("before", "after"), [(1.0, 150.0), (150.0, 1.0)])
def test_it_follows_a_link_that_changes_within_twenty_rounds(before: float, after: float) -> None:
    """Stop-and-wait, where only the draft length can follow the link."""
    changed_at = 1_500
    pace = adaptive(ahead=0)
    changing = World(2.0, lambda now: before if now < changed_at else after, 0.8)
    lengths = []
    for at, step in simulate(changing, pace, 1_500):
        if at / MS > changed_at:
            lengths.append(step.num_draft_tokens or 0)
    settled = adaptive(ahead=0)
    simulate(World(2.0, lambda _: after, 0.8), settled, 1_500)
    assert lengths[20] == pytest.approx(settled.next(1_000), abs=2)
    unchanged = adaptive(ahead=0)
    simulate(World(2.0, lambda _: before, 0.8), unchanged, 1_500)
    assert abs(unchanged.next(1_000) - settled.next(1_000)) > 4  # there is something to follow


def test_it_stops_and_waits_where_a_draft_token_takes_longer_than_a_round() -> None:
    pace = adaptive()
    simulate(world(60.0, 0.3, 0.9), pace, TOKENS)
    assert (pace.ahead, pace.next(100)) == (0, 0)


@pytest.mark.parametrize(("contention", "sends_ahead"), [(1.0, True), (3.0, False)])
def test_it_notices_when_drafting_slows_the_target_beside_it(
    contention: float, sends_ahead: bool
) -> None:
    """Two processes on one machine: what is won by overlapping may be lost by sharing cores."""
    pace = adaptive()
    simulate(World(1.0, lambda _: 0.5, 0.8, contention=contention), pace, 600)
    assert (pace.ahead > 0) == sends_ahead


@pytest.mark.parametrize("rtt_ms", [2.0, 20.0, 50.0])
@pytest.mark.parametrize("prompt_tokens", [3, 30, 400])
def test_a_prompt_that_the_draft_model_reads_for_long_is_not_its_speed(
    rtt_ms: float, prompt_tokens: int
) -> None:
    prompt = (300,) * prompt_tokens

    def speed(pace: Pace) -> float:
        reading = World(2.0, lambda _: rtt_ms, 0.85, draft_read_ms=1.0)
        return rate(reading, pace, 400, prompt=prompt)

    best = max(speed(FixedPace(length, 64, ahead)) for length in (1, 2, 4, 6) for ahead in (0, 8))
    assert speed(adaptive()) >= 0.93 * best


def test_a_drafter_that_always_has_much_to_read_is_timed_roughly() -> None:
    """Between two of its drafts, a target that runs ahead writes more than it reads in passing."""
    pace = adaptive()
    timing = StepTiming(total_ns=8 * MS)
    answered = Step((1,), "", None, 200 * MS, 0, 0, 0, timing, received_ns=MS)
    for _ in range(2):
        pace.drafted(Drafted((1,), num_read_tokens=20), 90 * MS)
        pace.learn(answered)
    rough = pace.situation(ahead=False)
    assert rough is not None
    assert rough.draft_s == pytest.approx(30e-3)  # twenty tokens are read in the time of two
    pace.drafted(Drafted((1,), num_read_tokens=3), 80 * MS)
    pace.drafted(Drafted((1,), num_read_tokens=20), 500 * MS)
    known = pace.situation(ahead=False)
    assert known is not None
    assert known.draft_s == pytest.approx(80e-3)


def test_what_the_target_writes_alone_is_nobodys_round() -> None:
    """A verdict soon after such a token came does not mean that the edge took no time."""
    pace = adaptive()
    timing = StepTiming(total_ns=8 * MS)
    verdict = Step((1,), "", None, 20 * MS, 0, 0, 0, timing, drafting=(), ahead=False)
    alone = Step((1,), "", None, timing=timing, run_ahead=True)
    for start in range(0, 900, 100):
        for at in (start, start + 30):
            pace.learn(replace(alone, received_ns=(at + 15) * MS))
            pace.learn(replace(verdict, received_ns=(at + 20) * MS))
        pace.learn(replace(verdict, received_ns=(at + 43) * MS))
    known = pace.situation(ahead=False)
    assert known is not None
    assert known.edge_round_s == pytest.approx(3e-3)


def test_drafting_that_was_given_up_is_tried_again() -> None:
    """A draft model that was slow for a while, as on a machine busy with something else."""
    busy = World(60.0, lambda _: 4.0, 0.9)
    pace = adaptive()
    steps = simulate(busy, pace, 60)
    assert (pace.ahead, pace.next(100)) == (0, 0)
    assert sum(step.num_guessed_tokens or 0 for _, step in steps) < 10
    busy.draft_ms = 1.0
    simulate(busy, pace, 2_000)
    assert pace.next(100) > 1


@given(
    st.lists(
        st.tuples(*(st.integers(0, 10**9) for _ in range(4)), st.integers(0, 8), st.booleans()),
        max_size=12,
    )
)
def test_no_timing_that_a_server_may_send_ends_a_text(
    rounds: list[tuple[int, int, int, int, int, bool]],
) -> None:
    pace = adaptive()
    for elapsed, total, queued, spent, drafted, ahead in rounds:
        pace.drafted(Drafted((1,) * drafted), spent)
        pace.learn(
            Step(
                (1,) * (drafted + 1), "", None, elapsed, spent, drafted, drafted,
                StepTiming(queued_ns=queued, total_ns=total), ahead=ahead, received_ns=elapsed,
            )
        )  # fmt: skip
        assert pace.next(100) >= 0
        assert pace.ahead >= 0


def test_it_sends_ahead_where_the_link_is_long() -> None:
    pace = adaptive()
    simulate(world(10.0, 100.0, 0.9), pace, TOKENS)
    assert pace.ahead >= 5


def test_what_was_asked_for_is_kept() -> None:
    pace = AdaptivePace((5,), 64)
    simulate(world(10.0, 100.0, 0.9), pace, TOKENS)
    assert (pace.next(100), pace.next(3), pace.ahead > 0) == (5, 2, True)
    assert AdaptivePace((5,), max_draft_tokens=3).next(100) == 3
    kept = adaptive(ahead=2)
    simulate(world(0.35, 0.3, 0.9), kept, TOKENS)
    assert kept.ahead == 2


def test_it_knows_the_situation_it_is_in() -> None:
    pace = adaptive()
    simulate(World(3.0, lambda _: 40.0, 0.8, target_ms=9.0, target_token_ms=0.5), pace, 1_000)
    known = pace.situation(ahead=True)
    assert known is not None
    assert known.draft_s == pytest.approx(3e-3, rel=0.05)
    assert known.network_s == pytest.approx(40e-3, rel=0.05)
    assert known.server_s(5) == pytest.approx(11.5e-3, rel=0.1)
    assert known.acceptance[0] == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize(
    ("draft_ms", "rtt_ms", "length", "ahead"),
    [(10, 50, 4, 0), (10, 50, 0, 8), (10, 100, 2, 1), (60, 200, 0, 3), (2, 20, 4, 32)],
)
def test_the_closed_form_is_what_comes_out(
    draft_ms: float, rtt_ms: float, length: int, ahead: int
) -> None:
    made = World(draft_ms, lambda _: rtt_ms, 0.8, 8.0, 0.1, overhead_ms=0.0)
    measured = rate(made, FixedPace(length, 64, ahead), 4_000)
    situation = Situation(draft_ms / 1e3, rtt_ms / 1e3, 8e-3, 0.1e-3, [0.8])
    assert tokens_a_second(situation, length, ahead) == pytest.approx(measured, rel=0.1)


def test_the_target_alone_waits_for_no_network() -> None:
    assert alone(Situation(1.0, 1.0, 8e-3, 2e-3, [0.5])) == pytest.approx(100)

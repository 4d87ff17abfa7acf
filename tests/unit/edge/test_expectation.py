"""The closed form: its limits, which way it moves, and the grid made of it."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest

from edge_client.draft_length import FixedPace
from edge_client.expectation import (
    Situation,
    alone,
    capacity,
    last_crossing,
    target_s_a_token,
    tokens_a_round,
    tokens_a_second,
)
from edge_client.forecast import Forecast, forecast
from tests.unit.edge import pair
from tests.unit.edge.simulated import LONGEST, World, rate, target

SITUATION = Situation(2e-3, 20e-3, 8e-3, 0.5e-3, (0.8, 0.7, 0.75))
LENGTHS = (1, 2, 4, 8)


def told(situation: Situation, *rtts_ms: float, text: int | None = None) -> Forecast:
    return forecast(situation, [ms / 1e3 for ms in rtts_ms], LENGTHS, text)


@pytest.mark.parametrize("ahead", [0, 1, 8])
@pytest.mark.parametrize("text", [None, 64])
def test_it_falls_with_the_round_trip_and_rises_with_acceptance(
    ahead: int, text: int | None
) -> None:
    by_rtt = [
        tokens_a_second(replace(SITUATION, network_s=ms / 1e3), 4, ahead, text)
        for ms in (0, 1, 10, 100, 1000)
    ]
    assert all(near > far for near, far in pairwise(by_rtt))
    by_acceptance = [
        tokens_a_second(replace(SITUATION, acceptance=(share,)), 4, ahead, text)
        for share in (0.0, 0.3, 0.6, 0.9, 1.0)
    ]
    assert all(less < more for less, more in pairwise(by_acceptance))


def test_its_limits_are_known() -> None:
    """Nothing accepted: a token a round. All accepted, no network: γ + 1 for one round's work."""
    none = replace(SITUATION, acceptance=(0.0,))
    assert tokens_a_round(none, 4) == 1
    assert tokens_a_second(none, 4, 0) == pytest.approx(1 / (8e-3 + 20e-3 + 8e-3 + 2.5e-3))
    all_right = replace(SITUATION, acceptance=(1.0,), network_s=0.0)
    assert tokens_a_round(all_right, 4) == 5
    assert tokens_a_second(all_right, 4, 0) == pytest.approx(5 / (8e-3 + 8e-3 + 2.5e-3))
    # A chain that never breaks goes at the pace of the slower of the two.
    assert tokens_a_second(all_right, 4, 8) == pytest.approx(5 / max(5 * 2e-3, 8e-3 + 2.5e-3))


def test_what_a_round_takes_beside_the_models_is_in_it() -> None:
    slower = replace(SITUATION, edge_round_s=3e-3, server_round_s=1e-3)
    plain, more = tokens_a_second(SITUATION, 4, 0), tokens_a_second(slower, 4, 0)
    assert tokens_a_round(SITUATION, 4) * (1 / more - 1 / plain) == pytest.approx(
        4e-3 * 1, rel=1e-9
    )
    assert tokens_a_second(slower, 4, 8) < tokens_a_second(SITUATION, 4, 8)
    assert alone(slower) == pytest.approx(1 / (8.5e-3 + 1e-3))
    assert target_s_a_token(slower, 4) == target_s_a_token(SITUATION, 4)


def test_a_long_text_is_as_fast_as_one_without_an_end() -> None:
    for ahead in (0, 8):
        endless = tokens_a_second(SITUATION, 4, ahead)
        assert tokens_a_second(SITUATION, 4, ahead, 10**7) == pytest.approx(endless, rel=1e-5)
        assert tokens_a_second(SITUATION, 4, ahead, 20) < endless


def test_a_text_waits_for_its_prompt_and_the_cloud_alone_for_the_network_once() -> None:
    late = replace(SITUATION, opening_s=0.5, alone_s=0.01)
    for ahead in (0, 8):
        seconds = 50 / tokens_a_second(SITUATION, 4, ahead, 50)
        assert 50 / tokens_a_second(late, 4, ahead, 50) == pytest.approx(seconds + 0.5)
    assert 50 / alone(late, 50) == pytest.approx(0.5 + 20e-3 + 50 * 0.01)
    assert alone(late) == pytest.approx(100)


@pytest.mark.parametrize(("length", "ahead"), [(2, 0), (6, 0), (2, 8), (6, 4)])
@pytest.mark.parametrize("rtt_ms", [0.0, 20.0, 100.0])
def test_the_end_of_a_short_text_is_as_the_loop_has_it(
    length: int, ahead: int, rtt_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "CONTEXT", LONGEST)
    monkeypatch.setattr(pair, "target", target)
    text = 48
    measured = [
        text / rate(made, FixedPace(length, 64, ahead), text, seed)
        for seed in range(60)
        for made in [World(2.0, lambda _: rtt_ms, 0.7, 8.0, 0.5, overhead_ms=0.0)]
    ]
    situation = replace(SITUATION, network_s=rtt_ms / 1e3, acceptance=(0.7,))
    predicted = text / tokens_a_second(situation, length, ahead, text)
    assert predicted == pytest.approx(sum(measured) / len(measured), rel=0.05)


def test_what_a_token_costs_and_how_many_clients_that_makes_room_for() -> None:
    assert target_s_a_token(SITUATION, 0) == pytest.approx(8.5e-3)
    assert target_s_a_token(SITUATION, 2) == pytest.approx(9.5e-3 / (1 + 0.8 + 0.56))
    assert capacity(8.5e-3, 1 / 8.5e-3) == pytest.approx(1)
    assert capacity(0.01, 20) == pytest.approx(5)


def test_bisection_finds_the_last_crossing() -> None:
    points = [0.0, 1.0, 2.0, 4.0, 8.0]
    assert last_crossing(lambda x: 3.2 - x, points) == pytest.approx(3.2, rel=1e-5)
    assert last_crossing(math.sin, [0.5, 4.0, 7.0, 10.0]) == pytest.approx(3 * math.pi, rel=1e-5)
    assert last_crossing(lambda x: -1.0, points) is None
    assert last_crossing(lambda x: 1.0, points) == math.inf


@pytest.mark.parametrize("text", [None, 64])
def test_the_break_even_is_where_splitting_is_just_as_fast(text: int | None) -> None:
    even = told(SITUATION, 0, text=text).break_even_s
    assert even is not None
    for rtt_s, pays in ((0.99 * even, True), (1.01 * even, False)):
        (there,) = told(SITUATION, rtt_s * 1e3, text=text).outlooks
        assert there.pays is pays
        assert there.ratio(there.best) == pytest.approx(1, rel=0.02)


def test_it_says_in_a_sentence_where_splitting_does_not_pay() -> None:
    some = told(SITUATION, 0, 500)
    assert some.break_even_s is not None
    assert some.sentence == (
        f"Splitting pays up to a round trip of {some.break_even_s * 1e3:.4g} ms; "
        "it does not pay at 500 ms, where cloud_optimized is faster."
    )
    never = told(replace(SITUATION, draft_s=1.0), 3)
    assert never.break_even_s is None
    assert never.sentence.startswith(
        "Splitting does not pay at any round trip: at 3 ms speculative would write at best "
    )
    always = told(replace(SITUATION, target_s=50.0), 0)
    assert always.break_even_s == math.inf
    assert always.sentence == "Splitting pays at every round trip up to 10 s."
    near = told(SITUATION, 0)
    assert near.sentence.endswith(" ms, beyond all that were asked about.")


def test_the_best_is_the_largest_of_the_grid() -> None:
    chance = random.Random(5)
    for _ in range(20):
        situation = Situation(
            chance.choice([0.3e-3, 3e-3, 30e-3]), 0, 8e-3, 0.2e-3, (chance.random(), 0.8)
        )
        for there in told(situation, 0, 30, 300).outlooks:
            here = replace(situation, network_s=there.rtt_s)
            rates = [
                tokens_a_second(here, length, ahead) for length in LENGTHS for ahead in range(33)
            ]
            assert there.best.tokens_per_s >= 0.93 * max(rates)
            offers = [o for by in there.lengths for o in (by.waiting, by.ahead)]
            assert there.best.tokens_per_s == max(o.tokens_per_s for o in offers)
            assert there.waiting.ahead == 0
            assert there.ahead.ahead
            best = there.best
            assert best.length is not None
            assert best.ahead is not None
            assert best.tokens_per_s == tokens_a_second(here, best.length, best.ahead)

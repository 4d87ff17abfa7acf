"""A link as a function of time: nothing overtakes; rates and delays are as asked."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from edge_client.relay.profiles import (
    PROFILES,
    bytes_per_second,
    profile,
    read_trace,
    seconds,
    symmetric,
)
from edge_client.relay.shape import (
    PACKET,
    Delays,
    Direction,
    Shape,
    Stalls,
    first_after,
    time_of,
)

SHAPES = st.builds(
    Shape,
    delays=st.builds(
        Delays,
        quantiles=st.lists(st.floats(0, 0.3), min_size=1, max_size=5).map(
            lambda values: tuple(sorted(values))
        ),
        hold_s=st.sampled_from([0.01, 0.2]),
    ),
    rate=st.none() | st.floats(1e3, 1e8),
    trace=st.sampled_from([(), (5, 5, 20, 100)]),
    stalls=st.none() | st.builds(Stalls, st.sampled_from([0.1, 5.0]), st.floats(0, 0.5)),
)
PIECES = st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, PACKET)), min_size=1, max_size=40)


@given(SHAPES, PIECES, st.integers(0, 99))
def test_nothing_overtakes_and_nothing_is_early(
    shape: Shape, pieces: list[tuple[float, int]], seed: int
) -> None:
    direction, now, last = Direction(shape, seed), 0.0, 0.0
    for gap, size in pieces:
        now = max(now + gap, direction.room_at(now + gap))
        out = direction.enter(now, size)
        assert out >= last
        assert out >= now + shape.delays.quantiles[0] - 1e-9
        if shape.rate is not None and not shape.trace:
            assert out >= now + size / shape.rate - 1e-9
        last = out


@given(st.floats(1e4, 1e8), st.integers(2, 200))
def test_a_backlog_leaves_at_the_rate(rate: float, pieces: int) -> None:
    direction = Direction(Shape(rate=rate), 0)
    outs = [direction.enter(0.0, 1000) for _ in range(pieces)]
    assert outs[-1] == pytest.approx(1000 * pieces / rate)


def test_a_full_buffer_makes_the_sender_wait() -> None:
    direction = Direction(Shape(rate=1000.0, buffer=500), 0)
    assert direction.room_at(3.0) == 3.0
    direction.enter(3.0, 2000)  # 2 s at the bottleneck
    assert direction.room_at(3.0) == pytest.approx(4.5)  # when 500 bytes are left of it
    assert direction.room_at(4.75) == 4.75


def test_without_a_bottleneck_there_is_always_room() -> None:
    direction = Direction(Shape(Delays((0.5,))), 0)
    direction.enter(0.0, 10**9)
    assert direction.room_at(0.0) == 0.0


def test_delays_follow_their_quantiles() -> None:
    delays = Delays((0.01, 0.02, 0.05), hold_s=0.001)
    direction = Direction(Shape(delays), 3)
    waits = [direction.enter(float(at), 1) - at for at in range(4000)]
    for share, expected in ((0.25, 0.015), (0.5, 0.02), (0.75, 0.035)):
        found = statistics.quantiles(waits, n=100)[round(100 * share) - 1]
        assert found == pytest.approx(expected, abs=0.002)
    assert (min(waits), max(waits)) == pytest.approx((0.01, 0.05), abs=1e-3)


def test_a_delay_is_held_for_a_while() -> None:
    direction = Direction(Shape(Delays((0.0, 1.0), hold_s=0.5)), 1)
    first = direction.enter(0.0, 1)
    waits = {round(direction.enter(2.0 + at / 1e4, 1) - (2.0 + at / 1e4), 9) for at in range(100)}
    assert len(waits) <= 3
    assert first >= 0


def test_stalls_hold_up_what_falls_into_them() -> None:
    stalled = Direction(Shape(stalls=Stalls(every_s=1.0, for_s=0.4)), 5)
    waits = [stalled.enter(at / 100, 1) - at / 100 for at in range(10_000)]
    assert max(waits) == pytest.approx(0.4, abs=0.011)
    share = sum(wait > 0 for wait in waits) / len(waits)
    assert share == pytest.approx(0.4 / 1.4, abs=0.06)


TRACE = (7, 7, 10, 20)


@pytest.mark.parametrize(
    ("start", "packets", "end"),
    [
        (0.0, 1, 0.007),
        (0.0, 2, 0.007),
        (0.0, 3, 0.010),
        (0.007, 1, 0.010),  # an opportunity is used by what is there before it
        (0.0, 4, 0.020),
        (0.0, 5, 0.027),  # the trace begins anew
        (0.0, 9, 0.047),
        (0.0201, 1, 0.027),
        (10.0, 1, 10.007),
    ],
)
def test_packets_take_the_opportunities_of_a_trace(start: float, packets: int, end: float) -> None:
    last = first_after(TRACE, start) + packets - 1
    assert time_of(TRACE, last) == pytest.approx(end)
    assert Direction(Shape(trace=TRACE), 0).enter(start, packets * PACKET) == pytest.approx(end)


def test_no_opportunity_is_used_twice() -> None:
    direction = Direction(Shape(trace=TRACE), 0)
    outs = [direction.enter(10.0, PACKET) for _ in range(4000)]
    assert outs[-1] == pytest.approx(10.0 + 0.02 * 1000)


def test_a_trace_is_read_in_milliseconds(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text("7\n7\n10\n20\n")
    assert read_trace(file) == TRACE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one opportunity"),
        ("0\n", "at least one opportunity"),
        ("7\nx\n", r"trace:2: 'x'; expected milliseconds"),
        ("7\n3\n", r"trace:2: '3'"),
        ("-1\n", r"trace:1: '-1'"),
    ],
)
def test_a_bad_trace_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_trace(file)


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none: No such file"):
        read_trace(tmp_path / "none")


def test_units() -> None:
    assert [seconds(text) for text in ("50ms", "0.2s", ".5ms", "100us")] == pytest.approx(
        [0.05, 0.2, 0.0005, 0.0001]
    )
    assert [bytes_per_second(text) for text in ("8bit", "800kbit", "5mbit")] == [1, 1e5, 625e3]


@pytest.mark.parametrize("text", ["50", "ms", "-5ms", "5 ms", "5min", "", "infms", "nanms"])
def test_what_is_no_quantity_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time; write for example 50ms"):
        seconds(text)
    with pytest.raises(UsageError, match="is not a rate"):
        bytes_per_second(text)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="lets nothing through"):
        bytes_per_second("0mbit")


def test_a_symmetric_link_takes_half_the_round_trip_each_way() -> None:
    up, down = symmetric(0.05, 0.01, 1000.0, None)
    assert up.delays.quantiles == down.delays.quantiles == pytest.approx((0.02, 0.03))
    assert (up.rate, down.rate) == (1000.0, None)
    assert symmetric(0.05, 0.0, None, None)[0].delays.quantiles == (0.025,)
    assert symmetric(0.01, 0.05, None, None)[0].delays.quantiles[0] == 0.0


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_whole(name: str) -> None:
    for shape in profile(name):
        quantiles = shape.delays.quantiles
        assert list(quantiles) == sorted(quantiles)
        assert quantiles[0] >= 0
        assert shape.rate is None or shape.rate > 0


def test_a_measured_profile_has_the_percentiles_it_was_made_from() -> None:
    up, down = profile("4g-lte")
    for share, milliseconds in ((0.1, 53), (0.5, 89), (0.9, 105)):
        round_trip = up.delays.at(share) + down.delays.at(share)
        assert math.isclose(1000 * round_trip, milliseconds)


def test_an_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="no link profile 'moon'; choose from loopback, lan"):
        profile("moon")

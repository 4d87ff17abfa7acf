"""The pure parts of benchmarks/capacity: figures of a window, capacity, table, chart, recording."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity import Reading, capacity, limits_table, nearest_rank, numbers, reading
from benchmarks.capacity_chart import chart
from benchmarks.capacity_load import Load, PartedError, Seen, _Clients
from benchmarks.capacity_recording import Recording, Text, _text, without_timing
from common import wire
from common.types import (
    Draft,
    GeneratedTokens,
    OpenSession,
    Outcome,
    Peer,
    SamplingParams,
    StepTiming,
    StopParams,
    Verdict,
)

OPENING = OpenSession(
    Peer("1.0", "f" * 64, 100, "float32"), (1, 2), SamplingParams(), StopParams(8)
)
BEFORE = {
    "outrider_iteration_sessions_count": 10.0,
    "outrider_iteration_sessions_sum": 30.0,
    "outrider_iteration_seconds_sum": 1.0,
    "outrider_draft_iteration_seconds_sum": 0.5,
}
AFTER = {
    "outrider_iteration_sessions_count": 14.0,
    "outrider_iteration_sessions_sum": 42.0,
    "outrider_iteration_seconds_sum": 1.2,
    "outrider_draft_iteration_seconds_sum": 0.6,
}


def seen() -> Seen:
    """A window from 10 s to 12 s, with something just outside of it on either side."""
    return Seen(
        arrivals=[(9.9, 100), (10.0, 3), (11.0, 5), (11.99, 2), (12.0, 100)],
        texts=[(9.9, 0.1, 9.0), (10.5, 0.1, 0.010), (11.0, 0.1, None), (11.5, 0.1, 0.030),
               (12.0, 0.1, 9.0)],
        parted=1,
        overslept=[0.001, 0.003],
        begun_s=10.0,
        ended_s=12.0,
        before=BEFORE,
        after=AFTER,
        client_cpu_s=0.5,
    )  # fmt: skip


def a_reading(clients: int, tokens_per_s: float, p95_ms: float) -> Reading:
    return Reading(clients, tokens_per_s, p95_ms / 2, p95_ms, 1, 1, 1, 0, 9, 0, 0.1, 0)


def test_a_reading_counts_what_came_within_its_window() -> None:
    read = reading(4, seen())
    assert asdict(read) == pytest.approx(
        {
            "clients": 4,
            "tokens_per_s": 5,
            "tpot_p50_ms": 20,
            "tpot_p95_ms": 30,
            "sessions": 3,
            "forwards": 0.4,
            "busy_ms": 20,
            "draft_busy_ms": 10,
            "texts": 2,
            "parted": 1,
            "client_share": 0.25,
            "overslept_ms": 2,
        }
    )


def test_a_window_in_which_no_text_ended_says_what_to_do() -> None:
    nothing = seen()
    nothing.texts = []
    with pytest.raises(SystemExit, match=r"no text of 4 clients ended.*--seconds longer"):
        reading(4, nothing)


@given(st.lists(st.integers(0, 9), min_size=1), st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
def test_the_nearest_rank_is_the_smallest_that_enough_do_not_exceed(
    values: list[int], share: float
) -> None:
    found = nearest_rank(values, share)
    assert found in values
    within = [sum(other <= value for other in values) / len(values) for value in sorted(values)]
    smallest = next(v for v, w in zip(sorted(values), within, strict=True) if w >= share)
    assert found == smallest


def test_capacity_is_the_fastest_load_within_the_limit() -> None:
    loads = [a_reading(1, 100, 5), a_reading(8, 400, 20), a_reading(16, 300, 10)]
    assert capacity(loads, 20) is loads[1]
    assert capacity(loads, 19) is loads[2]
    assert capacity(loads, 4) is None


def test_limits_are_told_with_the_ratio_to_the_first_arm() -> None:
    found = {
        "cloud_optimized": [a_reading(1, 100, 5), a_reading(8, 200, 20)],
        "speculative": [a_reading(1, 120, 9), a_reading(8, 500, 20)],
        "cloud_assisted": [a_reading(1, 60, 15), a_reading(8, 150, 25)],
    }
    rows = [line.split(" | ") for line in str(limits_table(found, [4, 10, 20])).splitlines()[2:]]
    cells = [[cell.strip("| `") for cell in row] for row in rows]
    assert cells == [
        ["4", "cloud_optimized", "none is within", "", ""],
        ["4", "speculative", "none is within", "", ""],
        ["4", "cloud_assisted", "none is within", "", ""],
        ["10", "cloud_optimized", "100", "1", "1.00"],
        ["10", "speculative", "120", "1", "1.20"],
        ["10", "cloud_assisted", "none is within", "", ""],
        ["20", "cloud_optimized", "200", "8", "1.00"],
        ["20", "speculative", "500", "8", "2.50"],
        ["20", "cloud_assisted", "60", "1", "0.30"],
    ]


def test_the_chart_is_svg_with_each_arm_in_both_panels() -> None:
    curves = {
        "cloud_optimized": [a_reading(1, 100, 5), a_reading(8, 200, 20)],
        "speculative": [a_reading(1, 120, 9), a_reading(8, 400, 20)],
    }
    drawn = ElementTree.fromstring(chart(curves))
    kind = "{http://www.w3.org/2000/svg}"
    lines = [
        [tuple(map(float, point.split(","))) for point in (line.get("points") or "").split()]
        for line in drawn.iter(f"{kind}polyline")
    ]
    assert [len(points) for points in lines] == [2, 2, 2, 2]
    slow, fast = lines[0], lines[1]
    assert [x for x, _ in slow] == [x for x, _ in fast]
    assert all(higher[1] < lower[1] for lower, higher in zip(slow, fast, strict=True))
    texts = [element.text for element in drawn.iter(f"{kind}text")]
    assert {"cloud_optimized", "speculative", "1", "8", "clients"} <= set(texts)


def test_one_load_alone_can_be_drawn() -> None:
    assert "polyline" in chart({"speculative": [a_reading(1, 120, 9)]})


def test_numbers_are_read_with_commas() -> None:
    assert numbers("1,8,64") == (1, 8, 64)


def verdict(accepted: int, token: int | None, timing: StepTiming | None = None) -> Verdict:
    return Verdict(
        step_id=0,
        epoch=0,
        outcome=Outcome.VERIFIED,
        position=0,
        accepted=accepted,
        next_token_id=token,
        timing=timing or StepTiming(),
    )


def test_a_recorded_text_is_what_its_rounds_brought_without_their_timings() -> None:
    drafts = [Draft(0, 2, 0, (5, 6, 7)), Draft(1, 5, 1, (8,))]
    verdicts = [verdict(2, 9, StepTiming(computed_ns=5)), verdict(1, None)]
    text = _text((OPENING, drafts, verdicts))
    assert text.token_ids == (5, 6, 9, 8)
    assert [made.draft for made in text.rounds] == drafts
    assert all(made.verdict.timing == StepTiming() for made in text.rounds)
    assert without_timing(verdicts[0]) == text.rounds[0].verdict


class Server:
    """Streams pieces, as a stub does."""

    def __init__(self, *pieces: tuple[int, ...]) -> None:
        self._pieces = pieces

    def Generate(self, request: object) -> Server:
        return self

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[object]:
        for piece in self._pieces:
            yield wire.generated_to_proto(GeneratedTokens(piece, None, StepTiming()))


def replayed(*pieces: tuple[int, ...]) -> list[int]:
    text = Text(OPENING, (), (5, 6, 7))
    load = Load("cloud_optimized", 1, 0.0, 0.0, 1.0, 0.0)
    clients = _Clients("", Recording((text,), 4, 0.0), load)

    async def run() -> list[int]:
        return [n async for n in clients._streamed(Server(*pieces), text, load.arm)]

    return asyncio.run(run())


def test_a_streamed_text_that_is_the_recorded_one_is_counted() -> None:
    assert replayed((5,), (6, 7)) == [1, 2]


@pytest.mark.parametrize("pieces", [[(5,), (6, 8)], [(5,), (6,)], [(5, 6), (7, 8)]])
def test_a_streamed_text_that_is_another_shorter_or_longer_has_parted(
    pieces: list[tuple[int, ...]],
) -> None:
    with pytest.raises(PartedError):
        replayed(*pieces)

"""The trace is one that Perfetto can open, and shows what the records say."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.types import FinishReason
from edge_client.draft_length import FixedPace
from edge_client.experiments.records import Record, error_record, record_from_steps
from edge_client.experiments.trace import GENERATIONS, trace_events
from edge_client.experiments.trace_rows import TraceRows
from tests.unit.edge.simulated import World, simulate
from tests.unit.experiments.fakes import MS, piece, streamed, unit
from tests.unit.experiments.test_waste import pipelined, record_of

END = FinishReason.MAX_NEW_TOKENS

Events = list[dict[str, Any]]


def checked(trace: dict[str, Any]) -> Events:
    """Returns the events of a trace after checking that it is one by the format's rules."""
    events: Events = json.loads(json.dumps(trace, allow_nan=False))["traceEvents"]
    named: dict[str, set[Any]] = {"process_name": set(), "thread_name": set()}
    open_flights: dict[str, Any] = {}
    rows = defaultdict(list)
    for event in events:
        assert {"ph", "name", "pid", "tid"} <= set(event), event
        if event["ph"] == "M":
            assert set(event["args"]) in ({"name"}, {"sort_index"})
            named.get(event["name"], set()).add((event["pid"], event["tid"]))
            continue
        assert type(event["ts"]) is int
        assert {"cat", "args"} <= set(event)
        assert None not in event["args"].values()
        if event["ph"] == "X":
            assert type(event["dur"]) is int
            assert event["dur"] >= 0
            rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "b":
            assert open_flights.setdefault(event["id"], event) is event, "an id of its own"
        else:
            assert event["ph"] == "e"
            begun = open_flights[event["id"]]
            assert begun.pop("ph") == "b", "ended once, after its beginning"
            assert begun["ts"] <= event["ts"]
            assert all(begun[key] == event[key] for key in ("cat", "name", "pid"))
    assert all("ph" not in begun for begun in open_flights.values()), "every flight ends"
    assert rows.keys() <= named["thread_name"]
    assert {(pid, 0) for pid, _ in rows} <= named["process_name"]
    for spans in rows.values():
        for (_, end), (begin, _) in zip(sorted(spans), sorted(spans)[1:], strict=False):
            assert end <= begin
    return json.loads(json.dumps(trace))["traceEvents"]  # type: ignore[no-any-return]


def drawn(events: Events, process: str, row: str) -> list[tuple[str, float, float]]:
    """Returns the spans of a row, in milliseconds: name, begin, end."""
    pids = {
        e["pid"] for e in events if e["name"] == "process_name" and e["args"]["name"] == process
    }
    tids = {
        (e["pid"], e["tid"])
        for e in events
        if e["name"] == "thread_name" and e["args"]["name"].startswith(row) and e["pid"] in pids
    }
    return [
        (e["name"], e["ts"] / 1000, (e["ts"] + e["dur"]) / 1000)
        for e in events
        if e["ph"] == "X" and (e["pid"], e["tid"]) in tids
    ]


def flights(events: Events) -> dict[str, tuple[float, float]]:
    """Returns the flights, in milliseconds: name to begin and end."""
    ends = {e["id"]: e["ts"] for e in events if e["ph"] == "e"}
    return {e["name"]: (e["ts"] / 1000, ends[e["id"]] / 1000) for e in events if e["ph"] == "b"}


def traced(*records: Record) -> Events:
    return checked(trace_events(records))


def test_drafts_fly_while_others_are_made_and_the_overtaken_are_shown() -> None:
    events = traced(record_of(pipelined()))  # began 600 ms after the run
    assert drawn(events, "edge", "generations") == [("speculative p", 600, 632)]
    assert drawn(events, "edge", "drafting") == [
        ("draft 0", 600, 604),
        ("draft 1", 604, 607),
        ("draft 2", 614, 618),
        ("draft 3", 618, 620),
        ("draft 3", 620, 622),
    ]
    assert flights(events) == {
        "round 0": (604, 614),
        "overtaken 1": (607, 620),
        "round 2": (618, 628),
        "round 3": (622, 632),
    }


def test_the_server_s_time_lies_in_the_middle_of_its_flight() -> None:
    """Of 10 ms the server took 8: 1 in the queue, 0.5 for the batch, 6 computing, 0.5 besides."""
    events = traced(record_of(pipelined()))
    queue, wait, compute = (drawn(events, "cloud", r) for r in ("queue", "batch wait", "compute"))
    assert queue[0] == ("round 0", 605, 606)
    assert wait[0] == ("round 0", 606, 606.5)
    assert compute[0] == ("round 0", 606.5, 612.5)
    assert [name for name, _, _ in compute] == ["round 0", "round 2", "round 3"]


def test_what_would_overlap_in_a_row_is_laid_beside_it() -> None:
    events = traced(record_of(pipelined()))  # rounds 2 and 3 are 4 ms apart, and compute 6
    names = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"compute", "compute (2)"} <= names
    assert "drafting (2)" not in names


def test_a_draft_in_flight_when_the_text_ends_ends_with_it() -> None:
    left = pipelined()[1]
    steps = [*pipelined()[:1], replace(left, received_ns=None, bytes_up=None), pipelined()[3]]
    events = traced(record_of(steps))
    assert flights(events)["overtaken by the end 1"] == (607, 632)


def test_pieces_of_a_stream_follow_each_other_on_the_server() -> None:
    steps = [streamed(1), streamed(2, elapsed_ms=8), streamed(3, elapsed_ms=9, end=END)]
    arrivals = [10 * MS, 18 * MS, 27 * MS]
    record = record_from_steps(unit("cloud"), (1,), steps, arrivals, run_started_ns=0)
    events = traced(record)
    assert flights(events) == {"piece 0": (0, 10), "piece 1": (10, 18), "piece 2": (18, 27)}
    # 2 ms of network in the first, half of it on the way up; then 8 ms a piece.
    assert drawn(events, "cloud", "queue") == [
        ("piece 0", 1, 2),
        ("piece 1", 9, 10),
        ("piece 2", 17, 18),
    ]


def test_the_edge_alone_drafts_all_the_time() -> None:
    steps = [piece(1), piece(2, end=END)]
    record = record_from_steps(unit("edge"), (1,), steps, [2 * MS, 5 * MS], run_started_ns=0)
    events = traced(record)
    assert drawn(events, "edge", "drafting") == [("token 0", 0, 2), ("token 1", 2, 5)]
    assert flights(events) == {}


def made(order: int, repeat: int = 0) -> Record:
    steps = [piece(1, end=END)]
    where = unit("edge", order=order, repeat=repeat)
    return record_from_steps(where, (1,), steps, [MS], started_ns=order * MS, run_started_ns=0)


def test_only_the_first_repeat_and_so_many_generations_are_traced() -> None:
    records = [made(0), error_record(unit(), None, "gone"), made(2, repeat=1)]
    trace = trace_events(records)
    assert drawn(checked(trace), "edge", "generations") == [("edge p", 0, 1)]
    assert (trace["otherData"]["generations"], trace["otherData"]["of_generations"]) == (1, 3)
    many = [made(order) for order in range(GENERATIONS + 5)]
    assert trace_events(many)["otherData"]["generations"] == GENERATIONS


def test_flights_of_two_generations_are_told_apart() -> None:
    again = replace(record_of(pipelined()), order=1)
    traced(record_of(pipelined()), again)


def test_a_run_without_records_is_a_trace_too() -> None:
    assert {event["ph"] for event in traced()} == {"M"}


@pytest.mark.parametrize("ahead", [0, 2, 4])
@pytest.mark.parametrize("acceptance", [0.5, 0.95])
def test_what_the_loop_does_is_a_valid_trace(ahead: int, acceptance: float) -> None:
    world = World(draft_ms=2, rtt_ms=lambda ms: 40 + ms % 7, acceptance=acceptance)
    came = simulate(world, FixedPace(3, 8, ahead), 40)
    record = record_from_steps(
        unit(), (1,), [step for _, step in came], [at for at, _ in came], run_started_ns=0
    )
    events = traced(record)
    assert len(flights(events)) == len(came)
    assert drawn(events, "edge", "drafting (2)") == []


Spans = Sequence[tuple[int, int]]


@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 9_000)), max_size=30))
def test_whatever_is_drawn_the_trace_is_valid(spans: Spans) -> None:
    rows = TraceRows({"edge": ("a",), "cloud": ("b",)})
    for number, (begin, length) in enumerate(spans):
        rows.span("cloud", "b", "x", (begin, begin + length), fact=number)
        rows.flight("edge", "f", str(number), (begin, begin + length), nothing=None)
    assert sum(e["ph"] == "X" for e in checked({"traceEvents": rows.events()})) == len(spans)


def test_a_draft_on_the_server_lies_between_its_queue_and_its_forward() -> None:
    piece = replace(streamed(1, end=END), draft_ns=MS, num_draft_tokens=1, num_accepted_tokens=0)
    record = record_from_steps(unit("cloud_assisted"), (1,), [piece], [10 * MS], run_started_ns=0)
    events = traced(record)
    (queue,), (draft,) = (drawn(events, "cloud", row) for row in ("queue", "drafting"))
    assert (draft[1], draft[2]) == (queue[2], queue[2] + 1)
    assert not drawn(events, "edge", "drafting")

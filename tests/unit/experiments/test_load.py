"""Many clients at once, by fake arms on real threads; waiting by a clock that is moved."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

import pytest

from common.errors import UnavailableError
from common.types import SamplingParams, StopParams
from edge_client.arms import GenerationRequest
from edge_client.experiments.execution import Execution
from edge_client.experiments.load import Load, poisson_arrivals, requests
from edge_client.experiments.load_table import load_summary, render_load
from edge_client.experiments.prompts import Prompt
from edge_client.experiments.records import Record
from edge_client.steps import Step
from tests.unit.experiments.fakes import MS, FakeArm, FakeClock, FakeEncoder, Script, streamed
from tests.unit.experiments.test_runner import END

PROMPTS = tuple(Prompt(f"p{i}", ("a", "b")[: i % 2 + 1], "turns", f"f:{i}") for i in range(1, 5))


def answer(_: GenerationRequest) -> Sequence[tuple[float, Step]]:
    return [(4, streamed(1)), (6, streamed(2, end=END))]


def client(clock: FakeClock, script: Script = answer) -> Execution:
    return Execution(
        run_id="run",
        arms={"cloud": FakeArm("cloud", clock, script)},
        prompts=PROMPTS,
        encoder=FakeEncoder(),
        sampling=SamplingParams(),
        stop=StopParams(max_new_tokens=2),
        repeats=1,
        draft_dtype="float32",
        target_dtype="float32",
        clock=clock,
    )


def told(load: Load, records: Sequence[Record], took: int, **more: Any) -> dict[str, Any]:
    named: dict[str, Any] = {"run_id": "run", "planned": load.started, "rate": None, "seed": 1}
    return load_summary(load, records, took, interrupted=False, environment={}, **(named | more))


def test_arrivals_are_poisson_and_the_seed_s_own() -> None:
    arrivals = poisson_arrivals(4.0, 4000, 7)
    assert arrivals == poisson_arrivals(4.0, 4000, 7) != poisson_arrivals(4.0, 4000, 8)
    gaps = [(after - before) / 1e9 for before, after in pairwise((0, *arrivals))]
    assert all(gap >= 0 for gap in gaps)
    assert mean(gaps) == pytest.approx(0.25, rel=0.05)
    # An exponential gap is longer than its mean with probability 1/e.
    assert sum(gap > 0.25 for gap in gaps) / 4000 == pytest.approx(0.368, abs=0.03)


def test_prompts_are_taken_over_and_over() -> None:
    asked = list(requests(PROMPTS, 6, None))
    assert [(r.prompt.prompt_id, r.repeat) for r in asked] == [
        ("p1", 0), ("p2", 0), ("p3", 0), ("p4", 0), ("p1", 1), ("p2", 1)
    ]  # fmt: skip
    assert [r.order for r in asked] == [0, 2, 3, 5, 6, 8]


def test_in_a_closed_loop_all_clients_are_busy_and_nothing_is_asked_twice() -> None:
    clock, records = FakeClock(), list[Record]()
    together = threading.Barrier(3, timeout=30)
    first = threading.local()

    def meeting(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        if not hasattr(first, "met"):
            first.met = together.wait()  # every client has a request in hand
        return answer(request)

    clients = [client(clock, meeting) for _ in range(3)]
    load = Load(clients, "cloud", requests(PROMPTS, 12, None), clock, records.append)
    load.run()
    places = {(r.prompt_id, r.turn, r.repeat) for r in records}
    assert len(places) == len(records) == 18
    assert sorted(r.order for r in records) == list(range(18))
    assert load.most_at_once == 3
    assert {record.waited_s for record in records} == {None}


def test_in_an_open_loop_the_clock_starts_when_a_request_is_due() -> None:
    clock, records = FakeClock(), list[Record]()
    due = [0, 5 * MS, 100 * MS]
    load = Load(
        [client(clock)],
        "cloud",
        requests(PROMPTS[1::2], 3, due),
        clock,
        records.append,
        wait=lambda seconds: clock.advance_ms(seconds * 1e3),
    )
    took = load.run()
    assert [record.waited_s for record in records] == pytest.approx([0, 0.005, 0])
    assert [record.ttft_s for record in records] == pytest.approx([0.004, 0.009, 0.004])
    assert [record.started_s for record in records] == pytest.approx([0, 0.005, 0.1])
    summary = told(load, records, took, rate=30.0)
    assert summary["duration_s"] == pytest.approx(0.11)
    assert summary["requests_per_s"] == pytest.approx(3 / 0.11)
    assert summary["output_tokens_per_s"] == pytest.approx(6 / 0.11)
    assert summary["waited_s"]["mean"]["value"] == pytest.approx(0.005 / 3)
    said = render_load(summary)
    assert "open loop, 30 conversations a second offered" in said
    assert "waited for a client" in said


def test_a_failed_generation_is_counted_and_the_others_go_on() -> None:
    clock, records = FakeClock(), list[Record]()
    seen: list[int] = []

    def failing(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        seen.append(1)
        if len(seen) == 2:
            raise UnavailableError("gone")
        return answer(request)

    load = Load(
        [client(clock, failing)], "cloud", requests(PROMPTS, 4, None), clock, records.append
    )
    took = load.run()
    summary = told(load, records, took)
    assert len(records) == 6
    assert (summary["errors"], summary["requests"]) == (1, 4)
    assert summary["requests_per_s"] == pytest.approx(3 / (took / 1e9))
    assert "closed loop" in render_load(summary)


def test_a_fault_of_ours_in_one_client_ends_all_and_is_raised() -> None:
    clock = FakeClock()

    def broken(_: GenerationRequest) -> Sequence[tuple[float, Step]]:
        raise ZeroDivisionError

    clients = [client(clock, broken), client(clock)]
    load = Load(clients, "cloud", requests(PROMPTS, 4000, None), clock, lambda _: None)
    with pytest.raises(ZeroDivisionError):
        load.run()
    assert load.started < 4000

"""What drafting ahead costs is counted: by the record, its columns, the summary and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.types import FinishReason
from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.readings import _covered
from edge_client.experiments.records import Record, percentiles, record_from_steps
from edge_client.experiments.rows import arm_rows
from edge_client.experiments.statistics import summarize_arm
from edge_client.steps import Step
from tests.unit.experiments.fakes import MS, overtaken, piece, streamed, unit, verified
from tests.unit.experiments.test_report import summary_of

END = FinishReason.MAX_NEW_TOKENS


def at(step: Step, received_ms: float, *drafting_ms: tuple[float, float]) -> Step:
    """Places a step on a clock that showed 1,000 ms when the request was handed over."""
    spans = tuple((round((1000 + a) * MS), round((1000 + b) * MS)) for a, b in drafting_ms)
    return replace(step, received_ns=round((1000 + received_ms) * MS), drafting=spans)


def pipelined() -> list[Step]:
    """A draft rejected after 1 of 4; the one behind it overtaken; one sent ahead and right."""
    first = replace(verified(1, 2, drafted=4, accepted=1), num_wasted_tokens=6)
    second = verified(3, 4, 5, drafted=2, accepted=2)
    ahead = verified(6, 7, drafted=1, accepted=1, end=END)
    return [
        at(first, 14, (0, 4)),
        at(overtaken(guessed=3, draft_ms=3), 20, (4, 7)),
        at(second, 28, (14, 18)),
        at(replace(ahead, ahead=True, num_guessed_tokens=2), 32, (18, 20), (20, 22)),
    ]


def record_of(steps: Sequence[Step], arm: str = "speculative") -> Record:
    arrivals = [14 * MS, 20 * MS, 28 * MS, 32 * MS][-len(steps) :]
    return record_from_steps(
        unit(arm), (1,), steps, arrivals, started_ns=1000 * MS, run_started_ns=400 * MS
    )


def test_drafts_and_guesses_in_vain_are_counted_apart() -> None:
    record = record_of(pipelined())
    assert record.rounds == 3
    assert (record.drafts_ahead, record.overtaken_drafts) == (1, 1)
    assert (record.num_guessed_tokens, record.num_wasted_tokens) == (11, 6)
    assert (record.num_draft_tokens, record.num_accepted_tokens) == (7, 4)
    assert record.num_wasted_target_tokens == 3
    assert record.serialization_ms == percentiles([0.1] * 4)
    assert (record.bytes_up, record.bytes_down) == (120, 130)


def test_raw_steps_say_when_on_the_generation_s_own_clock() -> None:
    record = record_of(pipelined())
    assert record.started_s == 0.6
    assert record.steps is not None
    assert record.steps.received_ns == (14 * MS, 20 * MS, 28 * MS, 32 * MS)
    assert record.steps.drafting_ns is not None
    assert record.steps.drafting_ns[3] == ((18 * MS, 20 * MS), (20 * MS, 22 * MS))
    assert record.steps.overtaken == (False, True, False, False)
    assert record.steps.ahead == (False, True, False, True)
    assert record.steps.num_guessed_tokens == (4, 3, 2, 2)
    assert record.steps.num_wasted_tokens == (6, 0, 0, 0)
    assert record.steps.bytes_up == (30, 30, 30, 30)
    assert record.steps.bytes_down == (40, 10, 40, 40)
    assert record.steps.serialization_ns == (MS // 10,) * 4


def test_where_nothing_is_verified_they_are_null_never_zero() -> None:
    for arm, step in (("edge", piece(1, end=END)), ("cloud", streamed(1, end=END))):
        record = record_of([step], arm)
        for name in (
            "drafts_ahead",
            "overtaken_drafts",
            "num_guessed_tokens",
            "num_wasted_tokens",
            "num_wasted_target_tokens",
        ):
            assert getattr(record, name) is None, name
        assert record.steps is not None
        assert record.steps.drafting_ns is None
        assert record.steps.overtaken is None


def test_totals_and_shares_are_pooled_and_shown() -> None:
    records = [record_of(pipelined()), record_of([verified(1, drafted=1, accepted=0, end=END)])]
    arm = summarize_arm(records, Bootstrap(1))
    assert (arm["drafts_ahead"], arm["overtaken_drafts"]) == (1, 1)
    assert (arm["num_guessed_tokens"], arm["num_wasted_tokens"]) == (12, 7)
    assert arm["num_wasted_target_tokens"] == 4
    assert arm["wasted_share"]["value"] == pytest.approx(7 / 12)
    assert arm["wasted_target_tokens_per_token"]["value"] == pytest.approx(4 / 8)
    assert arm["serialization_ms"]["p95"]["value"] == pytest.approx(0.1)
    cells = {row.label: row.cells["speculative"] for row in arm_rows(summary_of(records))}
    assert cells["overtaken drafts"] == "1/5"
    assert cells["wasted guesses"] == "0.58"
    assert cells["wasted target tokens"] == "0.50"
    assert cells["serialization"] == "0.10"


def test_time_in_which_drafts_are_made_while_others_travel_is_counted_once() -> None:
    """Flights 4-14, 18-28 and 22-32 ms; drafting 0-4, 4-7, 14-18, 18-20 and 20-22."""
    arm = summarize_arm([record_of(pipelined())], Bootstrap(1))
    assert arm["overlap_ms_per_token"]["value"] == pytest.approx((3 + 2 + 2 + 6) / 7)
    values = {name: part["value"] for name, part in arm["ms_per_token"].items()}
    assert sum(values.values()) == pytest.approx((32 + 13) / 7)
    assert values["other"] == pytest.approx(3 * 0.5 / 7)  # the server outside queue and forwards


def test_without_rounds_nothing_overlaps_that_could_be_told() -> None:
    record = record_of([streamed(1, end=END)], "cloud")
    assert summarize_arm([record], Bootstrap(1))["overlap_ms_per_token"] is None


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda s: (min(s), max(s)))))
def test_what_spans_cover_is_what_a_drawing_would_show(spans: list[tuple[int, int]]) -> None:
    assert _covered(spans) == len({t for begin, end in spans for t in range(begin, end)})


def test_a_draft_model_on_the_server_drafts_and_nothing_goes_over_the_link() -> None:
    """4 guesses of which 1 stands, then 2 that both do; 3 ms of drafting in each piece."""

    def assisted(step: Step, drafted: int, accepted: int) -> Step:
        counts = {"num_draft_tokens": drafted, "num_accepted_tokens": accepted}
        made = {"num_guessed_tokens": drafted, "num_wasted_tokens": drafted - accepted}
        return replace(step, draft_ns=3 * MS, **counts, **made)  # type: ignore[arg-type]

    steps = [assisted(streamed(1, 2), 4, 1), assisted(streamed(3, 4, end=END), 2, 2)]
    record = record_of(steps, "cloud_assisted")
    assert (record.rounds, record.num_draft_tokens, record.num_accepted_tokens) == (2, 6, 3)
    assert (record.accepted_per_position, record.drafted_per_position) == (
        (2, 1, 0, 0),
        (2, 2, 1, 1),
    )
    assert (record.num_guessed_tokens, record.num_wasted_tokens) == (6, 3)
    assert (record.num_wasted_target_tokens, record.num_recovered_tokens) == (3, 1)
    assert record.corrected_share == 0.25
    assert record.draft_ms == percentiles([3, 3])
    asked = (record.rtt_ms, record.unasked_blocks, record.cloud_call_rate, record.verified_share)
    assert (*asked, record.drafts_ahead, record.overtaken_drafts) == (None,) * 6
    arm = summarize_arm([record], Bootstrap(1))
    assert arm["acceptance_rate"]["value"] == 0.5
    assert (arm["rtt_ms"], arm["cloud_call_rate"], arm["overlap_ms_per_token"]) == (None,) * 3
    assert arm["ms_per_token"]["draft"]["value"] == 6 / 4
    parts = sum(part["value"] for part in arm["ms_per_token"].values())
    assert parts == pytest.approx(32 / 4)

"""A record is what the steps and the clock say; every number here is worked out by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from common.types import FinishReason
from edge_client.experiments.readings import gap_seconds
from edge_client.experiments.records import (
    Record,
    error_record,
    inter_token_seconds,
    percentiles,
    record_from_steps,
)
from tests.unit.experiments.fakes import MS, piece, streamed, unit, verified

# The contract, as INTERFACE.md lists it.
CONTRACT = [
    "run_id",
    "prompt_id",
    "turn",
    "category",
    "arm",
    "repeat",
    "order",
    "seed",
    "temperature",
    "prompt_tokens",
    "output_token_ids",
    "text",
    "num_output_tokens",
    "finish_reason",
    "ttft_s",
    "e2e_s",
    "tpot_s",
    "inter_token_s",
    "tokens_per_s",
    "rounds",
    "num_draft_tokens",
    "num_accepted_tokens",
    "accepted_per_position",
    "rtt_ms",
    "network_ms",
    "queue_ms",
    "target_compute_ms",
    "draft_ms",
    "bytes_up",
    "bytes_down",
    "target_forward_passes",
    "target_busy_s",
    "draft_dtype",
    "target_dtype",
    "error",
]


def speculative() -> Record:
    """Three rounds of four drafts; arrivals at 20, 50 and 60 ms."""
    steps = [
        verified(1, 2, 3, drafted=4, accepted=2, elapsed_ms=15, draft_ms=5),
        verified(4, 5, 6, 7, 8, drafted=4, accepted=4, elapsed_ms=20, draft_ms=10),
        verified(9, drafted=1, accepted=1, end=FinishReason.EOS, elapsed_ms=9, draft_ms=1),
    ]
    return record_from_steps(unit(), (11, 12), steps, [20 * MS, 50 * MS, 60 * MS])


def test_fields_are_those_of_the_contract_and_come_first() -> None:
    names = [field.name for field in dataclasses.fields(Record)]
    assert names[: len(CONTRACT)] == CONTRACT


def test_times() -> None:
    record = speculative()
    assert record.ttft_s == pytest.approx(0.020)
    assert record.e2e_s == pytest.approx(0.060)
    assert record.num_output_tokens == 9
    assert record.tpot_s == pytest.approx(0.040 / 8)
    assert record.tokens_per_s == pytest.approx(9 / 0.060)


def test_tokens_that_arrive_together_share_the_gap_before_them() -> None:
    gaps = gap_seconds(speculative())
    assert gaps == pytest.approx([0.006] * 5 + [0.010])
    assert sum(gaps) == pytest.approx(0.060 - 0.020)
    assert speculative().inter_token_s == percentiles([0.006] * 5 + [0.010])


def test_the_gaps_of_raw_steps_are_the_gaps_of_the_record() -> None:
    steps = [piece(1), piece(), piece(2, 3), piece(4, end=FinishReason.EOS)]
    arrivals = [1 * MS, 2 * MS, 5 * MS, 6 * MS]
    record = record_from_steps(unit("edge"), (1,), steps, arrivals)
    assert gap_seconds(record) == pytest.approx(inter_token_seconds(steps, arrivals))
    assert gap_seconds(record) == pytest.approx([0.002, 0.002, 0.001])


def test_speculation_is_counted_by_round() -> None:
    record = speculative()
    assert record.rounds == 3
    assert (record.num_draft_tokens, record.num_accepted_tokens) == (9, 7)
    assert record.drafted_per_position == (3, 2, 2, 2)
    assert record.accepted_per_position == (3, 2, 1, 1)
    assert record.mean_accepted_length == pytest.approx(9 / 3)


def test_server_times_and_bytes() -> None:
    record = speculative()
    assert record.rtt_ms == percentiles([15, 20, 9])
    assert record.network_ms == percentiles([7, 12, 1])
    assert record.queue_ms == percentiles([1.5] * 3)
    assert record.target_compute_ms == percentiles([6] * 3)
    assert record.draft_ms == percentiles([5, 10, 1])
    assert (record.bytes_up, record.bytes_down) == (90, 120)
    assert record.target_forward_passes == 3
    assert record.target_busy_s == pytest.approx(0.009)
    assert record.mean_step_sessions == 2


def test_a_round_without_drafts_counts_as_a_round_and_is_not_null() -> None:
    step = verified(1, drafted=0, accepted=0, end=FinishReason.MAX_NEW_TOKENS)
    record = record_from_steps(unit(), (1,), [step], [MS])
    assert (record.rounds, record.num_draft_tokens, record.num_accepted_tokens) == (1, 0, 0)
    assert record.accepted_per_position == ()


def test_what_does_not_apply_to_a_streamed_arm_is_null_never_zero() -> None:
    steps = [streamed(1), streamed(2, end=FinishReason.MAX_NEW_TOKENS)]
    record = record_from_steps(unit("cloud"), (1,), steps, [10 * MS, 20 * MS])
    for name in [
        "rounds",
        "num_draft_tokens",
        "num_accepted_tokens",
        "accepted_per_position",
        "drafted_per_position",
        "mean_accepted_length",
        "rtt_ms",
        "draft_ms",
        "error",
    ]:
        assert getattr(record, name) is None, name
    assert record.network_ms == percentiles([2, 2])
    assert record.target_forward_passes == 2


def test_what_does_not_apply_to_the_edge_is_null_never_zero() -> None:
    steps = [piece(1), piece(2, end=FinishReason.MAX_NEW_TOKENS)]
    record = record_from_steps(unit("edge", target_dtype=None), (1,), steps, [MS, 2 * MS])
    for name in [
        "rounds",
        "num_draft_tokens",
        "accepted_per_position",
        "rtt_ms",
        "network_ms",
        "queue_ms",
        "target_compute_ms",
        "draft_ms",
        "bytes_up",
        "bytes_down",
        "target_forward_passes",
        "target_busy_s",
        "mean_step_sessions",
        "target_dtype",
        "error",
    ]:
        assert getattr(record, name) is None, name
    assert record.steps is not None
    assert record.steps.total_ns is None
    assert record.steps.num_tokens == (1, 1)


def test_one_token_has_no_time_between_tokens() -> None:
    record = record_from_steps(unit("edge"), (1,), [piece(5, end=FinishReason.EOS)], [3 * MS])
    assert record.tpot_s is None
    assert record.inter_token_s is None
    assert record.ttft_s == record.e2e_s == pytest.approx(0.003)


def test_the_first_token_counts_not_the_first_arrival() -> None:
    steps = [verified(drafted=2, accepted=0), verified(1, drafted=1, accepted=0)]
    record = record_from_steps(unit(), (1,), steps, [5 * MS, 9 * MS])
    assert record.ttft_s == pytest.approx(0.009)
    assert record.rounds == 2


def test_text_and_reason_come_from_the_steps() -> None:
    record = speculative()
    assert record.output_token_ids == tuple(range(1, 10))
    assert record.text == "".join(f"<{i}>" for i in range(1, 10))
    assert record.finish_reason == "eos"


def test_a_failure_measures_nothing_and_says_why() -> None:
    record = error_record(unit(), (1, 2), "UNAVAILABLE: the server is gone")
    known = {name: value for name, value in dataclasses.asdict(record).items() if value is not None}
    identity = set(CONTRACT[:10]) - {"category"}
    assert set(known) == identity | {
        "draft_dtype",
        "target_dtype",
        "error",
        "schema_version",
        "prompt_token_ids",
        "verification",
        "lossless",
    }
    assert record.prompt_tokens == 2


def test_a_record_is_one_line_of_strict_json() -> None:
    steps = [dataclasses.replace(piece(1, end=FinishReason.EOS), text="a\nb\u2028\ud800</script>")]
    line = record_from_steps(unit("edge"), (1,), steps, [MS]).to_json()
    assert line.isascii()
    assert len(line.splitlines()) == 1
    read = json.loads(line)
    assert read["text"] == "a\nb\u2028\ud800</script>"
    assert read["output_token_ids"] == [1]
    assert list(read)[: len(CONTRACT)] == CONTRACT


def test_percentiles_interpolate_linearly() -> None:
    found = percentiles([1, 2, 3, 4])
    assert found is not None
    assert found.p50 == 2.5
    assert found.p95 == pytest.approx(3.85)
    assert found.p99 == pytest.approx(float(np.percentile([1, 2, 3, 4], 99)))
    assert percentiles([]) is None

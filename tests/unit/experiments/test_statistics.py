from __future__ import annotations

import pytest

from common.types import FinishReason
from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.records import Record, error_record, record_from_steps
from edge_client.experiments.statistics import summarize_arm
from tests.unit.experiments.fakes import MS, piece, streamed, unit, verified

END = FinishReason.MAX_NEW_TOKENS


def split(prompt_id: str, accepted: int, drafted: int, elapsed_ms: float = 10) -> Record:
    step = verified(
        *range(accepted + 1), drafted=drafted, accepted=accepted, end=END, elapsed_ms=elapsed_ms
    )
    return record_from_steps(unit(prompt_id=prompt_id), (1,), [step], [round(elapsed_ms * MS)])


def test_pooled_is_the_sum_over_the_sum_and_not_the_mean_of_rates() -> None:
    arm = summarize_arm([split("a", 4, 4), split("b", 0, 1)], Bootstrap(1))
    assert arm["acceptance_rate"]["value"] == pytest.approx(4 / 5)
    assert arm["acceptance_rate_mean_of_prompts"]["value"] == pytest.approx(0.5)
    assert arm["mean_accepted_length"]["value"] == pytest.approx(3)
    assert arm["accepted_per_position"] == [1, 1, 1, 1]
    assert arm["drafted_per_position"] == [2, 1, 1, 1]
    assert [p["value"] for p in arm["acceptance_by_position"]] == [0.5, 1, 1, 1]
    assert (arm["rounds"], arm["num_draft_tokens"], arm["num_accepted_tokens"]) == (2, 5, 4)


def test_tokens_per_second_pools_tokens_and_seconds() -> None:
    records = [split("a", 4, 4, elapsed_ms=10), split("b", 0, 4, elapsed_ms=30)]
    arm = summarize_arm(records, Bootstrap(1))
    assert arm["tokens_per_s"]["value"] == pytest.approx(6 / 0.040)
    low, high = arm["tokens_per_s"]["ci95"]
    assert low == pytest.approx(1 / 0.030)
    assert high == pytest.approx(5 / 0.010)


def test_percentiles_pool_all_rounds() -> None:
    records = [split(str(i), 0, 4, elapsed_ms=i) for i in range(1, 102)]
    arm = summarize_arm(records, Bootstrap(1))
    assert arm["rtt_ms"]["p50"]["value"] == pytest.approx(51)
    assert arm["rtt_ms"]["p95"]["value"] == pytest.approx(96)
    assert arm["rtt_ms"]["mean"]["value"] == pytest.approx(51)


def test_per_token_numbers_pool_over_tokens() -> None:
    arm = summarize_arm([split("a", 3, 4), split("b", 0, 4)], Bootstrap(1))
    assert arm["bytes_per_token"]["value"] == pytest.approx(2 * 70 / 5)
    assert arm["bytes_up_per_token"]["value"] == pytest.approx(2 * 30 / 5)
    assert arm["target_forward_passes_per_token"]["value"] == pytest.approx(2 / 5)
    assert arm["target_busy_ms_per_token"]["value"] == pytest.approx(2 * 3 / 5)
    assert arm["mean_step_sessions"]["value"] == 2


def test_the_parts_of_a_token_s_time_add_up() -> None:
    steps = [verified(1, 2, drafted=2, accepted=1, elapsed_ms=10, draft_ms=4, end=END)]
    record = record_from_steps(unit(), (1,), steps, [16 * MS])
    parts = summarize_arm([record], Bootstrap(1))["ms_per_token"]
    values = {name: part["value"] for name, part in parts.items()}
    assert values == pytest.approx(
        {"draft": 2, "network": 1, "queue": 0.75, "target_compute": 3, "other": 1.25}
    )
    assert sum(values.values()) == pytest.approx(16 / 2)


def test_all_of_the_edge_s_time_is_drafting() -> None:
    record = record_from_steps(unit("edge"), (1,), [piece(1, end=END)], [3 * MS])
    parts = summarize_arm([record], Bootstrap(1))["ms_per_token"]
    assert parts["draft"]["value"] == pytest.approx(3)
    assert parts["other"]["value"] == pytest.approx(0)
    assert parts["network"] is None


def test_failures_are_counted_and_left_out() -> None:
    good = split("a", 4, 4)
    arm = summarize_arm([good, error_record(unit(prompt_id="b"), None, "gone")], Bootstrap(1))
    assert (arm["records"], arm["errors"], arm["prompts"]) == (2, 1, 1)
    assert arm["tokens_per_s"] == {"value": pytest.approx(500), "ci95": None}
    assert arm["finish_reasons"] == {"max_new_tokens": 1}


def test_only_failures_leave_nothing_but_their_number() -> None:
    arm = summarize_arm([error_record(unit(), None, "gone")], Bootstrap(1))
    assert (arm["records"], arm["errors"]) == (1, 1)
    for name in [
        "tokens_per_s",
        "ttft_s",
        "acceptance_rate",
        "rtt_ms",
        "rounds",
        "num_output_tokens",
    ]:
        assert arm[name] is None, name


def test_what_does_not_apply_is_null() -> None:
    record = record_from_steps(unit("cloud"), (1,), [streamed(1, end=END)], [MS])
    arm = summarize_arm([record], Bootstrap(1))
    for name in [
        "rounds",
        "acceptance_rate",
        "mean_accepted_length",
        "rtt_ms",
        "draft_ms",
        "tpot_s",
    ]:
        assert arm[name] is None, name
    assert arm["acceptance_by_position"] is None

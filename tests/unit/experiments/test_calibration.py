"""What a plan takes from the records of a bench: known rounds in, known terms out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from edge_client.experiments.calibration import POOLED_WEIGHT, calibrate, read_calibration

MS = 1_000_000
# Draft 2 ms a token and 3 a round, network 23, target 5 + 1 a token, server 0.5.
ROUNDS = ((4, 4), (4, 0), (2, 1), (4, 2), (1, 1))  # drafted, accepted


def speculative(rounds: Sequence[tuple[int, int]] = ROUNDS, **changes: Any) -> dict[str, Any]:
    now, rows = 0.0, []
    for index, (drafted, accepted) in enumerate(rounds):
        draft, computed = 3 + 2 * drafted, 5 + drafted + 1
        elapsed = 23 + computed + 0.5
        now += draft + elapsed + (0 if index else 40)  # the first waits for the prompt
        rows.append((now, elapsed, draft, drafted, accepted, computed, computed + 0.5))
    names = ("arrival_ns", "elapsed_ns", "draft_ns", "num_draft_tokens", "num_accepted_tokens")
    columns = dict(zip((*names, "computed_ns", "total_ns"), zip(*rows, strict=True), strict=True))
    steps = {
        name: [value if name.startswith("num") else round(value * MS) for value in column]
        for name, column in columns.items()
    }
    tokens = sum(accepted + 1 for _, accepted in rounds)
    record = {"arm": "speculative", "error": None, "num_output_tokens": tokens, "steps": steps}
    return record | changes


def edge() -> dict[str, Any]:
    steps = {"arrival_ns": [MS]}
    return {"arm": "edge", "error": None, "num_output_tokens": 11, "steps": steps} | {
        "ttft_s": 0.005,
        "e2e_s": 0.025,
    }


def cloud() -> dict[str, Any]:
    steps = {
        "arrival_ns": [30 * MS, 37 * MS, 44 * MS, 51 * MS],
        "num_tokens": [1, 1, 1, 1],
        "computed_ns": [20 * MS, 6 * MS, 6 * MS, None],
        "total_ns": [25 * MS, 7 * MS, 7 * MS, None],
    }
    return {"arm": "cloud_optimized", "error": None, "num_output_tokens": 4, "steps": steps}


def written(path: Path, *records: object) -> Path:
    (path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_term_is_found_again(tmp_path: Path) -> None:
    found = read_calibration(written(tmp_path, speculative(), edge(), cloud()))
    assert found.draft_s == pytest.approx(2e-3)
    assert found.edge_round_s == pytest.approx(3e-3)
    assert found.network_s == pytest.approx(23e-3)
    assert found.target_s == pytest.approx(5e-3)
    assert found.target_token_s == pytest.approx(1e-3)
    assert found.server_round_s == pytest.approx(0.5e-3)
    assert found.alone_s == pytest.approx(7e-3)
    assert found.text_tokens == round((13 + 11 + 4) / 3)
    assert found.notes == ()
    # The first round took 40 ms more than its like; the mean round here drafts less than it.
    like = 3 + 2 * 4 + 23 + 5 + 5 + 0.5
    assert found.opening_s == pytest.approx(40e-3 + (like - mean_round_ms()) / 1e3)


def mean_round_ms() -> float:
    later = ROUNDS[1:]
    return sum(3 + 2 * n + 23 + 5 + n + 1 + 0.5 for n, _ in later) / len(later)


def test_the_file_itself_may_be_named_and_failures_are_left_out(tmp_path: Path) -> None:
    failed = speculative(error="UNAVAILABLE: gone", steps=None)
    folder = written(tmp_path, failed, speculative())
    assert read_calibration(folder / "records.jsonl") == read_calibration(folder)
    assert read_calibration(folder).network_s == pytest.approx(23e-3)


def test_without_the_edge_arm_a_draft_token_is_the_pooled_mean() -> None:
    found = calibrate([speculative()])
    drafted = [n for n, _ in ROUNDS[1:]]
    assert found.draft_s == pytest.approx(
        (3 * len(drafted) + 2 * sum(drafted)) / sum(drafted) / 1e3
    )
    assert found.edge_round_s == pytest.approx(0, abs=1e-9)
    assert found.alone_s is None


def test_guesses_are_counted_by_their_own_column_where_there_is_one() -> None:
    record = speculative()
    record["steps"]["num_guessed_tokens"] = [2 * n for n in record["steps"]["num_draft_tokens"]]
    found, plain = calibrate([record]).draft_s, calibrate([speculative()]).draft_s
    assert found is not None
    assert found == pytest.approx((plain or 0) / 2)


def test_acceptance_is_by_position_and_leans_on_all_positions_together() -> None:
    found = calibrate([speculative()]).acceptance
    judged, stood = (5, 3, 2, 1), (4, 2, 1, 1)
    pooled = sum(stood) / sum(judged)
    assert found == pytest.approx(
        [
            (good + POOLED_WEIGHT * pooled) / (asked + POOLED_WEIGHT)
            for good, asked in zip(stood, judged, strict=True)
        ]
    )


def test_overtaken_drafts_are_no_rounds() -> None:
    record = speculative()
    steps = record["steps"]
    for name, value in (("arrival_ns", steps["arrival_ns"][1]), ("draft_ns", 99 * MS)):
        steps[name] = [*steps[name][:2], value, *steps[name][2:]]
    for name in steps.keys() - {"arrival_ns", "draft_ns"}:
        steps[name] = [*steps[name][:2], None, *steps[name][2:]]
    assert calibrate([record]) == calibrate([speculative()])


def test_what_the_records_tell_badly_is_said() -> None:
    alike = calibrate([speculative([(4, 1)] * 6)])
    assert alike.target_token_s == 0
    assert alike.target_s == pytest.approx(10e-3)
    assert "about 5 tokens" in alike.notes[0]
    overlapping = speculative()
    overlapping["steps"]["draft_ns"] = [200 * MS] * 5
    assert "network.pipeline=0" in calibrate([overlapping]).notes[-1]


def test_arms_that_did_not_run_leave_their_terms_open() -> None:
    assert calibrate([cloud()]).acceptance is None
    assert calibrate([cloud()]).target_s == pytest.approx(6e-3)
    only_edge = calibrate([edge()])
    assert only_edge.draft_s == pytest.approx(2e-3)
    assert only_edge.target_s is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("nonsense\n", ":1: not a record of a bench"),
        ('{"arm": "edge"}\n[]\n', ":2: not a record of a bench"),
        ("", "none of 0 generations is whole"),
        ('{"arm": "speculative", "error": "E: e", "steps": null}\n', "none of 1 generations"),
        ('{"arm": "speculative", "steps": {"arrival_ns": [1]}}\n', "not the records of a bench"),
        ('{"arm": "edge", "steps": 3, "num_output_tokens": 3}\n', "not the records of a bench"),
    ],
)
def test_what_is_no_record_is_refused_by_file_and_line(
    tmp_path: Path, lines: str, message: str
) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text(lines)
    with pytest.raises(UsageError) as refused:
        read_calibration(tmp_path)
    assert str(refused.value).startswith(f"--records {file}")
    assert message in str(refused.value)
    assert "name the" in str(refused.value) or "name a" in str(refused.value)


def test_a_gate_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gate\.kind=none"):
        calibrate([speculative(unasked_blocks=3)])
    with pytest.raises(UsageError, match="No such file"):
        read_calibration(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="No such file"):
        read_calibration(tmp_path)
    (tmp_path / "records.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not text"):
        read_calibration(tmp_path)

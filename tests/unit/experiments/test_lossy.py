"""Lossy rules in records, summary and page: what was paid for what was saved."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from common.types import FinishReason, SamplingParams
from edge_client.experiments.agreement import agreement
from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.quality import OFF, load_metrics
from edge_client.experiments.records import Record, error_record, record_from_steps
from edge_client.experiments.rows import arm_rows
from edge_client.experiments.scoring import score
from edge_client.experiments.statistics import summarize_arm
from edge_client.experiments.table import render_table
from edge_client.rule import Rule
from edge_client.stats import Conditions, one_line, summarise
from edge_client.steps import Step
from tests.unit.experiments.fakes import MS, committed, piece, streamed, unit, verified
from tests.unit.experiments.test_report import page_of, summary_of

END = FinishReason.MAX_NEW_TOKENS
GATED = Rule(gate="entropy", gate_threshold=0.5)
RANKED = Rule("rank", rank_threshold=20)
REJECTION = Rule("rejection", candidates=32)


def record(rule: Rule, *steps: Step, prompt_id: str = "p", temperature: float = 0.0) -> Record:
    arrivals = [10 * MS * (at + 1) for at in range(len(steps))]
    named = unit(prompt_id=prompt_id, verification=rule, temperature=temperature)
    return record_from_steps(named, (1,), steps, arrivals)


def half_asked(prompt_id: str = "p") -> Record:
    """Two blocks without asking, two with; of the asked guesses one is put right."""
    return record(
        GATED,
        committed(1, 2, 3, 4),
        verified(5, 6, drafted=4, accepted=1),
        committed(7, 8),
        verified(9, 10, drafted=1, accepted=1, end=END),
        prompt_id=prompt_id,
    )


def test_a_block_without_asking_is_no_round_and_nobody_accepted_it() -> None:
    found = half_asked()
    assert (found.rounds, found.unasked_blocks, found.cloud_call_rate) == (2, 2, 0.5)
    assert (found.num_draft_tokens, found.num_accepted_tokens) == (5, 2)
    assert found.accepted_per_position == (2, 0, 0, 0)
    assert found.mean_accepted_length == 2
    assert (found.num_output_tokens, found.num_unverified_tokens) == (10, 6)
    assert found.verified_share == pytest.approx(0.4)
    assert (found.num_recovered_tokens, found.corrected_share) == (1, 0.1)
    assert found.lossless is False
    assert found.promise is None
    assert found.rtt_ms is not None
    assert found.rtt_ms.p50 == 10


def test_a_text_nobody_was_asked_about_has_counts_and_no_rates() -> None:
    found = record(GATED, committed(1, 2, end=END))
    assert (found.rounds, found.num_draft_tokens, found.cloud_call_rate) == (0, 0, 0.0)
    assert (found.verified_share, found.mean_accepted_length, found.rtt_ms) == (0.0, None, None)


def test_an_end_within_accepted_guesses_corrects_nothing() -> None:
    found = record(Rule(), verified(1, 2, drafted=4, accepted=2, end=FinishReason.STOP_STRING))
    assert (found.num_recovered_tokens, found.corrected_share) == (0, 0.0)


def test_parts_of_the_time_add_up_where_some_texts_were_never_asked_about() -> None:
    records = [
        record(GATED, committed(1, 2, 3, 0, end=FinishReason.EOS), prompt_id="a"),
        record(GATED, verified(1, 2, 3, 4, drafted=3, accepted=3, end=END), prompt_id="b"),
    ]
    parts = summarize_arm(records, Bootstrap(1))["ms_per_token"]
    assert sum(part["value"] for part in parts.values()) == pytest.approx(20 / 8)


def test_arms_that_verify_nothing_have_none_of_it() -> None:
    found = record_from_steps(
        unit("cloud", draft_dtype=None), (1,), [streamed(1, end=END)], [10 * MS]
    )
    for value in (found.verification, found.unasked_blocks, found.cloud_call_rate):
        assert value is None
    assert found.lossless is True
    alone = record_from_steps(unit("edge", target_dtype=None), (1,), [piece(1, end=END)], [10 * MS])
    assert alone.lossless is None


def test_bytes_of_probabilities_are_summed() -> None:
    found = record(
        REJECTION,
        verified(1, 2, drafted=4, accepted=1, probabilities=640),
        verified(3, drafted=0, accepted=0, probabilities=0, end=END),
        temperature=0.8,
    )
    assert found.draft_probabilities_bytes == 640
    arm = summarize_arm([found], Bootstrap(1))
    assert arm["draft_probabilities_bytes_per_draft_token"]["value"] == 160
    assert arm["promise"] == "distribution"


def test_shares_are_pooled_over_tokens_and_blocks() -> None:
    whole = record(GATED, verified(1, 2, drafted=1, accepted=1, end=END), prompt_id="q")
    arm = summarize_arm([half_asked(), whole], Bootstrap(1))
    assert arm["cloud_call_rate"]["value"] == pytest.approx(3 / 5)
    assert arm["verified_share"]["value"] == pytest.approx(6 / 12)
    assert arm["corrected_share"]["value"] == pytest.approx(1 / 12)
    assert (arm["unasked_blocks"], arm["num_unverified_tokens"]) == (2, 6)
    assert (arm["lossless"], arm["promise"]) == (False, None)
    assert arm["verification"]["gate"] == "entropy"


def cloud(prompt_id: str, *tokens: int) -> Record:
    return record_from_steps(
        unit("cloud", prompt_id, draft_dtype=None), (1,), [streamed(*tokens, end=END)], [40 * MS]
    )


def test_agreement_pools_positions_and_finds_where_texts_part() -> None:
    ours = [
        record(RANKED, verified(1, 2, 3, drafted=2, accepted=2, end=END), prompt_id="a"),
        record(RANKED, verified(1, 5, 3, drafted=2, accepted=2, end=END), prompt_id="b"),
        record(RANKED, verified(1, 2, drafted=2, accepted=2, end=END), prompt_id="c"),
    ]
    exact = [cloud("a", 1, 2, 3), cloud("b", 1, 2, 3), cloud("c", 1, 2, 3, 4)]
    found = agreement({"cloud": exact, "speculative": ours}, "cloud", Bootstrap(1), load_metrics())
    assert set(found) == {"speculative"}
    told = found["speculative"]
    assert (told["generations"], told["equal"]) == (3, 1)
    assert told["token_match"]["value"] == pytest.approx((3 + 2 + 2) / (3 + 3 + 4))
    assert told["first_divergence"]["value"] == pytest.approx(1.5)  # of 1 and 2
    assert 0 < told["chrf"]["value"] < 100


def test_other_prompts_are_not_compared_and_missing_libraries_leave_nulls() -> None:
    other = record_from_steps(
        unit("cloud", "a", draft_dtype=None), (9,), [streamed(1, end=END)], [MS]
    )
    ours = record(RANKED, verified(1, drafted=1, accepted=0, end=END), prompt_id="a")
    found = agreement({"cloud": [other], "speculative": [ours]}, "cloud", Bootstrap(1), None)
    assert found["speculative"]["generations"] == 0
    assert found["speculative"]["token_match"] is None
    assert found["speculative"]["chrf"] is None
    assert agreement({"speculative": [ours]}, None, Bootstrap(1), None) == {}


def test_equal_texts_are_scored_once_and_failures_never() -> None:
    asked = []

    def nats(prompt: Sequence[int], output: Sequence[int]) -> float | None:
        asked.append(output)
        return None if output == (7,) else 3.0

    records = [
        cloud("a", 1, 2, 3),
        record(RANKED, verified(1, 2, 3, drafted=2, accepted=2, end=END)),
        cloud("b", 7),
        error_record(unit(), (1,), "UNAVAILABLE: gone"),
    ]
    ticks: list[None] = []
    scored = score(records, nats, lambda: ticks.append(None))
    assert [one.target_nll for one in scored] == [1.0, 1.0, None, None]
    assert asked == [(1, 2, 3), (7,)]
    assert len(ticks) == 4


def run(rule: Rule, *tokens: int, temperature: float = 0.0) -> list[Record]:
    records = []
    for index in range(6):
        prompt_id = f"p{index}"
        records.append(cloud(prompt_id, 1, 2, 3))
        step = verified(*tokens, drafted=4, accepted=len(tokens) - 1, end=END)
        records.append(record(rule, step, prompt_id=prompt_id, temperature=temperature))
    return records


ARMS = ("cloud", "speculative")


def test_a_lossy_rule_is_said_wherever_somebody_looks() -> None:
    records = run(RANKED, 1, 5, 3)
    summary = summary_of(records, ARMS, metrics=load_metrics())
    assert summary["lossy"] == [
        "speculative verified by rank <= 20: its text is not the target's own"
    ]
    table = render_table(summary, color=True)
    assert "\x1b[31mLOSSY: speculative verified by rank <= 20" in table.replace("\x1b[1m", "")
    assert "LOSSY speculative wrote" in table
    page = page_of(records, arms=ARMS, metrics=load_metrics())
    assert '<li class="badge bad">lossy</li>' in page
    assert "verified by rank &lt;= 20" in page
    rows = {row.label: row.cells["speculative"] for row in arm_rows(summary)}
    assert rows["token match with cloud"] == "0.67"
    assert rows["corrected"] == "0.33"
    stats = summarise(
        Conditions("speculative", SamplingParams(), "float32", "float32", RANKED), (1,),
        [verified(1, 2, drafted=2, accepted=1, end=END)], [10 * MS],
    )  # fmt: skip
    assert ", LOSSY," in one_line(stats)


def test_what_the_gate_let_pass_is_counted_in_the_warning() -> None:
    summary = summary_of([cloud("p", *range(1, 11)), half_asked()], ARMS)
    assert summary["lossy"] == [
        "speculative committed 6 of 10 tokens without asking (entropy <= 0.5 nats)"
    ]
    rows = {row.label: row.cells["speculative"] for row in arm_rows(summary)}
    assert (rows["cloud calls a block"], rows["verified"]) == ("0.50", "0.40")


def test_an_exact_run_shows_none_of_it() -> None:
    summary = summary_of(run(Rule(), 1, 2, 3), ARMS)
    assert summary["lossy"] == []
    assert summary["quality_off"] is None
    labels = {row.label for row in arm_rows(summary)}
    assert not labels & {"corrected", "verified", "cloud calls a block", "token match with cloud"}


def test_rejection_promises_the_distribution_and_counts_no_mismatch_as_an_error() -> None:
    records = run(REJECTION, 4, 5, 6, temperature=0.8)
    summary = summary_of(records, ARMS)
    assert summary["lossy"] == []
    assert "speculative: same distribution, not the same tokens" in render_table(summary)
    page = page_of(records, arms=ARMS)
    assert "texts differ" not in page


def test_missing_libraries_are_said_where_there_was_something_to_compare() -> None:
    assert summary_of(run(RANKED, 1, 5, 3), ARMS, metrics=None)["quality_off"] == OFF
    assert summary_of(run(Rule(), 1, 2, 3), ARMS, references=True)["quality_off"] == OFF
    assert OFF in render_table(summary_of(run(RANKED, 1, 5, 3), ARMS, metrics=None))

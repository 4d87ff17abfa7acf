"""What the page draws, what it shows token by token, and what papers take from a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from common.types import Opinion
from edge_client.experiments.exports import arms_csv, as_markdown, generations_csv
from edge_client.experiments.plots import as_script, plots
from edge_client.experiments.records import Percentiles, Record, record_from_steps
from edge_client.experiments.report import render_report
from edge_client.experiments.token_view import views
from edge_client.steps import Step
from tests.unit.experiments.fakes import MS, committed, unit, verified
from tests.unit.experiments.test_report import END, HOSTILE, run, summary_of


def drawn(records: list[Record]) -> dict[str, dict[str, Any]]:
    return {plot["id"]: plot for plot in plots(summary_of(records), records)}


def test_distributions_hold_every_generation_and_end_at_one() -> None:
    found = drawn(run())["plot-speeds"]
    assert [series["name"] for series in found["series"]] == [
        "edge", "cloud", "cloud_optimized", "speculative"
    ]  # fmt: skip
    points = found["series"][3]["points"]
    assert [p["y"] for p in points] == pytest.approx([i / 6 for i in range(1, 7)])
    assert [p["x"] for p in points] == pytest.approx([3e3 / ms for ms in (15, 14, 13, 12, 11, 10)])


def test_long_distributions_are_thinned_and_keep_their_ends() -> None:
    points = drawn(run([5 + i / 100 for i in range(900)]))["plot-speeds"]["series"][3]["points"]
    assert len(points) == 200
    assert points[-1] == {"x": pytest.approx(600), "y": 1}


def test_times_per_token_are_milliseconds_of_whole_generations() -> None:
    records = [replace(r, tpot_s=0.002 + i / 1e4) for i, r in enumerate(run()) if r.arm == "edge"]
    failed = replace(records[0], error="UNAVAILABLE: gone", tpot_s=9.0)
    (edge,) = drawn([*records, failed])["plot-gaps"]["series"]
    assert [point["x"] for point in edge["points"]] == pytest.approx([2, 2.4, 2.8, 3.2, 3.6, 4])


def test_bars_have_the_colours_of_their_arms() -> None:
    found = drawn(run())["plot-bytes_per_token"]
    colours = dict(zip(found["labels"], found["series"][0]["colour"], strict=True))
    assert colours["cloud"] == "cloud"
    assert colours["cloud_optimized"] == "cloud-optimized"
    assert colours["speculative"] == "speculative"


def test_a_token_s_time_is_stacked_by_its_parts() -> None:
    found, arms = drawn(run())["plot-time"], summary_of(run())["arms"]
    stacked = {series["name"]: series["values"] for series in found["series"]}
    for at, arm in enumerate(found["labels"]):
        parts = arms[arm]["ms_per_token"]
        for name in ("draft", "target compute"):
            part = parts[name.replace(" ", "_")]
            assert stacked[name][at] == pytest.approx(part["value"] if part else 0)
    assert sum(map(sum, stacked.values())) > 0


def test_round_trips_stand_where_they_happened() -> None:
    records = [
        replace(record, started_s=float(i), rtt_ms=Percentiles(1.0 + i, 2.0 + i, 3.0))
        if record.arm == "speculative"
        else record
        for i, record in enumerate(run())
    ]
    p50, p95 = drawn(records)["plot-rtt"]["series"]
    assert p50["points"][0] == {"x": 3.0, "y": 4.0}
    assert p95["points"][0] == {"x": 3.0, "y": 5.0}
    assert p50["hints"][0] == "p0"


def test_acceptance_by_category_has_intervals_and_counts() -> None:
    records = [replace(r, category="maths" if r.prompt_id < "p3" else "prose") for r in run()]
    found = drawn(records)["plot-categories"]
    assert found["labels"] == ["maths (3)", "prose (3)"]
    assert found["series"][0]["values"] == [0.5, 0.5]
    assert found["series"][0]["intervals"] == [[0.5, 0.5], [0.5, 0.5]]
    assert "plot-categories" not in drawn(run())


def test_nothing_measured_draws_nothing() -> None:
    assert plots(summary_of([], []), []) == []


def test_no_text_breaks_out_of_the_data() -> None:
    text = as_script([{"id": HOSTILE + "</script><!--"}])
    assert "<" not in text
    assert json.loads(text) == [{"id": HOSTILE + "</script><!--"}]


def spoken(steps: list[Step]) -> Record:
    arrivals = [(i + 1) * MS for i in range(len(steps))]
    return record_from_steps(unit("speculative", "p0"), (1,), steps, arrivals)


def thought(_: Sequence[int], text: Sequence[int]) -> dict[str, Opinion]:
    return {"target": Opinion((-0.5,) * len(text), (2,) * len(text))}


def test_each_token_says_what_it_is() -> None:
    record = spoken(
        [
            verified(1, 2, 3, drafted=2, accepted=2),
            verified(4, 5, drafted=3, accepted=1),
            committed(6, 7),
            replace(verified(8, drafted=0, accepted=0), num_draft_tokens=None,
                    num_accepted_tokens=None, asked=None, run_ahead=True),
            verified(9, drafted=2, accepted=0, end=END),
        ]
    )  # fmt: skip
    (view,) = views([record], lambda ids: [f"<{i}>" for i in ids], thought)
    assert [token.kind for token in view.tokens] == [
        "accepted", "accepted", "bonus", "accepted", "recovered",
        "committed", "committed", "alone", "recovered",
    ]  # fmt: skip
    assert [token.text for token in view.tokens] == [f"<{i}>" for i in range(1, 10)]
    assert "\nguess 2 of 2; drafted in" in view.tokens[1].hint
    hint = view.tokens[4].hint
    assert "token 4, id 5: the target’s own token where a guess was rejected" in hint
    assert "after 1 accepted of 3; drafted in 4.00 ms, round trip 10.00 ms" in hint
    assert hint.endswith(
        "target: probability 60.7%, rank 2\ndraft model: probability and rank not measured"
    )


def test_the_first_generations_of_speculative_are_shown_and_no_others() -> None:
    first = spoken([verified(1, drafted=1, accepted=0, end=END)])
    others = [
        replace(first, repeat=1, prompt_id="again"),
        replace(first, arm="cloud", prompt_id="alone"),
        replace(first, error="UNAVAILABLE: gone", prompt_id="gone"),
    ]
    more = [replace(first, prompt_id=f"p{i}") for i in range(1, 9)]
    found = views([*others, first, *more], lambda ids: ["x"] * len(ids), None)
    assert [view.prompt_id for view in found] == ["p0", "p1", "p2", "p3"]


def test_what_is_not_known_of_a_token_says_so() -> None:
    record = spoken([verified(1, drafted=1, accepted=0, end=END)])
    (view,) = views([record], lambda ids: ["x"] * len(ids), None)
    assert "target: probability and rank not measured" in view.tokens[0].hint
    assert views([record], None, None) == ()


def test_the_page_shows_tokens_plots_and_what_is_not_measured() -> None:
    records = run()
    page = render_report(
        summary_of(records), records, [], command="outrider-edge bench --seed 1",
        pieces=lambda ids: [f"piece-{i}" for i in ids],
    )  # fmt: skip
    assert page.count("<canvas") == len(plots(summary_of(records), records)) >= 5
    assert page.count("piece-1</span>") == 4
    assert "outrider-edge bench --seed 1" in page
    assert "Not measured in this run: processor time and memory; energy of processors" in page
    assert "yes, and kept" in page
    assert "Whose text it is" in page


def test_markdown_has_answer_table_ratios_and_categories() -> None:
    text = as_markdown(summary_of([replace(r, category="a|b") for r in run()]))
    assert "Splitting pays on this link: speculative wrote 1.60×" in text
    assert "| speculative | cloud_optimized | 6 | 1.6 [" in text
    (category,) = [line for line in text.splitlines() if line.startswith("| a\\|b | 6 |")]
    assert category.endswith("| 0.5 [0.5, 0.5] |")
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.replace("\\|", "").count("|") for row in rows}) <= 1


def test_csv_has_every_number_with_its_interval() -> None:
    summary = summary_of(run())
    rows = list(csv.DictReader(io.StringIO(arms_csv(summary))))
    found = {(row["arm"], row["metric"]): row for row in rows}
    speed = summary["arms"]["cloud"]["tokens_per_s"]
    row = found["cloud", "tokens_per_s"]
    assert [float(row[n]) for n in ("value", "ci95_low", "ci95_high")] == [
        speed["value"], *speed["ci95"]
    ]  # fmt: skip
    assert float(found["speculative", "acceptance_by_position.0"]["value"]) == 1
    assert ("cloud", "acceptance_rate") not in found
    lines = list(csv.DictReader(io.StringIO(generations_csv(run()))))
    assert len(lines) == 24
    assert lines[0]["arm"] == "edge"
    assert lines[0]["rounds"] == ""

"""Runs set side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from edge_client.compare import compare
from edge_client.experiments.records import Record
from edge_client.experiments.side_by_side import Run, read_run, side_by_side
from edge_client.experiments.side_by_side_table import render
from tests.unit.experiments.test_report import made, run, summary_of

BEFORE = {"edge": {"versions": {"torch": "1"}, "device": "cpu"}, "started_at": "yesterday"}
NOW = {"edge": {"versions": {"torch": "2"}, "device": "cpu"}, "started_at": "today", "link": None}


def of(name: str, records: list[Record], environment: dict[str, Any]) -> Run:
    return Run(name, summary_of(records, environment=environment), records)


def faster(factor: float, count: int = 8, **where: Any) -> list[Record]:
    return [made("cloud", f"p{i}", (20 + i) / factor, 1, 2, **where) for i in range(count)]


def test_every_arm_is_held_against_the_first_run_on_the_same_prompts() -> None:
    compared = side_by_side([of("one", run(), BEFORE), of("two", run((5,) * 4), NOW)])
    (against,) = compared["against_first"]["speculative"]
    assert against["prompts"] == 4
    assert against["tokens_per_s"]["median"]["value"] == pytest.approx((2.2 + 2.4) / 2)
    assert against["prompts_equal"] == 4
    assert [r["name"] for r in compared["runs"]] == ["one", "two"]
    one, two = compared["arms"]["speculative"]
    assert one["tokens_per_s"]["value"] < two["tokens_per_s"]["value"]


def test_it_says_what_changed_and_nothing_of_the_moment() -> None:
    compared = side_by_side([of("one", run(), BEFORE), of("two", run(), NOW)])
    assert compared["changed"] == [
        {"setting": "edge.versions.torch", "values": ["1", "2"]},
        {"setting": "link", "values": ["absent", "not known"]},
    ]
    said = render(compared)
    assert "A = one, 24 generations" in said
    assert "edge.versions.torch  A: 1, B: 2" in said
    assert "What changed: 2 settings" in said
    assert "Nothing changed" in render(side_by_side([of("one", run(), BEFORE)] * 2))


@pytest.mark.parametrize(
    ("factor", "count", "verdict"),
    [
        (1.2, 8, "B wrote 1.200× the tokens/s of A (median of 8 paired prompts, 95 % interval "),
        (1.2, 8, ": faster; 8 of 8 texts are equal."),
        (0.8, 8, ": slower; 8 of 8 texts are equal."),
        (1.0, 8, ": no difference that this shows; 8 of 8 texts are equal."),
        (1.2, 3, "Too few prompts to tell: B wrote 1.200× the tokens/s of A (median of 3 paired"),
    ],
)
def test_the_verdict_is_the_interval_s(factor: float, count: int, verdict: str) -> None:
    runs = [of("one", faster(1), {}), of("two", faster(factor, count), {})]
    assert verdict in render(side_by_side(runs)).replace("\n  ", " ")


def test_another_prompt_of_the_same_name_is_not_compared() -> None:
    other = faster(1, 2)
    changed = [replace(record, prompt_token_ids=(9,)) for record in other]
    compared = side_by_side([of("one", other, {}), of("two", changed, {})])
    assert compared["against_first"]["cloud"] == [None]
    assert "B has no prompt in common with A here." in render(compared)


def test_an_arm_that_one_run_lacks_is_shown_for_the_other() -> None:
    less = [r for r in run() if r.arm != "edge"]
    two = Run("two", summary_of(less, ("cloud", "speculative"), environment={}), less)
    said = render(side_by_side([of("one", run(), {}), two]))
    assert "edge" in said
    assert "–" in said


def test_what_is_no_run_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="1 run named; name at least two"):
        compare([tmp_path], as_json=False)
    with pytest.raises(UsageError, match=r"summary\.json is not the summary of a bench"):
        read_run(tmp_path)
    records = run()
    (tmp_path / "summary.json").write_text(json.dumps(summary_of(records, environment=NOW)))
    (tmp_path / "records.jsonl").write_text("".join(f"{r.to_json()}\n" for r in records))
    assert compare([tmp_path, tmp_path], as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["changed"] == []
    assert told["against_first"]["cloud"][0]["prompts_equal"] == 6

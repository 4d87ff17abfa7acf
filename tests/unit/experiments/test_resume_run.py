"""A run that was killed and taken up again comes out as one that never was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import UnavailableError, UsageError
from edge_client.arms import GenerationRequest
from edge_client.experiments.execution import place_of, whole
from edge_client.experiments.run_directory import RECORDS
from edge_client.experiments.stored import read_records, record_from_json
from edge_client.steps import Step
from tests.unit.experiments.test_report import made
from tests.unit.experiments.test_runner import SCRIPTS, Bench

LINES = [
    {"id": f"t{i}", "turns": ["a" * i, "bb"], "category": "even" if i % 2 == 0 else "odd"}
    for i in range(1, 5)
]


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is written."""


@pytest.fixture
def undisturbed(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "undisturbed")
    bench.folder.mkdir()
    bench.run(LINES, repeats=2)
    return bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def killed(bench: Bench, after: int, **more: Any) -> None:
    """Leaves the directory as a kill does: so many whole records, half a line, no summary."""

    def full() -> bool:
        if len(bench.records) == after:
            raise Killed
        return False

    with pytest.raises(Killed):
        bench.run(LINES, repeats=2, interrupted=full, **more)
    for name in ("summary.json", "report.html"):
        (bench.out / name).unlink()
    with (bench.out / RECORDS).open("a", encoding="utf-8") as file:
        file.write('{"run_id": "cut he')
    bench.log.clear()


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what names the run and its times of day."""
    told = {n: v for n, v in summary.items() if n not in ("run_id", "environment")}
    return told


@pytest.mark.parametrize("after", [1, 2, 3, 17, 63, 64])
def test_it_gives_the_same_summary_and_runs_nothing_twice(
    bench: Bench, undisturbed: Bench, after: int
) -> None:
    killed(bench, after)
    ids = {record.run_id for record in read_records(bench.out / RECORDS)}
    result = bench.run(LINES, repeats=2, resume=bench.out)
    assert result.exit_code == 0
    warm = 4 if after < 64 else 0
    assert len(bench.log) == warm + 64 - after
    assert without_times(bench.summary) == without_times(undisturbed.summary)
    assert {r["run_id"] for r in bench.records} == ids == {bench.summary["run_id"]}
    assert [r["order"] for r in bench.records] == list(range(64))
    assert len(bench.summary["environment"]["resumed_at"]) == 1


def test_a_run_that_is_whole_stays_as_it_was(bench: Bench) -> None:
    """The link and the machine are those of the time when something ran."""
    bench.run(LINES, echo=lambda _: None)
    before = bench.out.joinpath("summary.json").read_text()
    again = bench.run(LINES, resume=bench.out, echo=lambda _: None).summary
    then = json.loads(before)["environment"]
    assert then["idle_rtt_ms"]["before"] is not None
    for name in ("idle_rtt_ms", "machine"):
        assert json.loads(json.dumps(again["environment"][name])) == then[name]


def test_the_run_s_own_time_goes_on_where_it_stopped(bench: Bench, undisturbed: Bench) -> None:
    killed(bench, 17)
    bench.run(LINES, repeats=2, resume=bench.out)
    assert [r["started_s"] for r in bench.records] == pytest.approx(
        [r["started_s"] for r in undisturbed.records]
    )


def test_what_failed_is_run_again(bench: Bench) -> None:
    def failing(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        if len(bench.arms["cloud"].requests) > 2:
            raise UnavailableError("gone")
        return SCRIPTS["cloud"](request)

    assert bench.run(LINES, {"cloud": failing}).exit_code == 3
    bench.log.clear()
    assert bench.run(LINES, resume=bench.out).exit_code == 0
    assert all(record["error"] is None for record in bench.records)
    assert bench.log[4:] == ["cloud"] * 7


def refused(bench: Bench, match: str, **changes: Any) -> None:
    before = (bench.out / RECORDS).read_bytes()
    asked: dict[str, Any] = {"lines": LINES, "repeats": 2, "resume": bench.out}
    with pytest.raises(UsageError, match=match):
        bench.run(**(asked | changes))
    assert (bench.out / RECORDS).read_bytes() == before
    assert bench.log == []


def test_another_environment_or_plan_is_refused_by_name(bench: Bench) -> None:
    killed(bench, 3)
    refused(bench, "environment.device: cpu then, cuda now", environment={"device": "cuda"})
    refused(bench, "plan.repeats: 2 then, 1 now", repeats=1)
    refused(bench, "plan.prompts: 4 then, 3 now", limit=3)
    refused(bench, "plan.prompts_sha256: ", lines=[*LINES[:3], {"id": "t4", "prompt": "other"}])


def test_a_directory_without_a_run_is_refused(bench: Bench) -> None:
    killed(bench, 3)
    (bench.out / "run.json").write_text("{}")
    refused(bench, "run.json is not that of a run")
    (bench.out / "run.json").unlink()
    refused(bench, r"run\.json cannot be read \(No such file or directory\)")


def test_a_broken_line_in_the_middle_is_named(bench: Bench) -> None:
    killed(bench, 3)
    text = (bench.out / RECORDS).read_text().splitlines(keepends=True)
    (bench.out / RECORDS).write_text("".join([text[0], "{}\n", *text[1:]]))
    refused(bench, r"records\.jsonl:2: not a record of this version")


def test_a_run_killed_before_its_first_record_is_taken_up(bench: Bench) -> None:
    killed(bench, 1)
    (bench.out / RECORDS).unlink()
    bench.run(LINES, repeats=2, resume=bench.out)
    assert len(bench.records) == 64


def test_records_come_back_as_they_were(bench: Bench) -> None:
    bench.run(LINES)
    for record in read_records(bench.out / RECORDS):
        assert record_from_json(record.to_json()) == record
        assert hash(record.output_token_ids)  # tuples, not lists


def test_a_later_turn_without_the_one_before_it_is_not_whole() -> None:
    record = made("cloud", "p", 5, 1, 2, turn=1)
    assert whole([record]) == {}
    first = made("cloud", "p", 5, 1, 2, turn=0, order=1)
    assert list(whole([record, first])) == [("p", 1, "cloud", 0), ("p", 0, "cloud", 0)]
    assert place_of(first) == ("p", 0, "cloud", 0)

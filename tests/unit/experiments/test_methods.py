"""docs/methods.md defines every field that is written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.config import Config
from edge_client.expectation import Situation
from edge_client.experiments.calibration import Calibration
from edge_client.experiments.columns import StepColumns
from edge_client.experiments.environment import describe_environment
from edge_client.experiments.forecast_table import as_json
from edge_client.experiments.load import Load
from edge_client.experiments.load_table import load_summary
from edge_client.experiments.machine_watch import MachineWatch, Reading
from edge_client.experiments.records import Record
from edge_client.experiments.rows import arm_rows
from edge_client.experiments.side_by_side import Run, side_by_side
from edge_client.forecast import forecast
from tests.unit.experiments.test_report import ARMS, run, summary_of

METHODS = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
DEFINED = {
    name for span in re.findall(r"`([^`]+)`", METHODS) for name in re.findall(r"[\w]+", span)
}


def test_every_field_of_a_record_is_defined() -> None:
    names = {field.name for kind in (Record, StepColumns) for field in dataclasses.fields(kind)}
    assert names <= DEFINED


def keys(value: Any, skip: frozenset[str]) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            if name not in skip:
                yield from keys(inner, skip)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner, skip)


def test_every_field_of_a_summary_is_defined() -> None:
    environment = describe_environment(config=Config(), precision={}, draft=None, server=None)
    watch = MachineWatch(lambda: Reading(2), lambda: 0)
    watch.sample("before")
    environment |= {"idle_rtt_ms": None, "resumed_at": [], "machine": watch.told()}
    records = [replace(r, category="a") for r in run(tokens=(1, 9))]
    records += [replace(r, arm="cloud_again") for r in records if r.arm == "cloud"]
    arms = (*ARMS, "cloud_again")
    summary = summary_of(records, arms, environment=environment)
    assert summary["self_checks"]
    summary["categories"] = summary["categories"]["a"]
    names_of_others = frozenset({"versions", "precision", "configuration", "finish_reasons"})
    summary["arms"] = list(summary["arms"].values())
    for part in (summary, summary["categories"]):
        part["ratios"] = [of for arm in part["ratios"].values() for of in arm.values()]
    summary["categories"]["arms"] = list(summary["categories"]["arms"].values())
    summary["agreement"] = list(summary["agreement"].values())
    assert set(keys(summary, names_of_others)) <= DEFINED


def test_every_field_of_a_comparison_is_defined() -> None:
    compared = side_by_side(
        [Run("a", summary_of(run(), environment={"x": n}), run()) for n in "12"]
    )
    part = METHODS.partition("## Side by side")[2].partition("\n## ")[0]
    defined = {name for span in re.findall(r"`([^`]+)`", part) for name in re.findall(r"\w+", span)}
    arms = frozenset({"edge", "cloud", "cloud_optimized", "speculative"})
    told = {"against_first": compared["against_first"]["cloud"], "arms": compared["arms"]["cloud"]}
    names = set(keys(compared | told, frozenset())) - arms
    assert names - {"value", "ci95", "mean", "p50", "p95", "p99"} - RATIOS <= defined


RATIOS = frozenset({"median", "geometric_mean"})  # defined where the summary's ratios are


def test_every_row_of_the_table_is_defined() -> None:
    table = METHODS.partition("## The table")[2]
    for row in arm_rows(summary_of(run())):
        assert row.label.partition(" p50")[0].replace("mean accepted length", "") in table


def test_every_field_of_a_plan_is_defined() -> None:
    planned = forecast(Situation(1e-3, 0, 8e-3, 1e-3, (0.8,)), [0.02], [2], None)
    assert set(keys(as_json([planned], None, Calibration()), frozenset())) <= PLAN


PLAN = {
    name
    for span in re.findall(r"`([^`]+)`", METHODS.partition("## Plan")[2].partition("\n## ")[0])
    for name in re.findall(r"\w+", span)
}


def test_every_field_of_a_load_is_defined() -> None:
    load = Load([], "cloud", iter(()), lambda: 0, lambda _: None)
    summary = load_summary(
        load, [], 1, run_id="", planned=0, rate=1.0, seed=1, interrupted=False, environment={}
    )
    part = METHODS.partition("## Load")[2].partition("\n## ")[0]
    named = {name for span in re.findall(r"`([^`]+)`", part) for name in re.findall(r"\w+", span)}
    assert set(summary) <= named
    assert set(keys(summary, frozenset({"finish_reasons"}))) <= DEFINED


_ROW = re.compile(r"^\| (`[^|]+) \|", re.MULTILINE)


def rows(text: str) -> list[str]:
    """Returns the names that tables define: those in the first cells of their rows."""
    return [name for cell in _ROW.findall(text) for name in re.findall(r"`([\w.]+)`", cell)]


def section(title: str) -> str:
    return METHODS.partition(f"\n{title}\n")[2].partition("\n## ")[0]


def test_every_field_of_a_record_is_defined_once() -> None:
    defined = rows(section("## records.jsonl"))
    assert len(set(defined)) == len(defined)
    assert set(defined) == {field.name for field in dataclasses.fields(Record)}


def test_no_field_is_defined_elsewhere() -> None:
    """A second definition would sooner or later be a different one."""
    ours = {field.name for field in dataclasses.fields(Record)} - {"seed", "category"}
    ours |= set(summary_of(run())) | set(summary_of(run())["arms"]["cloud"])
    documents = METHODS_FILE.parents[1]
    for file in [documents / "README.md", *(documents / "docs").rglob("*.md")]:
        if file != METHODS_FILE:
            found = set(rows(file.read_text(encoding="utf-8"))) & ours
            assert not found - {"speculative", "reference"}, file.name


METHODS_FILE = Path(__file__).parents[3] / "docs" / "methods.md"

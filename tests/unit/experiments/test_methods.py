"""docs/methods.md defines every field that is written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.config import Config
from edge_client.expectation import Situation
from edge_client.experiments.calibration import Calibration
from edge_client.experiments.columns import StepColumns
from edge_client.experiments.environment import describe_environment
from edge_client.experiments.forecast_table import as_json
from edge_client.experiments.records import Record
from edge_client.experiments.rows import arm_rows
from edge_client.forecast import forecast
from tests.unit.experiments.test_report import run, summary_of

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
    summary = summary_of(run(tokens=(1, 9)), environment=environment | {"idle_rtt_ms": None})
    names_of_others = frozenset({"versions", "precision", "configuration", "finish_reasons"})
    assert set(keys(summary, names_of_others)) <= DEFINED


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

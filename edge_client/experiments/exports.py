"""The comparison for papers: Markdown, and CSV of arms and of generations."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge_client.experiments.figures import (
    SPLIT,
    answer,
    identity_line,
    idle_line,
    self_check_line,
)
from edge_client.experiments.records import Record
from edge_client.experiments.rows import arm_rows
from edge_client.experiments.table import warnings

Summary = Mapping[str, Any]

_GENERATIONS = (
    *("prompt_id", "turn", "category", "arm", "repeat", "order", "finish_reason"),
    *("prompt_tokens", "num_output_tokens", "ttft_s", "tpot_s", "e2e_s", "tokens_per_s"),
    *("rounds", "num_draft_tokens", "num_accepted_tokens", "mean_accepted_length"),
    *("bytes_up", "bytes_down", "target_forward_passes", "target_busy_s"),
    *("edge_cpu_s", "cloud_cpu_s", "error"),
)


def as_markdown(summary: Summary) -> str:
    """Returns the answer, the arm table and the ratios as GitHub's Markdown."""
    said = answer(summary)
    lines = [f"# Outrider bench {summary['run_id']}", ""]
    lines += [f"> **{_cell(warning)}**\n" for warning in warnings(summary)]
    lines += [said.sentence, "", *([said.work, ""] if said.work else [])]
    lines += _table(["", *summary["arms"]], _arm_cells(summary))
    lines += ["", "## Ratios of tokens/s, pair by pair", ""]
    lines += _table(
        ["arm", "against", "prompts", "median [95 %]", "geometric mean [95 %]"], _ratios(summary)
    )
    if summary["categories"]:
        header = ["category", "prompts", *(f"{arm} tokens/s" for arm in summary["arms"])]
        header.append("acceptance")
        lines += ["", "## By category", "", *_table(header, _categories(summary))]
    notes = [identity_line(summary), idle_line(summary)]
    notes += [self_check_line(check) for check in summary["self_checks"]]
    lines += ["", *(f"- {note}" for note in notes if note is not None)]
    resamples = summary["bootstrap"]["resamples"]
    lines += [f"- Intervals: {resamples} resamples of prompts. docs/methods.md defines all.", ""]
    return "\n".join(lines)


def arms_csv(summary: Summary) -> str:
    """Returns one line for each number of each arm: arm, metric, value, low, high."""
    rows = [
        [arm, name, value, *(interval or ("", ""))]
        for arm, numbers in summary["arms"].items()
        for name, value, interval in _numbers(numbers)
    ]
    return _csv(["arm", "metric", "value", "ci95_low", "ci95_high"], rows)


def generations_csv(records: Sequence[Record]) -> str:
    """Returns one line for each generation; what does not apply is empty."""
    rows = [[getattr(record, name) for name in _GENERATIONS] for record in records]
    return _csv(_GENERATIONS, rows)


def _numbers(
    numbers: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Sequence[float] | None]]:
    for name, value in numbers.items():
        if isinstance(value, Mapping) and set(value) == {"value", "ci95"}:
            yield prefix + name, value["value"], value["ci95"]
        elif isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield from _numbers({str(i): one for i, one in enumerate(value)}, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value, None


def _arm_cells(summary: Summary) -> list[list[str]]:
    return [
        [f"{row.label} {row.unit}".strip(), *(row.cells[arm] for arm in summary["arms"])]
        for row in arm_rows(summary)
    ]


def _ratios(summary: Summary) -> list[list[str]]:
    rows = []
    for arm, others in summary["ratios"].items():
        for against, compared in others.items():
            if (speed := compared["tokens_per_s"]) is not None:
                middles = [_interval(speed[name]) for name in ("median", "geometric_mean")]
                rows.append([arm, against, str(compared["prompts"]), *middles])
    return rows


def _categories(summary: Summary) -> list[list[str]]:
    return [
        [name, str(one["prompts"])]
        + [_interval(one["arms"][arm]["tokens_per_s"]) for arm in summary["arms"]]
        + [_interval(one["arms"].get(SPLIT, {}).get("acceptance_rate"))]
        for name, one in summary["categories"].items()
    ]


def _interval(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "–"
    interval = estimate["ci95"]
    bounds = "" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]"
    return f"{estimate['value']:.3g}{bounds}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(text: str) -> str:
    for sign in "\\|<>*`":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()

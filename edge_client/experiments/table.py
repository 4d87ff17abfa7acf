"""The comparison as the terminal shows it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from edge_client.experiments.figures import answer, identity_line, idle_line, self_check_line
from edge_client.experiments.rows import NONE, arm_rows

_WIDTH = 98
_RED, _BOLD, _PLAIN = "\x1b[31m", "\x1b[1m", "\x1b[0m"


def render_table(summary: Mapping[str, Any], *, color: bool = False) -> str:
    """Returns the table and what it says; `color` adds terminal colours."""
    paint = _painter(color)
    arms = list(summary["arms"])
    rows = arm_rows(summary)
    labels = [f"{row.label} {row.unit}".strip() for row in rows]
    label_width = max((len(label) for label in labels), default=0)
    widths = [max([len(arm), *(len(row.cells[arm]) for row in rows)]) for arm in arms]

    def line(label: str, cells: list[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join([label.ljust(label_width), *padded]).rstrip()

    rule = "─" * (label_width + sum(width + 2 for width in widths))
    body = [
        line(name, [row.cells[arm] for arm in arms]) for name, row in zip(labels, rows, strict=True)
    ]
    text = [paint(line("", arms), _BOLD), rule, *body, rule]
    text += [paint(warning, _RED) for warning in warnings(summary)]
    identical = identity_line(summary)
    if identical is not None:
        text.append(paint(identical, _BOLD))
    text += [line for check in summary["self_checks"] for line in _wrapped(self_check_line(check))]
    if summary["quality_off"] is not None:
        text.append(summary["quality_off"])
    said = answer(summary)
    text += textwrap.wrap(said.sentence, _WIDTH)
    if said.work is not None:
        text += textwrap.wrap(said.work, _WIDTH)
    idle = idle_line(summary)
    if idle is not None:
        text += textwrap.wrap(idle, _WIDTH)
    text.append(f"{NONE} does not apply; what each number means: docs/methods.md")
    return "\n".join(text)


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """Returns what a reader must know before the numbers."""
    found = []
    if summary["lossy"]:
        found.append(f"LOSSY: {'; '.join(summary['lossy'])}")
    if summary["not_float32"]:
        found.append(f"NOT FLOAT32: {'; '.join(summary['not_float32'])}")
    if summary["interrupted"]:
        found.append(
            f"INTERRUPTED: {summary['records']} of {summary['planned_records']} generations"
        )
    machine = summary["environment"].get("machine") or {}
    found += [f"MACHINE: {noticed}" for noticed in machine.get("noticed", ())]
    failed = sum(numbers["errors"] for numbers in summary["arms"].values())
    if failed:
        found.append(f"FAILED: {failed} of {summary['records']} generations ended in an error")
    return found


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, _WIDTH)


def _painter(color: bool) -> Any:
    return (lambda text, code: f"{code}{text}{_PLAIN}") if color else (lambda text, _: text)

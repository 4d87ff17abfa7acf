"""Runs side by side, as the terminal shows them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from edge_client.experiments.figures import FEWEST_PROMPTS, number

_WIDTH = 98
_ROWS = (
    ("tokens/s", "tokens_per_s", None, 1.0),
    ("TTFT p50 ms", "ttft_s", "p50", 1e3),
    ("TPOT p50 ms", "tpot_s", "p50", 1e3),
    ("e2e p50 ms", "e2e_s", "p50", 1e3),
    ("acceptance", "acceptance_rate", None, 1.0),
    ("mean accepted length", "mean_accepted_length", None, 1.0),
    ("target ms a token", "target_busy_ms_per_token", None, 1.0),
    ("bytes a token", "bytes_per_token", None, 1.0),
)


def render(compared: Mapping[str, Any]) -> str:
    """Returns the comparison: the runs, each arm's numbers, each arm's verdict, what changed."""
    runs = compared["runs"]
    letters = [ascii_uppercase[i % 26] * (1 + i // 26) for i in range(len(runs))]
    lines = [_run(letter, run) for letter, run in zip(letters, runs, strict=True)]
    for arm, numbers in compared["arms"].items():
        lines += ["", *_table(arm, letters, numbers)]
        for letter, against in zip(letters[1:], compared["against_first"][arm], strict=True):
            lines += textwrap.wrap(_verdict(letter, against), _WIDTH, subsequent_indent="  ")
    changed = compared["changed"]
    lines += ["", f"What changed: {len(changed)} settings" if changed else "Nothing changed"]
    for one in changed:
        values = ", ".join(f"{a}: {v}" for a, v in zip(letters, one["values"], strict=True))
        lines += textwrap.wrap(f"{one['setting']}  {values}", _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def _run(letter: str, run: Mapping[str, Any]) -> str:
    parts = [f"{letter} = {run['name']}", f"{run['records']} generations"]
    if run["idle_rtt_p50_ms"] is not None:
        parts.append(f"idle round trip {run['idle_rtt_p50_ms']:.2f} ms")
    if run["interrupted"]:
        parts.append("INTERRUPTED")
    return ", ".join([*parts, *(f"MACHINE: {noticed}" for noticed in run["noticed"])])


def _table(
    arm: str, letters: Sequence[str], numbers: Sequence[Mapping[str, Any] | None]
) -> Iterator[str]:
    rows = [
        (label, [_cell(one, key, part, scale) for one in numbers])
        for label, key, part, scale in _ROWS
    ]
    rows = [(label, cells) for label, cells in rows if any(cell != "–" for cell in cells)]
    label_width = max((len(label) for label, _ in rows), default=0)
    label_width = max(label_width, len(arm))
    columns = list(zip(*(cells for _, cells in rows), strict=True))
    widths = [max(map(len, (letter, *c))) for letter, c in zip(letters, columns, strict=False)]
    for label, cells in [(arm, list(letters)), *rows]:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=False)]
        yield "  ".join([label.ljust(label_width), *padded]).rstrip()


def _cell(numbers: Mapping[str, Any] | None, key: str, part: str | None, scale: float) -> str:
    value = None if numbers is None else numbers[key]
    value = value if part is None or value is None else value[part]
    if value is None:
        return "–"
    if part is not None or value["ci95"] is None:
        return number(value["value"] * scale)
    low, high = (number(bound * scale) for bound in value["ci95"])
    return f"{number(value['value'] * scale)} [{low}, {high}]"


def _verdict(letter: str, against: Mapping[str, Any] | None) -> str:
    if against is None or against["tokens_per_s"] is None:
        return f"{letter} has no prompt in common with A here."
    median = against["tokens_per_s"]["median"]
    prompts, equal = against["prompts"], against["prompts_equal"]
    said = f"{letter} wrote {median['value']:.3f}× the tokens/s of A"
    texts = f"{equal} of {prompts} texts are equal."
    if prompts < FEWEST_PROMPTS or median["ci95"] is None:
        return f"Too few prompts to tell: {said} (median of {prompts} paired prompts); {texts}"
    low, high = median["ci95"]
    basis = f"(median of {prompts} paired prompts, 95 % interval {low:.3f} to {high:.3f})"
    verdict = "faster" if low > 1 else "slower" if high < 1 else "no difference that this shows"
    return f"{said} {basis}: {verdict}; {texts}"

"""The interactive plots of the report, as data: assets/report.js draws them with Chart.js.

A plot has `kind` (line, scatter, bar), axis titles and `series`; a series names a colour of
the page's style sheet, or one for each bar, and holds `points` or, of a bar plot, `values`
with `intervals`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from edge_client.experiments.again import kind_of
from edge_client.experiments.charts import PARTS
from edge_client.experiments.figures import SPLIT
from edge_client.experiments.records import Record

POINTS = 200
"""Points that a distribution is drawn with at most."""

Plot = dict[str, Any]
Numbers = Mapping[str, Any]

_COLOURS = {
    "edge": "edge",
    "cloud": "cloud",
    "cloud_optimized": "cloud-optimized",
    "speculative": "speculative",
    "cloud_assisted": "cloud-assisted",
}
_PARTS = {"draft": "speculative", "network": "network", "queue": "queue"}
_PARTS |= {"target_compute": "cloud-optimized", "other": "other"}


def plots(summary: Numbers, records: Sequence[Record]) -> list[Plot]:
    """Returns the plots that have something to show, each with a title and a caption."""
    whole = [record for record in records if record.error is None]
    arms = list(summary["arms"])
    made = [
        _distribution(
            "speeds", "Tokens a second, generation by generation", "tokens/s", whole, arms
        ),
        _distribution("gaps", "Time per output token (TPOT)", "ms", whole, arms),
        _time(summary["arms"]),
        _by_category(summary),
        _rtt_over_run(whole),
        _cost(summary["arms"], "bytes_per_token", "Bytes a token", "bytes, up and down"),
        _cost(
            summary["arms"], "target_busy_ms_per_token", "Target work a token", "ms of the target"
        ),
    ]
    return [plot for plot in made if plot is not None]


def as_script(found: Sequence[Plot]) -> Markup:
    """Returns the plots as JSON that no text in it can break out of."""
    text = json.dumps(found, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # escaped above, by the rules of JSON instead of HTML


def _distribution(
    name: str, title: str, unit: str, records: Sequence[Record], arms: Sequence[str]
) -> Plot | None:
    read: Callable[[Record], float | None] = {
        "speeds": lambda r: r.tokens_per_s,
        "gaps": lambda r: None if r.tpot_s is None else 1e3 * r.tpot_s,
    }[name]
    series = []
    for arm in arms:
        values = [v for record in records if record.arm == arm and (v := read(record)) is not None]
        if values:
            series.append({"name": arm, "colour": _colour(arm), "points": _shares(values)})
    if not series:
        return None
    caption = f"The share of generations at or below each value of {unit}; steeper is steadier."
    return _plot(name, title, caption, kind="line", x=unit, y="share", series=series)


def _shares(values: Sequence[float]) -> list[dict[str, float]]:
    """Returns the empirical distribution, thinned out."""
    count = min(POINTS, len(values))
    shares = np.linspace(1 / len(values), 1, count)
    placed = np.quantile(values, shares, method="inverted_cdf")
    return [{"x": float(x), "y": float(y)} for x, y in zip(placed, shares, strict=True)]


def _time(arms: Numbers) -> Plot | None:
    known = [arm for arm, numbers in arms.items() if numbers["ms_per_token"]["other"] is not None]
    if not known:
        return None
    series = [
        {
            "name": part.replace("_", " "),
            "colour": _PARTS[part],
            "values": [max(0.0, _value(arms[arm]["ms_per_token"][part])) for arm in known],
        }
        for part in PARTS
    ]
    return _plot(
        "time",
        "Where a token’s time goes, part by part",
        "Milliseconds a token on the client’s clock. Where drafts are made while others travel, "
        "the parts come to more than the whole.",
        kind="bar",
        x="ms a token",
        y="",
        labels=known,
        series=series,
        stacked=True,
        flat=True,
    )


def _by_category(summary: Numbers) -> Plot | None:
    categories = summary["categories"]
    rates = {
        name: numbers["arms"][SPLIT]["acceptance_rate"]
        for name, numbers in categories.items()
        if SPLIT in numbers["arms"]
    }
    rates = {name: rate for name, rate in rates.items() if rate is not None}
    if not rates:
        return None
    return _plot(
        "categories",
        "Acceptance by category",
        "Accepted ÷ drafted over the prompts of each category, with 95 % intervals.",
        kind="bar",
        x="acceptance",
        y="",
        labels=[f"{name} ({categories[name]['prompts']})" for name in rates],
        series=[_bars(SPLIT, [SPLIT], list(rates.values()))],
        flat=True,
    )


def _rtt_over_run(records: Sequence[Record]) -> Plot | None:
    timed = [r for r in records if r.rtt_ms is not None and r.started_s is not None]
    if not timed:
        return None

    def points(part: str) -> list[dict[str, float | None]]:
        return [{"x": r.started_s, "y": getattr(r.rtt_ms, part)} for r in timed]

    hints = [record.prompt_id for record in timed]
    return _plot(
        "rtt",
        "Round trips over the run",
        "A draft sent to its verdict read, verification included: median and 95th percentile of "
        "each generation, when it began.",
        kind="scatter",
        x="seconds since the run began",
        y="ms",
        series=[
            {"name": "p50", "colour": "speculative", "points": points("p50"), "hints": hints},
            {"name": "p95", "colour": "network", "points": points("p95"), "hints": hints},
        ],
    )


def _cost(arms: Numbers, key: str, title: str, unit: str) -> Plot | None:
    known = {arm: numbers[key] for arm, numbers in arms.items() if numbers[key] is not None}
    if not known:
        return None
    return _plot(
        key,
        title,
        "Pooled over output tokens, with 95 % intervals.",
        kind="bar",
        x=unit,
        y="",
        labels=list(known),
        series=[_bars(title, list(known), list(known.values()))],
        flat=True,
    )


def _bars(name: str, arms: Sequence[str], estimates: Sequence[Numbers]) -> dict[str, Any]:
    return {
        "name": name,
        "colour": [_colour(arm) for arm in arms],
        "values": [estimate["value"] for estimate in estimates],
        "intervals": [estimate["ci95"] for estimate in estimates],
    }


def _plot(name: str, title: str, caption: str, **more: Any) -> Plot:
    return {"id": f"plot-{name}", "title": title, "caption": caption, **more}


def _colour(arm: str) -> str:
    return _COLOURS.get(kind_of(arm), "soft") if kind_of(arm) == arm else "soft"


def _value(estimate: Numbers | None) -> float:
    return 0.0 if estimate is None else float(estimate["value"])

"""Inline SVG charts: no scripts, no assets, colours from the page's style sheet.

Text is escaped on the way in; sizes are in units of a 380-wide drawing that
scales with the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from edge_client.experiments.figures import number

WIDTH = 380
PARTS = ("draft", "network", "queue", "target_compute", "other")
_ARMS = ("edge", "cloud", "cloud_optimized", "speculative", "cloud_assisted")
_LABEL = 112
_LABEL_LETTERS = 15
_NO_FIT = Markup()
_ROW = 34

Estimate = Mapping[str, Any]


def arm_class(arm: str) -> str:
    """Returns the style class that colours an arm, the same in every report."""
    return f"arm-{arm}" if arm in _ARMS else "arm-unknown"


def speed_chart(speeds: Mapping[str, Estimate | None]) -> Markup | None:
    """Draws tokens/s of each arm as bars with their intervals."""
    known = {arm: speed for arm, speed in speeds.items() if speed is not None}
    if not known:
        return None
    top = max(_high(speed) for speed in known.values())
    scale = (WIDTH - _LABEL - 62) / top
    marks = []
    for row, (arm, speed) in enumerate(known.items()):
        y = row * _ROW + 6
        length = speed["value"] * scale
        marks += [
            _arm_label(y, arm),
            _bar(_LABEL, y + 2, length, 20, arm_class(arm), f"{arm}: {_said(speed)} tokens/s"),
            *_whisker(_LABEL, y + 12, speed, scale),
            _text(_LABEL + _high(speed) * scale + 8, y + 16, number(speed["value"]), css="strong"),
        ]
    return _drawing(marks, len(known) * _ROW + 8, "Tokens a second of each arm")


def acceptance_chart(rates: Sequence[Estimate | None]) -> Markup | None:
    """Draws, for each position of a draft, how often it was accepted when drafted."""
    if not any(rates):
        return None
    height, left = 150, 30
    step = (WIDTH - left - 6) / len(rates)
    thick = min(46.0, step * 0.64)
    marks = []
    for share in (0.0, 0.5, 1.0):
        y = 20 + height * (1 - share)
        marks += [
            _line(left, y, WIDTH - 4, y, "grid"),
            _text(left - 6, y + 4, f"{share:.0%}", anchor="end", css="faint"),
        ]
    for position, rate in enumerate(rates):
        if rate is None:
            continue
        x = left + step * (position + 0.5)
        tall = rate["value"] * height
        hint = f"position {position + 1}: {_said(rate)}"
        marks.append(_bar(x - thick / 2, 20 + height - tall, thick, tall, "arm-speculative", hint))
        if rate["ci95"]:
            low, high = (20 + height * (1 - bound) for bound in rate["ci95"])
            marks.append(_line(x, low, x, high, "whisker"))
        if len(rates) <= 8:
            peak = max(rate["value"], rate["ci95"][1] if rate["ci95"] else 0)
            marks.append(
                _text(
                    x,
                    14 + height * (1 - peak),
                    f"{rate['value']:.0%}",
                    anchor="middle",
                    css="strong",
                )
            )
        if len(rates) <= 16:
            marks.append(_text(x, height + 38, str(position + 1), anchor="middle", css="faint"))
    return _drawing(marks, height + 46, "Acceptance by position in the draft")


def ratio_chart(
    ratios: Mapping[str, Mapping[str, float]], medians: Mapping[str, Estimate | None]
) -> Markup | None:
    """Draws one row an opponent: a dot a prompt on a logarithmic axis, the median and its interval.

    `ratios` maps opponent to prompt to ratio; `medians` opponent to the estimate.
    """
    ratios = {arm: values for arm, values in ratios.items() if values}
    if not ratios:
        return None
    everything = [value for values in ratios.values() for value in values.values()]
    low = math.log(min([0.8, *everything])) - 0.04
    high = math.log(max([1.25, *everything])) + 0.04
    tall, foot = 64, len(ratios) * 64 + 6

    def across(ratio: float) -> float:
        return 14 + (math.log(ratio) - low) / (high - low) * (WIDTH - 28)

    marks = []
    for tick in _ticks(math.exp(low), math.exp(high)):
        css = "one" if tick == 1 else "grid"
        marks += [
            _line(across(tick), 2, across(tick), foot, css),
            _text(across(tick), foot + 16, f"{tick:g}×", anchor="middle", css="faint"),
        ]
    for row, (arm, values) in enumerate(ratios.items()):
        base = row * tall + 16
        marks.append(_text(4, base - 2, f"over {arm}", css="label"))
        for place, (prompt, ratio) in enumerate(sorted(values.items(), key=lambda item: item[1])):
            y = base + 14 + (place * 7) % 22
            marks.append(_dot(across(ratio), y, arm_class(arm), f"{prompt}: {ratio:.2f}×"))
        median = medians.get(arm)
        if median is not None:
            start, end = (across(b) for b in median["ci95"] or (median["value"],) * 2)
            marks += [
                _line(start, base + 42, end, base + 42, "span"),
                _dot(across(median["value"]), base + 42, "middle", f"median {_said(median)}", 4.5),
            ]
    return _drawing(marks, foot + 24, "Tokens a second of speculative over each arm, by prompt")


def time_chart(
    parts: Mapping[str, Mapping[str, Estimate | None]], overlaps: Mapping[str, float]
) -> Markup | None:
    """Draws where the milliseconds of a token go in each arm, stacked.

    `overlaps` says how many of them are counted twice.
    """
    widths = {
        arm: {part: max(0.0, (split[part] or {"value": 0.0})["value"]) for part in PARTS}
        for arm, split in parts.items()
        if split["other"] is not None
    }
    if not widths:
        return None
    scale = (WIDTH - _LABEL - 58) / max(max(sum(w.values()) for w in widths.values()), 1e-9)
    marks = []
    for row, (arm, split) in enumerate(widths.items()):
        y, x = row * _ROW + 6, float(_LABEL)
        marks.append(_arm_label(y, arm))
        for part, milliseconds in split.items():
            length = milliseconds * scale
            if length > 0.05:
                hint = f"{arm}, {part.replace('_', ' ')}: {number(milliseconds)} ms a token"
                marks.append(_bar(x, y + 2, length, 20, f"part-{part}", hint, 0))
            x += length
        total = number(sum(split.values()) - overlaps[arm])
        marks.append(_text(x + 8, y + 16, f"{total} ms", css="strong"))
    return _drawing(marks, len(widths) * _ROW + 8, "Where the time of a token goes in each arm")


def _ticks(low: float, high: float) -> list[float]:
    """Returns round ratios between the bounds, 1 among them, at most about seven."""
    fine = (0.8, 0.9, 1.0, 1.1, 1.25)
    coarse = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    middle = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
    spread = high / low
    chosen = fine if spread < 1.8 else middle if spread < 12 else coarse
    return [tick for tick in chosen if low <= tick <= high]


def _high(estimate: Estimate) -> float:
    return float(estimate["ci95"][1] if estimate["ci95"] else estimate["value"])


def _said(estimate: Estimate) -> str:
    if not estimate["ci95"]:
        return number(estimate["value"])
    low, high = estimate["ci95"]
    return f"{number(estimate['value'])} (95 % {number(low)} to {number(high)})"


def _whisker(x: float, y: float, estimate: Estimate, scale: float) -> list[Markup]:
    if not estimate["ci95"]:
        return []
    low, high = (x + bound * scale for bound in estimate["ci95"])
    return [
        _line(low, y, high, y, "whisker"),
        _line(low, y - 4, low, y + 4, "whisker"),
        _line(high, y - 4, high, y + 4, "whisker"),
    ]


def _drawing(marks: Sequence[Markup], height: float, label: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, round(height), label, Markup("").join(marks)
    )


def _bar(
    x: float, y: float, width: float, height: float, css: str, hint: str, radius: float = 3
) -> Markup:
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.2f}" height="{:.1f}" rx="{}" class="{}">'
        "<title>{}</title></rect>"
    ).format(x, y, max(width, 0), max(height, 0), radius, css, hint)


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, css
    )


def _dot(x: float, y: float, css: str, hint: str, radius: float = 3) -> Markup:
    return Markup(
        '<circle cx="{:.1f}" cy="{:.1f}" r="{}" class="dot {}"><title>{}</title></circle>'
    ).format(x, y, radius, css, hint)


def _arm_label(y: float, arm: str) -> Markup:
    """Squeezes a long name into its column."""
    fit = Markup(' textLength="{}" lengthAdjust="spacingAndGlyphs"').format(_LABEL - 10)
    return _text(
        _LABEL - 8, y + 16, arm, anchor="end", fit=fit if len(arm) > _LABEL_LETTERS else _NO_FIT
    )


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", css: str = "", fit: Markup = _NO_FIT
) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}"{}>{}</text>').format(
        x, y, anchor, css, fit, words
    )

"""A forecast as a heat map: speed over `cloud_optimized`, by round trip and one thing more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edge_client.forecast import Forecast, Offer

KINDS = (".html", ".svg")
_LEFT, _TOP, _WIDE, _TALL = 78, 44, 52, 30
_FULL = math.log(2)  # a ratio of 2, or of 1/2, has the whole colour

_STYLE = """
:root { --paper: #f6f5f1; --ink: #1d2126; --soft: #626a73;
  --cloud-optimized: #0f9f94; --speculative: #ea7a1c; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e9e8e4;
  --soft: #9ba3ad; --cloud-optimized: #2bbdb0; --speculative: #f5913a; } }
svg text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: var(--ink);
  font-variant-numeric: tabular-nums; }
svg text.faint { fill: var(--soft); font-size: 11px; }
svg text.strong { font-weight: 650; }
.arm-cloud_optimized { fill: var(--cloud-optimized); }
.arm-speculative { fill: var(--speculative); }
"""
_PAGE = Markup("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Outrider plan</title>
<style>{}
body {{ margin: 0 auto; max-width: 860px; padding: 28px 20px 64px; line-height: 1.5;
  background: var(--paper); color: var(--ink); font-family: ui-sans-serif, system-ui, sans-serif; }}
svg {{ display: block; width: 100%; height: auto; }}
</style>
</head>
<body>
{}
</body>
</html>
""")


@dataclass(frozen=True, slots=True)
class _Map:
    """Is what is drawn: cells by row and column, each an offer and its ratio."""

    title: str
    across: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[Offer, float]]]]


def page(suffix: str, forecasts: Sequence[Forecast]) -> str:
    """Returns a file of the kind: an HTML page of all maps, or the SVG of the first."""
    maps = [_by_acceptance(forecasts)] if len(forecasts) > 1 else []
    maps += [_by_length(one) for one in forecasts]
    if suffix == ".svg":
        return str(_drawing(maps[0], Markup("<style>{}</style>").format(Markup(_STYLE))))
    body = Markup("\n").join(
        Markup("<h2>{}</h2>\n{}").format(one.title, _drawing(one, Markup(""))) for one in maps
    )
    sentences = Markup("\n").join(Markup("<p>{}</p>").format(one.sentence) for one in forecasts)
    return str(_PAGE.format(Markup(_STYLE), body + Markup("\n") + sentences))


def _by_length(one: Forecast) -> _Map:
    shares = ", ".join(f"{share:.2f}" for share in one.situation.acceptance)
    return _Map(
        f"Speed over cloud_optimized, acceptance {shares}",
        "draft length γ",
        [str(by.length) for by in one.outlooks[0].lengths],
        [
            (_ms(outlook.rtt_s), [(by.best, outlook.ratio(by.best)) for by in outlook.lengths])
            for outlook in one.outlooks
        ],
    )


def _by_acceptance(forecasts: Sequence[Forecast]) -> _Map:
    """Takes the best draft length of each cell; acceptances were given, one for all positions."""
    by_rtt = zip(*(one.outlooks for one in forecasts), strict=True)
    return _Map(
        "Speed over cloud_optimized at the best draft length",
        "acceptance",
        [f"{one.situation.acceptance[0]:g}" for one in forecasts],
        [
            (_ms(row[0].rtt_s), [(outlook.best, outlook.ratio(outlook.best)) for outlook in row])
            for row in by_rtt
        ],
    )


def _drawing(one: _Map, style: Markup) -> Markup:
    marks = [_text(_LEFT, 14, one.across, "start", "strong"), _text(0, 34, "RTT ms", "start")]
    for column, name in enumerate(one.columns):
        marks.append(_text(_LEFT + (column + 0.5) * _WIDE, 34, name, "middle", "faint"))
    for row, (name, cells) in enumerate(one.rows):
        y = _TOP + row * _TALL
        marks.append(_text(_LEFT - 10, y + 19, name, "end", "faint"))
        for column, (offer, ratio) in enumerate(cells):
            marks.append(_cell(_LEFT + column * _WIDE, y, offer, ratio))
    width, height = _LEFT + len(one.columns) * _WIDE + 4, _TOP + len(one.rows) * _TALL + 4
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" '
        'aria-label="{}">{}{}</svg>'
    ).format(width, height, one.title, style, Markup("").join(marks))


def _cell(x: float, y: float, offer: Offer, ratio: float) -> Markup:
    """Draws the colour of the faster arm, the stronger the larger its lead."""
    css = "arm-speculative" if ratio >= 1 else "arm-cloud_optimized"
    strength = 0.06 + 0.74 * min(1.0, abs(math.log(ratio)) / _FULL)
    hint = f"γ {offer.length}, {offer.ahead} ahead: {offer.tokens_per_s:.1f} tokens/s"
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{}" height="{}" rx="3" class="{}" '
        'fill-opacity="{:.2f}"><title>{}</title></rect>{}'
    ).format(
        x + 1, y + 1, _WIDE - 2, _TALL - 2, css, strength, hint,
        _text(x + _WIDE / 2, y + 19, f"{ratio:.2f}×", "middle"),
    )  # fmt: skip


def _text(x: float, y: float, words: str, anchor: str, css: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, css, words
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}"

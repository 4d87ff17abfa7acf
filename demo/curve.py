"""A loss curve as a small SVG picture, written by hand so that no plotting library is needed."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 34, 46
COLOURS = ("#1b6ca8", "#c2571a", "#4c8c2b", "#7a4fa3")


def svg(title: str, points: list[dict[str, float]], series: dict[str, str]) -> str:
    """The picture of `points` over `tokens`; `series` maps keys of a point to their labels."""
    most = max(point["tokens"] for point in points)
    values = [point[key] for point in points for key in series]
    low, high = math.floor(min(values) * 2) / 2, math.ceil(max(values) * 2) / 2

    def x(tokens: float) -> float:
        return LEFT + tokens / most * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for step in range(round((high - low) * 2) + 1):
        value = low + step / 2
        out.append(
            f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>'
        )
    unit = max(1, round(most / 1e6 / 8))
    out.extend(
        f'<text x="{x(millions * 1e6):.1f}" y="{HEIGHT - BOTTOM + 18}" '
        f'text-anchor="middle">{millions}</text>'
        for millions in range(0, math.floor(most / 1e6) + 1, unit)
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">training tokens, millions</text>'
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {HEIGHT / 2})">nats per token</text>'
    )
    for index, (key, label) in enumerate(series.items()):
        line = " ".join(f"{x(p['tokens']):.1f},{y(p[key]):.1f}" for p in points)
        colour = COLOURS[index % len(COLOURS)]
        at = WIDTH - RIGHT - 210, TOP + 18 + 18 * index
        out.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<path d="M{at[0]} {at[1] - 4}h24" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{at[0] + 30}" y="{at[1]}">{escape(label)}</text>'
        )
    return "\n".join([*out, "</svg>", ""])

"""The chart of benchmarks/capacity.py: each arm's speed and its p95 TPOT against the clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP = 430, 260, 46, 34
COLOURS = {"cloud_optimized": "#4e79a7", "speculative": "#f28e2b", "cloud_assisted": "#59a14f"}


class Read(Protocol):
    """Is what so many clients got of one arm."""

    @property
    def clients(self) -> int: ...  # noqa: D102

    @property
    def tokens_per_s(self) -> float: ...  # noqa: D102

    @property
    def tpot_p95_ms(self) -> float: ...  # noqa: D102


def chart(curves: Mapping[str, Sequence[Read]]) -> str:
    """Draws two panels side by side as one SVG; the loads stand at equal distances."""
    clients = [read.clients for read in next(iter(curves.values()))]
    speeds = {arm: [read.tokens_per_s for read in made] for arm, made in curves.items()}
    paces = {arm: [read.tpot_p95_ms for read in made] for arm, made in curves.items()}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT + 44}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        _panel(0, "tokens a second, all clients", clients, speeds),
        _panel(WIDTH, "p95 TPOT, ms", clients, paces),
    ]
    for index, arm in enumerate(curves):
        x, y = LEFT + index * 180, HEIGHT + 24
        parts.append(f'<rect x="{x}" y="{y - 9}" width="14" height="10" fill="{COLOURS[arm]}"/>')
        parts.append(f'<text x="{x + 20}" y="{y}">{escape(arm)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(
    shift: int, title: str, clients: Sequence[int], curves: Mapping[str, Sequence[float]]
) -> str:
    top = max(value for values in curves.values() for value in values) * 1.05
    right, bottom = WIDTH - 14, HEIGHT - 30
    apart = (right - LEFT) / max(1, len(clients) - 1)
    parts = [f'<g transform="translate({shift},0)"><text x="{LEFT}" y="18">{title}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = bottom - (bottom - TOP) * share
        parts.append(f'<path d="M{LEFT} {at:.1f}H{right}" stroke="#dddddd"/>')
        label = f"{share * top:.3g}"
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    parts += [
        f'<text x="{LEFT + i * apart:.1f}" y="{bottom + 18}" text-anchor="middle">{number}</text>'
        for i, number in enumerate(clients)
    ]
    parts.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end">clients</text>')
    for arm, values in curves.items():
        points = " ".join(
            f"{LEFT + i * apart:.1f},{bottom - (bottom - TOP) * value / top:.1f}"
            for i, value in enumerate(values)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[arm]}" stroke-width="2"/>'
        )
    return "\n".join([*parts, "</g>"])

"""The chart of benchmarks/network.py: every arm's speed, and its cost, against the round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP = 430, 260, 46, 34
COLOURS = ("#777777", "#b07aa1", "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#000000")


class Read(Protocol):
    """Is what one arm took at one round trip."""

    @property
    def tokens_per_s(self) -> float: ...  # noqa: D102

    @property
    def forwards_a_token(self) -> float: ...  # noqa: D102


def chart(rtts_ms: Sequence[float], curves: Mapping[str, Sequence[Read]]) -> str:
    """Draws two panels side by side as one SVG."""
    speeds = {name: [reading.tokens_per_s for reading in made] for name, made in curves.items()}
    forwards = {
        name: [reading.forwards_a_token for reading in made]
        for name, made in curves.items()
        if any(reading.forwards_a_token for reading in made)
    }
    colours = dict(zip(curves, COLOURS, strict=False))
    height = HEIGHT + 24 * ((len(curves) + 3) // 4) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        _panel(0, "tokens a second", rtts_ms, speeds, colours),
        _panel(WIDTH, "target forwards a token", rtts_ms, forwards, colours),
    ]
    for index, (name, colour) in enumerate(colours.items()):
        x, y = 20 + (index % 4) * 210, HEIGHT + 20 + 24 * (index // 4)
        parts.append(f'<rect x="{x}" y="{y - 9}" width="14" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 20}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(
    shift: int,
    title: str,
    rtts_ms: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
) -> str:
    top = max(value for values in curves.values() for value in values) * 1.05
    right, bottom = WIDTH - 14, HEIGHT - 30

    def x(rtt_ms: float) -> float:
        return LEFT + (right - LEFT) * rtt_ms / max(rtts_ms)

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * value / top

    parts = [f'<g transform="translate({shift},0)"><text x="{LEFT}" y="18">{title}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = y(share * top)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{right}" stroke="#dddddd"/>')
        label = f"{share * top:.3g}"
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    parts += [
        f'<text x="{x(rtt_ms):.1f}" y="{bottom + 18}" text-anchor="middle">{rtt_ms:g}</text>'
        for rtt_ms in rtts_ms
    ]
    parts.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end">RTT, ms</text>')
    for name, values in curves.items():
        points = " ".join(
            f"{x(rtt_ms):.1f},{y(value):.1f}" for rtt_ms, value in zip(rtts_ms, values, strict=True)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="2">'
            f"<title>{escape(name)}</title></polyline>"
        )
    return "\n".join([*parts, "</g>"])

"""The arms of network.py: the bundled pair over links of every length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from statistics import median

from tqdm import tqdm

from benchmarks.network_client import Reading, adaptive, client
from benchmarks.pairs import BASE
from benchmarks.tables import Table
from common.types import SamplingParams
from edge_client.adaptive import MOST_AHEAD
from edge_client.draft_length import FixedPace
from edge_client.rivals import RunAheadPace

ROUND_TRIPS_MS = (0, 20, 50, 100, 200)
MOST_ALONE = 64
RUN_AHEAD = f"adaptive, run-ahead {MOST_ALONE}"
TURNS = 7
"""Texts that a figure is the median of, taken in turns with those it is held against."""
SPECEDGE_BYTES = 135_000
"""Uplink bytes of a round of SpecEdge: a dense attention mask (see docs/methods.md)."""


def arms_over_rtt(server: str) -> dict[str, list[list[Reading]]]:
    """Measures every arm with the bundled pair, greedy, over all round trips: texts in turns."""
    greedy = SamplingParams()
    curves: dict[str, list[list[Reading]]] = {}
    for rtt_ms in tqdm(ROUND_TRIPS_MS, desc="arms"):
        with client(BASE, server, rtt_ms) as made:
            arms = {
                name: partial(made.alone, name, greedy)
                for name in ("edge", "cloud", "cloud_optimized")
            }
            for label, pace in (
                ("stop and wait, γ 4", FixedPace(4, 64)),
                ("sent ahead, γ 4", FixedPace(4, 64, MOST_AHEAD)),
                ("adaptive", adaptive()),
            ):
                arms[label] = partial(made.paced, pace, greedy)
            arms[RUN_AHEAD] = partial(made.paced, RunAheadPace(adaptive()), greedy, MOST_ALONE)
            turns = [{label: arm() for label, arm in arms.items()} for _ in range(1 + TURNS)]
        for label in arms:
            curves.setdefault(label, []).append([turn[label] for turn in turns[1:]])
    return curves


def middle(readings: Sequence[Reading]) -> Reading:
    """Returns the median of each figure."""
    return Reading(*(median(figures) for figures in zip(*map(astuple, readings), strict=True)))


def arms_table(curves: dict[str, list[Reading]]) -> Table:
    """Shows tokens a second, and target forwards a token in brackets."""
    table = Table("arm", *(f"RTT {rtt} ms" for rtt in ROUND_TRIPS_MS))
    for label, readings in curves.items():
        cells = (
            f"{reading.tokens_per_s:.1f}"
            + (f" ({reading.forwards_a_token:.2f})" if reading.forwards_a_token else "")
            for reading in readings
        )
        table.add(label, *cells)
    return table


def run_ahead_line(curves: dict[str, list[list[Reading]]]) -> str:
    """Holds run-ahead against the target alone, round trip by round trip."""
    ratios = (
        [own.tokens_per_s / alone.tokens_per_s for own, alone in zip(*turns, strict=True)]
        for turns in zip(curves[RUN_AHEAD], curves["cloud_optimized"], strict=True)
    )
    shown = ", ".join(
        f"{median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})" for pairs in ratios
    )
    return (
        "With run-ahead, against the text that `cloud_optimized` wrote in the same turn, by round "
        f"trip, median (and range): {shown} (wanted: 0.97)."
    )


def bytes_line(curves: dict[str, list[Reading]]) -> str:
    """Compares a round's uplink bytes with a dense mask's."""
    ours = max(reading.bytes_up_a_round for reading in curves["stop and wait, γ 4"])
    return (
        f"A round of four guesses takes {ours:.0f} bytes up, gRPC's frame header included; "
        f"{SPECEDGE_BYTES / ours:,.0f} times fewer than SpecEdge's {SPECEDGE_BYTES:,}."
    )

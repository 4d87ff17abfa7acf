"""The pure parts of benchmarks/scheduling, edge_overhead and memory."""

from __future__ import annotations

import pytest

from benchmarks.capacity import Reading
from benchmarks.edge_overhead import Spent
from benchmarks.memory import CAP_GB, CONFIGS, filled
from benchmarks.scheduling import chunks_table, windows_table
from benchmarks.scheduling_prompts import CONTEXT, Between, between
from tests.models import language_model


def test_gaps_count_where_they_end() -> None:
    gaps = [(0.99, 9.0), (1.0, 0.010), (1.5, 0.020), (1.9, 0.060), (2.0, 9.0)]
    assert between(gaps, [3.0, 1.0, 2.0], 1.0, 2.0) == Between(
        p50_ms=20.0, p95_ms=60.0, longest_ms=60.0, tokens_per_s=3.0, ttft_s=2.0
    )
    assert between(gaps, [], 1.0, 2.0).ttft_s is None
    with pytest.raises(SystemExit, match="nothing was decoded"):
        between(gaps, [], 3.0, 4.0)


def cells(table: object) -> list[list[str]]:
    return [
        [cell.strip() for cell in line[2:-2].split(" | ")] for line in str(table).split("\n")[2:]
    ]


def test_windows_stand_by_number_of_clients() -> None:
    def read(clients: int, speed: float) -> Reading:
        return Reading(clients, speed, 1, 2, 3, 0.5, 1, 0, 9, 0, 0.1, 0)

    table = windows_table({0: [read(8, 10), read(32, 20)], 5: [read(8, 11), read(32, 22)]})
    assert [row[:3] for row in cells(table)] == [
        ["8", "0", "10"],
        ["8", "5", "11"],
        ["32", "0", "20"],
        ["32", "5", "22"],
    ]


def test_chunks_are_named() -> None:
    seen = {name: Between(1, 2, 3, 4, ttft) for name, ttft in
            (("none", None), ("64", 1.5), (str(CONTEXT), 0.5))}  # fmt: skip
    rows = [(row[0], row[-1]) for row in cells(chunks_table(seen))]
    assert rows == [("no long prompts", ""), ("64", "1.50"), ("the whole prompt", "0.50")]


def test_what_is_neither_forward_nor_waiting_is_the_edges_own() -> None:
    spent = Spent(rounds=2, all_ns=100, forwards_ns=30, waiting_ns=60)
    assert (spent.own_ns, spent.share) == (10, 0.1)
    assert spent + spent == Spent(4, 200, 60, 120)


def test_a_filled_session_holds_its_tokens() -> None:
    cache = language_model(cache_tokens=256).cache
    assert cache.length(filled(cache, 100)) == 100


def test_the_preset_states_the_cap_that_is_measured() -> None:
    said = (CONFIGS / "memory_optimized.yaml").read_text()
    assert f"limits.cloud.memory_gb={CAP_GB:g}" in said

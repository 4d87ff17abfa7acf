"""What one server makes for many clients, by each arm, for benchmarks/engine.py: a short load."""

from __future__ import annotations

from pathlib import Path

from benchmarks.capacity import ARMS, BASE, reading
from benchmarks.capacity_load import Load, drive
from benchmarks.capacity_recording import record
from benchmarks.engine_arms import COMPILED, LENGTH, PROMPTS, TOKENS, Row
from tests.integration.processes import serving

CLIENTS, SECONDS, SETTLE_S = 16, 8.0, 2.0


def capacities(demo: Path) -> list[Row]:
    """Drives each arm with as many clients as its row says; benchmarks/capacity.py says how."""
    with serving(
        demo / "target", "--draft-model", str(demo / "draft"), *COMPILED,
        "--set", f"cloud.max_sessions={2 * CLIENTS}",
    ) as server:  # fmt: skip
        recording = record(
            server.address, demo / "draft", demo / "prompts.jsonl",
            draft_length=LENGTH, tokens=TOKENS, limit=PROMPTS, compile_mode="on",
        )  # fmt: skip
        speed = {}
        for arm in ARMS:
            load = Load(arm, CLIENTS, recording.guess_s, 0.0, SECONDS, SETTLE_S)
            seen = drive(server.address, server.metrics, recording, load)
            speed[arm] = reading(CLIENTS, seen).tokens_per_s
    return [
        Row(f"{arm}, {CLIENTS} clients of one server ({BASE})", f"{speed[arm]:.0f} tokens/s",
            f"{speed[BASE]:.0f} tokens/s", speed[arm] / speed[BASE], "")
        for arm in ARMS if arm != BASE
    ]  # fmt: skip

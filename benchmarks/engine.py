"""Steps of the engine against transformers' own, on this CPU in float32.

    python -m benchmarks.engine --out docs/results/engine.md

The large model is random, with the shape of Qwen2.5-0.5B (494 million parameters); the small ones
are the bundled pair, and that of long contexts is random: 4 layers of width 256. Both sides of a
ratio take turns; 64 tokens of context (engine_steps.py). Figures that need the
server and the client are those of `bench` (engine_arms.py), of its loop in this process
(edge_overhead.py), and of a short load that replays recorded drafts (engine_capacity.py).
Rows against llama.cpp need the extra `bench`; it has the same weights, float32 keys and values and
as many threads, and runs in a process of its own, a block of steps each in turns (llama_cpp.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import llama_cpp
from benchmarks.engine_arms import Row, arms
from benchmarks.engine_capacity import capacities
from benchmarks.engine_steps import contexts, step, steps
from benchmarks.memory import peak_bytes
from benchmarks.sampling import half_a_billion
from benchmarks.tables import Table, environment
from common.lm.execution import CompileMode
from common.lm.loading import load
from common.lm.runner import LanguageModel, Segment

DEMO = Path(__file__).parents[1] / "demo"
FIRST_TOKEN_RUNS = 3


def start_up(mode: CompileMode) -> dict[str, float]:
    """Loads the bundled target and the large shape in this process; first token and peak memory."""
    began = time.perf_counter()
    lm = LanguageModel(load(str(DEMO / "target"), device="cpu"), 4096, mode)
    with lm.cache.session(8) as session:
        lm.forward([Segment(session, [1, 2, 3], 0, 1)])
    first_s = time.perf_counter() - began
    large = half_a_billion()
    lm = LanguageModel(large.loaded, 4096, mode)
    lm.compile()
    call = step(lm, 1, 1)
    call()
    weights = 4 * lm.loaded.parameters + lm.cache.bytes_per_token * lm.cache.used_tokens
    return {"first_s": first_s, "peak_mb": peak_bytes() / 1e6, "weights_mb": weights / 1e6}


def start_ups() -> list[Row]:
    """Starts fresh processes, eager and compiled, and compares them."""

    def started(mode: str) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.engine", "--start-up", mode]
        found: dict[str, float] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
        return found

    runs = {mode: [started(mode) for _ in range(FIRST_TOKEN_RUNS)] for mode in ("off", "auto")}
    first = {mode: statistics.median(r["first_s"] for r in runs[mode]) for mode in runs}
    most = max(run["peak_mb"] for run in runs["auto"])
    allowed = 1.3 * runs["auto"][0]["weights_mb"] + 500
    return [
        Row("first token from loading on, bundled target, kernels built before (eager)",
            f"{first['auto']:.2f} s", f"{first['off']:.2f} s", first["auto"] / first["off"],
            "≤ 1.5"),
        Row("peak memory, 494M, compiled (1.3 × weights and cache + 500 MB)", f"{most:.0f} MB",
            f"{allowed:.0f} MB", most / allowed, "≤ 1"),
    ]  # fmt: skip


def page(rows: Sequence[Row]) -> str:
    """Writes the page."""
    table = Table("what (against)", "ours", "theirs", "ratio", "wanted")
    for row in rows:
        table.add(row.what, row.ours, row.theirs, f"{row.ratio:.2f}", row.wanted)
    text = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    missing = "" if llama_cpp.is_installed() else " llama.cpp: not measured."
    return (
        "# The engine against transformers\n\nMade by `python -m benchmarks.engine`. "
        f"{text}\n\n{environment()}\n\n{table}\n\n"
        "A ratio of times says how many times faster ours is; against llama.cpp, at the start and "
        f"by context, ours over theirs.{missing}\n"
    )


def deliver(rows: Sequence[Row], out: Path | None, numbers: Path | None) -> None:
    """Writes the page, or prints it, and its numbers as JSON."""
    if out is None:
        print(page(rows))
    else:
        out.write_text(page(rows), encoding="utf-8")
    if numbers is not None:
        numbers.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False)
        numbers.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Prints the page, or writes it; its numbers go as JSON beside it, or where they are wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--start-up", choices=("off", "auto"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start_up is not None:
        print(json.dumps(start_up(options.start_up)))
        return
    beside = options.out and options.out.with_suffix(".json")
    rows = [*steps(), contexts(), *arms(DEMO), *capacities(DEMO), *start_ups()]
    deliver(rows, options.out, options.json or beside)


if __name__ == "__main__":
    main()

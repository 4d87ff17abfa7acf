"""Steps of the engine against transformers' own, on this CPU in float32.

    python -m benchmarks.engine --out docs/results/engine.md

The large model is random, with the shape of Qwen2.5-0.5B (494 million parameters); the small ones
are the bundled pair. Both sides of a ratio take turns; 64 tokens of context. Figures that need the
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
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from benchmarks import llama_cpp
from benchmarks.engine_arms import Row, arms
from benchmarks.engine_capacity import capacities
from benchmarks.gguf_file import write_gguf
from benchmarks.memory import peak_bytes
from benchmarks.sampling import half_a_billion
from benchmarks.tables import Table, environment
from common.lm.execution import CompileMode
from common.lm.loading import LoadedModel, load
from common.lm.runner import LanguageModel, Segment

CONTEXT = 64
DEMO = Path(__file__).parents[1] / "demo"
FIRST_TOKEN_RUNS = 3


def medians(turns: int, **calls: Callable[[], object]) -> dict[str, float]:
    """Returns the median milliseconds of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn:  # the first is to warm up
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(taken) for name, taken in times.items()}


class Stock:
    """Is transformers' module with a cache of its own, rolled back after each step."""

    def __init__(self, model: PreTrainedModel, count: int) -> None:
        self._model: Any = model
        self._cache = DynamicCache()
        self._ids = torch.arange(1, 1 + count)[None]
        self._run(torch.arange(1, 1 + CONTEXT)[None])

    def __call__(self) -> None:
        """Runs `count` tokens after the context."""
        self._run(self._ids)
        self._cache.crop(-self._ids.shape[1])

    def _run(self, ids: torch.Tensor) -> None:
        with torch.inference_mode():
            self._model(input_ids=ids, past_key_values=self._cache, use_cache=True)


def step(lm: LanguageModel, sessions: int, count: int) -> Callable[[], Tensor]:
    """Returns the step of so many sessions with `count` tokens and logits each."""
    ids = list(range(1, 1 + CONTEXT))
    segments = []
    for _ in range(sessions):
        session = lm.cache.allocate(CONTEXT + count)
        lm.forward([Segment(session, ids, 0, 0)])
        segments.append(Segment(session, ids[:count], CONTEXT, count))
    return lambda: lm.forward(segments)


def compiled(loaded: LoadedModel, cache_tokens: int = 4096) -> LanguageModel:
    """Returns the engine over a model, its graphs compiled."""
    lm = LanguageModel(loaded, cache_tokens, "on")
    lm.compile()
    return lm


def compare(
    what: str, lm: LanguageModel, sessions: int, count: int, turns: int, wanted: str
) -> tuple[Row, float]:
    """Times a step against as many forwards of transformers; also returns our milliseconds."""
    stock = Stock(lm.stock, count)

    def one_after_another() -> None:
        for _ in range(sessions):
            stock()

    took = medians(turns, ours=step(lm, sessions, count), theirs=one_after_another)
    ratio = took["theirs"] / took["ours"]
    ours, theirs = (f"{took[name]:.2f} ms" for name in ("ours", "theirs"))
    return Row(what, ours, theirs, ratio, wanted), took["ours"]


def against_llama_cpp(what: str, lm: LanguageModel, steps: int, wanted: str = "–") -> list[Row]:
    """Times a decode step against llama.cpp's, with torch's threads; no row if it is not there."""
    if not llama_cpp.is_installed():
        return []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.gguf"
        write_gguf(lm.loaded, file)
        context = range(1, 1 + CONTEXT)
        took = llama_cpp.compare(step(lm, 1, 1), file, context, torch.get_num_threads(), steps)
    ours, theirs = (f"{took[name]:.2f} ms" for name in ("ours", "theirs"))
    what = f"{what} (llama.cpp f32, one step)"
    return [Row(what, ours, theirs, took["ours"] / took["theirs"], wanted)]


def sgemm_rate() -> float:
    """Returns what this machine's matrix product reaches, in floating-point operations a second."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / (medians(9, product=lambda: a @ b)["product"] / 1e3)


def steps() -> list[Row]:
    """Times the steps of all models."""
    rows = []
    large = half_a_billion()
    lm = compiled(large.loaded)
    against = "transformers, one step"
    rows.append(compare(f"494M, decode ({against})", lm, 1, 1, 15, "≥ 2.5")[0])
    rows += against_llama_cpp("494M, decode", lm, 5, "≤ 1.05")
    rows.append(compare(f"494M, verify of 5 ({against})", lm, 1, 5, 15, "≥ 2.5")[0])
    row, took_ms = compare(
        "494M, 16 sessions × 5 (sixteen steps of transformers)", lm, 16, 5, 3, "≥ 6"
    )
    operations = 2 * lm.loaded.parameters * 80
    rate, peak = operations / (took_ms / 1e3), sgemm_rate()
    rows += [
        row,
        Row("the same, of the machine's sgemm", f"{rate / 1e9:.0f} GFLOP/s",
            f"{peak / 1e9:.0f} GFLOP/s", rate / peak, "≥ 0.60"),
    ]  # fmt: skip
    for name in ("draft", "target"):
        small = compiled(load(str(DEMO / name), device="cpu"))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            what = f"bundled {name}, decode, {threads} threads"
            rows.append(compare(f"{what} ({against})", small, 1, 1, 200, "≥ 3.5")[0])
            rows += against_llama_cpp(what, small, 200)
    return rows


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
        "A ratio of times says how many times faster ours is; against llama.cpp and at the start, "
        f"ours over theirs.{missing}\n"
    )


def main() -> None:
    """Prints the page, or writes it and its numbers as JSON beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--start-up", choices=("off", "auto"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start_up is not None:
        print(json.dumps(start_up(options.start_up)))
        return
    rows = [*steps(), *arms(DEMO), *capacities(DEMO), *start_ups()]
    if options.out is None:
        print(page(rows))
        return
    options.out.write_text(page(rows), encoding="utf-8")
    options.out.with_suffix(".json").write_text(
        json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

"""Steps of the engine's models, of llama.cpp and of transformers, for benchmarks/engine.py."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from benchmarks import llama_cpp
from benchmarks.engine_arms import Row
from benchmarks.gguf_file import write_gguf
from benchmarks.sampling import half_a_billion
from common.lm.loading import LoadedModel, load
from common.lm.runner import LanguageModel, Segment
from tests.models import loaded, tiny_llama

CONTEXT = 64
DEMO = Path(__file__).parents[1] / "demo"
CONTEXTS = (64, 2048, 8192)


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


def step(
    lm: LanguageModel, sessions: int, count: int, context: int = CONTEXT
) -> Callable[[], Tensor]:
    """Returns the step of so many sessions with `count` tokens and logits each."""
    ids = [1 + place % 100 for place in range(context)]
    segments = []
    for _ in range(sessions):
        session = lm.cache.allocate(context + count)
        lm.forward([Segment(session, ids, 0, 0)])
        segments.append(Segment(session, ids[:count], context, count))
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


def contexts() -> Row:
    """Times decode steps behind contexts of three lengths: what each token of a context adds."""
    stock = tiny_llama(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=2 * CONTEXTS[-1],
    )  # fmt: skip
    lm = compiled(loaded(stock), 2 * CONTEXTS[-1])
    took = medians(40, **{str(size): step(lm, 1, 1, size) for size in CONTEXTS})
    none, some, most = took.values()
    long = 1e6 * (most - none) / (CONTEXTS[2] - CONTEXTS[0])
    short = 1e6 * (some - none) / (CONTEXTS[1] - CONTEXTS[0])
    what = f"what a token of context adds to a step, of {CONTEXTS[2]:,} (of {CONTEXTS[1]:,})"
    return Row(what, f"{long:.0f} ns", f"{short:.0f} ns", long / short, "≤ 1.1")

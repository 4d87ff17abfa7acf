"""Steps of the engine on a GPU in float32, against its memory's bandwidth and transformers.

    python -m benchmarks.gpu --out docs/results/gpu.md

The model is random, with the shape of Llama 2 7B: 27 GB of weights. A step of few tokens can be no
faster than reading them once; the bandwidth is that of a copy on the same GPU. Without a GPU
nothing is measured, and it says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.engine_steps import CONTEXT, Stock, medians, step
from benchmarks.tables import Table, environment
from common.lm.loading import LoadedModel
from common.lm.precision import apply_policy
from common.lm.runner import LanguageModel
from tests.models import loaded

NOT_MEASURED = "no GPU: not measured"
DEVICE = torch.device("cuda", 0)
LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
CACHE_TOKENS = 16384  # 17 GB
SESSIONS = 32
GENERATED = 64
COPIED_BYTES = 1 << 32


def model(device: torch.device, **shape: int) -> LoadedModel:
    """Builds a random Llama on a device."""
    config = AutoConfig.for_model("llama", **shape)
    factory: Any = AutoModelForCausalLM
    with device:
        return loaded(factory.from_config(config, dtype=torch.float32), "llama")


def finished(call: Callable[[], object]) -> Callable[[], object]:
    """Makes a call wait until the GPU has done what it asks."""

    def run() -> None:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def bandwidth(device: torch.device, size: int = COPIED_BYTES) -> float:
    """Measures bytes a millisecond that a copy reads and writes."""
    source = torch.empty(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / medians(10, copy=finished(lambda: target.copy_(source)))["copy"]


def static_generate(given: LoadedModel, tokens: int = GENERATED) -> float:
    """Times a token of transformers' generate over its static cache, compiled as it does itself."""
    stock: Any = given.model
    ids = torch.arange(1, 1 + CONTEXT, device=given.device)[None]

    def generate(count: int) -> None:
        stock.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
            do_sample=False, cache_implementation="static", pad_token_id=0,
        )  # fmt: skip

    generate(tokens)  # compiles
    taken = []
    for count in (tokens, 1):
        started = time.perf_counter()
        finished(lambda count=count: generate(count))()  # type: ignore[misc]
        taken.append(time.perf_counter() - started)
    return 1e3 * (taken[0] - taken[1]) / (tokens - 1)


def measure(given: LoadedModel, turns: int, sessions: int = SESSIONS) -> Table:
    """Times every step in turns with transformers' eager module; medians."""
    engine = LanguageModel(given, CACHE_TOKENS, "auto")
    weights = sum(p.numel() * p.element_size() for p in given.model.parameters())
    least = weights / bandwidth(given.device)
    table = Table(
        "step", f"engine ({engine.execution.path})", "transformers", "÷ weights read once"
    )
    for count in range(1, 9):
        with given.device:
            stock = Stock(given.model, count)
        times = medians(turns, ours=finished(step(engine, 1, count)), theirs=finished(stock))
        table.add(
            f"1 session, {count} tokens",
            f"{times['ours']:.2f} ms",
            f"{times['theirs']:.2f} ms, eager",
            f"{times['ours'] / least:.2f}",
        )
    for count in (1, 5):
        ours = medians(turns, ours=finished(step(engine, sessions, count)))["ours"]
        table.add(
            f"{sessions} sessions, {count} tokens", f"{ours:.2f} ms", "", f"{ours / least:.2f}"
        )
    theirs = static_generate(given)
    table.add("1 token of generate", "", f"{theirs:.2f} ms, static cache, compiled", "")
    table.add("weights ÷ bandwidth of a copy", f"{least:.2f} ms", "", "1")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the page or writes it."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, help="the page to write; printed otherwise")
    parser.add_argument("--turns", type=int, default=20, help="how often each step is timed")
    given = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(NOT_MEASURED)
        return 0
    apply_policy()
    table = measure(model(DEVICE, **LLAMA_2_7B), given.turns)
    page = f"# Steps on a GPU\n\n{environment()}\n\n{table}\n"
    if given.out is None:
        print(page)
    else:
        given.out.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The choice of a token at a large vocabulary, against the decode step it follows.

    python -m benchmarks.sampling --out docs/results/sampling.md

The model is random, with the shape of Qwen2.5-0.5B (494 million parameters, vocabulary 151,936), in
float32 on this CPU. Choices and decode steps are timed in turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.tables import Table, environment
from common.lm.noise import Stream, gumbel_argmax
from common.lm.runner import LanguageModel, Segment
from common.lm.sampling import Context, choose
from common.types import SamplingParams
from tests.models import loaded

VOCAB = 151_936
CASES = {
    "greedy": SamplingParams(),
    "T 1": SamplingParams(1.0, seed=7),
    "T 0.7, top-k 50": SamplingParams(0.7, top_k=50, seed=7),
    "T 0.7, top-p 0.95": SamplingParams(0.7, top_p=0.95, seed=7),
    "T 0.7, min-p 0.05": SamplingParams(0.7, min_p=0.05, seed=7),
    "T 1, all penalties, top-k 50, top-p 0.95, min-p 0.05": SamplingParams(
        1.0, 50, 0.95, 7, 0.05, 1.1, 0.1, 0.1
    ),
}
SPREADS = {"flat": 1.0, "medium": 3.0, "peaked": 6.0}
"""Standard deviations of random normal logits, in nats."""


def half_a_billion() -> LanguageModel:
    """Builds the model."""
    config = AutoConfig.for_model(
        "qwen2", vocab_size=VOCAB, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip
    factory: Any = AutoModelForCausalLM
    model = factory.from_config(config)
    model.train(False).requires_grad_(False)
    return LanguageModel(loaded(model), cache_tokens=1024)


def seconds(function: Callable[[], object]) -> float:
    """Times one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(engine: LanguageModel, rounds: int) -> Table:
    """Times every case in turns with decode steps; medians."""
    context = Context(tuple(range(200)), 200, 100)
    logits = {
        name: spread * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
        for name, spread in SPREADS.items()
    }
    steps: list[float] = []
    taken: dict[tuple[str, str], list[float]] = {
        (case, spread): [] for case in CASES for spread in SPREADS
    }
    with engine.cache.session() as session:
        engine.forward([Segment(session, list(range(200)), 0, 1)])
        for at in tqdm(range(200, 200 + rounds)):
            steps.append(seconds(partial(engine.forward, [Segment(session, [7], at, 1)])))
            for (case, spread), times in taken.items():
                times.append(seconds(partial(choice, logits[spread], context, case)))
    step = statistics.median(steps)
    table = Table("choice", *(f"{name} logits" for name in SPREADS))
    for case in CASES:
        medians = [statistics.median(taken[case, spread]) for spread in SPREADS]
        table.add(case, *(f"{1e3 * value:.1f} ms, {value / step:.1%}" for value in medians))
    table.add("decode step", *(f"{1e3 * step:.0f} ms" for _ in SPREADS))
    return table


def choice(logits: Tensor, context: Context, case: str) -> list[int]:
    """Chooses one token."""
    return choose(logits, [context], [CASES[case]])


def many_rows() -> str:
    """Times 32 rows at once against one, as a batch would have them."""
    logits = 3 * torch.randn(32, VOCAB, generator=torch.Generator().manual_seed(1))
    one, all_rows = [], []
    for _ in range(5):
        one.append(seconds(lambda: gumbel_argmax(logits[:1], [1], [5], Stream.CHOICE)))
        all_rows.append(seconds(lambda: gumbel_argmax(logits, range(32), range(32), Stream.CHOICE)))
    return f"{statistics.median(all_rows) / statistics.median(one):.0f}"


PAGE = """# What the choice of a token costs

Made by `python -m benchmarks.sampling`: one row of 151,936 logits on the CPU, against one decode
step of a random model of Qwen2.5-0.5B's shape in float32, {rounds} of each taken in turns;
medians, and the share of a decode step. Logits are normal, with a standard deviation of 1, 3 and
6 nats.

{environment}

{table}

The noise of 32 rows at once takes {many} times that of one (medium logits, T 1). Flat logits are
the worst case: every token is within reach of winning, and one top-p in some has to be computed
in transformers' own operations, because rounding decides.
"""


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("--rounds", type=int, default=40, help="default: %(default)s")
    options = parser.parse_args()
    with torch.inference_mode():
        table = measure(half_a_billion(), options.rounds)
        page = PAGE.format(
            rounds=options.rounds, environment=environment(), table=table, many=many_rows()
        )
    options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

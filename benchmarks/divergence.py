"""How often rounding makes two arms part, and what a batch-invariant path would cost on a CPU.

    python -m benchmarks.divergence --out docs/results/divergence.md

Arms run in one process on random models of many architectures and on the bundled pair, in ragged
batches of several sessions, greedy and sampled. The text of `cloud` is compared token by token with
that of `cloud_optimized` and of `speculative` up to the first token that differs; what follows it
answers another text and is not counted. The same again in bfloat16.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from benchmarks.tables import Table, environment
from cloud_server.generate import StockGenerator
from common.config import CloudSection
from common.lm.loading import LoadedModel, load
from common.lm.runner import LanguageModel, Segment
from common.types import OpenSession, Peer, SamplingParams, StopParams
from edge_client.drafter import Drafter
from tests.models import loaded, noised_copy, tiny
from tests.three_arms import Run, batch, cloud, hosting, parting

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "opt", "phi3",
    "qwen3_moe",
)  # fmt: skip
DEMO = Path(__file__).parents[1] / "demo"
LIMITS = CloudSection(token_budget=48, prefill_chunk=16, max_draft_tokens=8)
TEMPERATURES = (0.0, 0.7, 1.0)
BATCH = 6


@dataclass
class Count:
    """Counts what was compared on one model, and how close the scores were where texts parted."""

    tokens: int = 0
    positions: int = 0
    gaps: list[float] = field(default_factory=list)
    largest_error: float = 0.0
    close: int = 0

    def add(self, other: Count) -> None:
        """Adds another model's counts."""
        self.tokens += other.tokens
        self.positions += other.positions
        self.gaps += other.gaps
        self.largest_error = max(self.largest_error, other.largest_error)
        self.close += other.close


def flattened(model: PreTrainedModel) -> PreTrainedModel:
    """Copies a model with weights a tenth as large, whose logits lie close together."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(0.1)
    return copied


def pairs(dtype: torch.dtype) -> Iterator[tuple[str, LoadedModel, LoadedModel]]:
    """Yields the models compared, each with a draft model that is often right."""
    for architecture in ARCHITECTURES:
        model = tiny(architecture)
        draft = noised_copy(model, 0.1)
        yield architecture, loaded(cast(model, dtype)), loaded(cast(draft, dtype))
    small = flattened(tiny("llama"))
    yield "llama, weights ÷ 10", loaded(cast(small, dtype)), loaded(cast(small, dtype))
    name = str(dtype).removeprefix("torch.")
    yield (
        "bundled pair",
        load(str(DEMO / "target"), dtype=name),
        load(str(DEMO / "draft"), dtype=name),
    )


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Copies a model to another precision."""
    copied = copy.deepcopy(model)
    copied.to(dtype)  # type: ignore[arg-type]
    return copied


def random_run(rng: random.Random, vocab_size: int) -> Run:
    """Makes one request: a prompt of 1 to 60 tokens, 64 new ones, some temperature."""
    prompt = tuple(rng.randrange(1, vocab_size) for _ in range(rng.choice([1, 4, 15, 60])))
    sampling = SamplingParams(rng.choice(TEMPERATURES), seed=rng.randrange(2**64))
    opening = OpenSession(Peer("", "", 0, ""), prompt, sampling, StopParams(64, ()))
    return Run(opening, rng.randrange(LIMITS.max_draft_tokens + 1))


def count(target: LoadedModel, draft: LoadedModel, tokens: int) -> Count:
    """Compares the arms over so many tokens."""
    engine = LanguageModel(target, cache_tokens=4096)
    drafters = [Drafter(LanguageModel(draft, cache_tokens=256)) for _ in range(BATCH)]
    stock = StockGenerator(engine.stock, target.vocab_size, time.monotonic_ns)
    rng = random.Random(7)
    found = Count()
    with hosting(engine, LIMITS) as host:
        while found.tokens < tokens:
            runs = [random_run(rng, target.vocab_size) for _ in range(BATCH)]
            texts = asyncio.run(batch(host, runs, drafters))
            for run, *others in zip(runs, texts, texts[BATCH:], strict=False):
                expected = cloud(host, stock, run)
                for other in others:
                    if other == expected:
                        found.tokens += len(expected)
                        continue
                    parted = parting(host, run, expected, other)
                    found.tokens += parted.index + 1
                    found.gaps.append(parted.gap)
    for _ in range(8):  # with the engine's thread gone, the model is ours
        measure_errors(engine, random_run(rng, target.vocab_size), found)
    return found


@torch.inference_mode()
def measure_errors(engine: LanguageModel, run: Run, found: Count) -> None:
    """Compares the logits of one text in one forward with those token by token.

    Counts the positions where the two likeliest are closer than twice the largest difference: only
    there can rounding between batch shapes change a greedy choice.
    """
    rng = random.Random(run.opening.sampling.seed)
    tokens = [rng.randrange(1, engine.loaded.vocab_size) for _ in range(100)]
    with engine.cache.session() as session:
        whole = engine.forward([Segment(session, tokens, 0, len(tokens))]).float()
    with engine.cache.session() as session:
        rows = [
            engine.forward([Segment(session, [token], at, 1)]) for at, token in enumerate(tokens)
        ]
    error = float((whole - torch.cat(rows).float()).abs().max())
    first, second = whole.topk(2).values.unbind(-1)
    found.largest_error = max(found.largest_error, error)
    found.close += int((first - second < 2 * error).sum())
    found.positions += len(tokens)


def rate(found: Count) -> str:
    """Writes divergences a million tokens, or the bound that none at all leaves."""
    if found.gaps:
        return f"{1e6 * len(found.gaps) / found.tokens:.0f}"
    return f"< {3e6 / found.tokens:.0f}"  # the rule of three: 95 %


def table_of(counts: Sequence[tuple[str, Count]]) -> Table:
    """Returns divergences by model."""
    table = Table("model", "tokens compared", "divergences", "a million tokens",
                  "largest gap there", "largest error of a logit",
                  "positions closer than twice that")  # fmt: skip
    together = Count()
    for name, found in counts:
        together.add(found)
        table.add(*row(name, found))
    table.add(*row("**all**", together))
    return table


def row(name: str, found: Count) -> tuple[str, ...]:
    """Writes one model's counts."""
    return (
        name,
        f"{found.tokens:,}",
        str(len(found.gaps)),
        rate(found),
        f"{max(found.gaps):.2g}" if found.gaps else "–",
        f"{found.largest_error:.2g}",
        f"{found.close}/{found.positions}",
    )


# --- what an invariant path would need -----------------------------------------------------------

SIZES = ((256, 1024), (896, 896), (896, 4864), (4864, 896), (2048, 11008))
ROWS = (1, 2, 3, 4, 5, 8, 32)


def products() -> Table:
    """Returns which row counts change the bits of a row, and what four rows cost beside one."""
    table = Table("weights", *(f"{rows} rows" for rows in ROWS), "time of 4 rows ÷ 1 row")
    generator = torch.Generator().manual_seed(0)
    for inner, outer in SIZES:
        x = torch.randn(64, inner, generator=generator)
        weight = torch.randn(outer, inner, generator=generator)
        full = F.linear(x, weight)
        same = [
            "same bits" if torch.equal(F.linear(x[:rows], weight), full[:rows]) else "differs"
            for rows in ROWS
        ]
        table.add(f"{inner} × {outer}", *same, f"{slowdown(x, weight):.1f}")
    return table


def slowdown(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Times four rows against one, in turns; the ratio of the least of each."""
    one: list[float] = []
    four: list[float] = []
    for _ in range(30):
        for rows, times in ((1, one), (4, four)):
            started = time.perf_counter()
            F.linear(x[:rows], weight)
            times.append(time.perf_counter() - started)
    return min(four) / min(one)


def attention_differs() -> tuple[int, int]:
    """Counts queries whose result changes when the keys after them are masked instead of absent."""
    generator = torch.Generator().manual_seed(0)
    changed = asked = 0
    for length in (50, 200, 700):
        query, key, value = (torch.randn(1, 4, length, 32, generator=generator) for _ in range(3))
        full = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        for at in range(4, length - 1):
            some = query[:, :, at - 3 : at + 1]
            mask = torch.ones(4, at + 1, dtype=torch.bool).tril(at - 3)
            alone = F.scaled_dot_product_attention(
                some, key[:, :, : at + 1], value[:, :, : at + 1], attn_mask=mask
            )
            changed += not torch.equal(alone[:, :, -1], full[:, :, at])
            asked += 1
    return changed, asked


PAGE = """# Where rounding decides

Made by `python -m benchmarks.divergence`. Texts of `cloud_optimized` and `speculative` against
that of `cloud`, up to the first token that differs: prompts of 1 to 60 tokens, 64 new ones,
temperatures 0, 0.7 and 1, draft lengths 0 to 8, ragged batches of twelve sessions, prompts in
chunks of 16. The models with architectures' names are random, with logits that vary strongly; one
has weights so small that its logits lie close together.

{environment}

## float32

{exact}

## bfloat16

The same models and requests, both ends in bfloat16.

{half}

*A million tokens*: divergences ÷ tokens compared, scaled; where there was none, the 95 % bound
that leaves (the rule of three). *Largest gap there*: how far apart the two scores (noise
included, where there is any) stood in the stock module's own forward, at the places where texts
parted. *Largest error of a logit*: the most that a logit of one text differed between one forward
over 100 tokens and 100 forwards of one. *Positions closer than twice that*: where a greedy choice
could change at all.

## A batch-invariant path on this CPU

Whether a row of a product has the bits it has among 64 rows, by how many rows are computed
together; and what computing four costs beside one:

{products}

Rows computed four or more at a time have the same bits whatever their number; fewer take other
kernels. So an invariant path would compute every single-token step with four rows, at the price
in the last column, in `cloud` too. Attention would have to follow: with torch's kernel, {changed}
of {asked} queries change their last bits when the keys behind them are absent instead of masked,
so it would need a kernel of its own with fixed blocks of keys. A decode step that takes about
twice as long is no small cost for what the first table says is left. The path is not built; a
divergence in a `bench` is shown with its gap.
"""


def main() -> None:
    """Counts, measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("--tokens", type=int, default=12_000, help="a model (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = {}
    for dtype in (torch.float32, torch.bfloat16):
        with torch.inference_mode():
            models = list(pairs(dtype))
        tables[dtype] = table_of(
            [
                (name, count(target, draft, options.tokens))
                for name, target, draft in tqdm(models, desc=str(dtype))
            ]
        )
    changed, asked = attention_differs()
    page = PAGE.format(
        environment=environment(),
        exact=tables[torch.float32],
        half=tables[torch.bfloat16],
        products=products(),
        changed=changed,
        asked=asked,
    )
    options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

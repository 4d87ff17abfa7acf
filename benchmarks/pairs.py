"""Pairs of models whose draft step and acceptance are what a benchmark asks for.

All are the bundled draft model underneath. Made wider by rows that are zero it computes the same
and takes longer; with noise on its weights it writes another text, and so is accepted less often.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from common.lm.runner import LanguageModel, Segment
from common.lm.sampling import Context, choose
from common.types import SamplingParams
from edge_client.drafter import Drafter, EdgeModel

BASE = Path(__file__).parents[1] / "demo" / "draft"
NARROW = 448
"""Intermediate size of the bundled draft model."""
NOISE_SEED = 7
STEPS = 24
"""Decode steps that a step time is the median of."""


@dataclass(frozen=True, slots=True)
class Made:
    """Is a model in a directory, with what was measured of it."""

    path: Path
    step_ms: float
    acceptance: float | None = None


def widened(directory: Path, width: int, noise: float = 0.0) -> Path:
    """Writes the bundled draft model with noise of so many standard deviations, then wider."""
    made = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    generator = torch.Generator().manual_seed(NOISE_SEED)
    state = {}
    for name, weight in made.state_dict().items():
        if noise and weight.ndim == 2:
            weight = weight + noise * weight.std() * torch.randn(weight.shape, generator=generator)
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            weight = torch.cat([weight, weight.new_zeros(width - NARROW, weight.shape[1])])
        elif name.endswith("down_proj.weight"):
            weight = torch.cat([weight, weight.new_zeros(weight.shape[0], width - NARROW)], 1)
        state[name] = weight
    made.config.intermediate_size = width
    wide = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        made.config, dtype=torch.float32
    )
    wide.load_state_dict(state)
    shutil.copytree(BASE, directory, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    wide.save_pretrained(directory)
    return directory


def step_ms(path: Path) -> float:
    """Returns the median time of a decode step with one thread."""
    drafter = Drafter(EdgeModel(str(path), threads=1))
    tokens, times = [5] * 16, []
    for _ in range(STEPS + 3):
        started = time.perf_counter()
        tokens += drafter.draft(tokens, 1, SamplingParams(), prompt_length=16).token_ids
        times.append(1e3 * (time.perf_counter() - started))
    return sorted(times[3:])[STEPS // 2]


def width_of(wanted_ms: float, scratch: Path) -> int:
    """Returns the width whose step takes so long, by a line through two that are measured."""
    narrow = step_ms(widened(scratch / f"narrow-{wanted_ms}", NARROW))
    if wanted_ms <= narrow:
        return NARROW
    probe = NARROW + 40_000
    wide = step_ms(widened(scratch / f"probe-{wanted_ms}", probe))
    return NARROW + round((wanted_ms - narrow) / (wide - narrow) * (probe - NARROW))


def noise_of(acceptance: float, agreement: Callable[[float], float], highest: float = 1.0) -> float:
    """Returns the noise at which so many guesses agree, by bisection."""
    low, high = 0.0, highest
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (middle, high) if agreement(middle) > acceptance else (low, middle)
    return (low + high) / 2


def choices(
    model: LanguageModel, tokens: Sequence[int], start: int, sampling: SamplingParams
) -> list[int]:
    """Returns what a model would choose at each position from `start` on, given the text."""
    with model.cache.session(len(tokens)) as session:
        logits = model.forward([Segment(session, list(tokens[:-1]), 0, len(tokens) - start)])
    contexts = [Context(list(tokens), place, start) for place in range(start, len(tokens))]
    return choose(logits, contexts, [sampling] * len(contexts))

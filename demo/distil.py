"""Distilling the draft from the target.

A greedy speculative decoder asks the draft for one thing: the target's first choice, behind text
that the target itself wrote. So after a first part on corpus text, judged by the target, the draft
is trained mostly on greedy continuations by the target of openings and contexts of the training
split.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from corpora import IGNORE, Split, encode, pack
from lessons import Lessons, OwnText, lessons, talk_weights
from llama import DRAFT, Llama
from muon import Optimiser
from target import Cycle, mean_loss
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

log = logging.getLogger("demo")


@dataclass(frozen=True)
class DraftPlan:
    """How the draft is distilled; sizes in tokens, rates as the optimiser takes them."""

    steps: int = 6000
    row: int = 1024
    batch: int = 8192
    own_from: float = 0.2
    """Share of the steps after which the target's own text is mixed in."""
    own: float = 0.85
    """Share of the tokens, from there on, of the target's own text."""
    own_stories: float = 0.3
    """Share of that which is stories."""
    corpus_stories: float = 0.5
    choice: float = 0.5
    """Weight of the cross-entropy on the target's first choice; the rest is the cross-entropy
    against the target's distribution."""
    user: float = 0.3
    """Weight of what the user says in a dialogue, where the assistant's words have 1."""
    decay: float = 0.5
    """Share of the steps, the last ones, in which the rates go to zero."""
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    seed: int = 2
    evaluate_every: int = 200
    save_every: int = 100


def batches(
    every: list[Lessons], plan: DraftPlan
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Batches: tokens `[batch / row, row]`, best and mass (of the same and `CHOICES`), weights.

    `every`: stories and dialogues of the corpus, stories and dialogues of the target's own.
    """
    rng = random.Random(plan.seed)
    cycles = [Cycle(one.places(), rng) for one in every]
    weights = [
        talk_weights(one, plan.user) if index % 2 else torch.ones(len(one.tokens))
        for index, one in enumerate(every)
    ]
    rows, block = plan.batch // plan.row, 32 * plan.batch
    step = 0
    while True:
        part = plan.own if step >= plan.steps * plan.own_from else 0.0
        shares = (
            (1 - part) * plan.corpus_stories,
            (1 - part) * (1 - plan.corpus_stories),
            part * plan.own_stories,
            part * (1 - plan.own_stories),
        )
        made: list[tuple[Lessons, Tensor, Tensor]] = []
        for one, weight, cycle, share in zip(every, weights, cycles, shares, strict=True):
            if share == 0:
                continue
            packed, labels = pack(cycle.take(round(block * share)), plan.row, rng)
            at = torch.from_numpy(packed)
            counted = weight[at] * (torch.from_numpy(labels) != IGNORE)
            made.extend((one, at[row], counted[row]) for row in range(len(at)))
        rng.shuffle(made)
        for start in range(0, len(made) - rows + 1, rows):
            group = made[start : start + rows]
            yield (
                torch.stack([one.tokens[at] for one, at, _ in group]).long(),
                torch.stack([one.best[at] for one, at, _ in group]).long(),
                torch.stack([one.mass[at] for one, at, _ in group]).float(),
                torch.stack([counted for _, _, counted in group]),
            )
            step += 1


def distil(
    target: Llama,
    tokenizer: Tokenizer,
    training: Split,
    held_out: Split,
    plan: DraftPlan,
    own_plan: OwnText,
    scratch: Path,
    compiled: bool,
) -> Llama:
    """Distil the draft, resuming from `scratch/draft.pt` where a stopped run left one.

    Writes the curve to `scratch/draft_curve.json`: held-out loss in nats per token on corpus text.
    """
    device = next(target.parameters()).device
    torch.manual_seed(plan.seed)
    model = Llama(DRAFT).to(device)
    optimiser = Optimiser(model, plan.steps, plan.decay, plan.muon_lr, plan.adam_lr)
    checkpoint, curve_file = scratch / "draft.pt", scratch / "draft_curve.json"
    curve: list[dict[str, float]] = []
    first, spent = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first, curve, spent = state["step"], state["curve"], state["seconds"]
        log.info("resuming at step %d", first)
    stories, dialogues = encode(tokenizer, training.stories), encode(tokenizer, training.dialogues)
    opening = tokenizer.encode("Assistant:", add_special_tokens=False).ids
    every = lessons(target, stories, dialogues, opening, own_plan, scratch / "lessons.pt")
    log.info(
        "tokens: corpus %d of stories, %d of dialogues, own %d and %d",
        *(len(one.tokens) for one in every),
    )
    probe = [
        pack(encode(tokenizer, documents[:96]), plan.row, random.Random(0))
        for documents in (held_out.stories, held_out.dialogues)
    ]

    def loss_of(x: Tensor, best: Tensor, mass: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(x)
        given = -logits.float().log_softmax(-1).gather(-1, best)
        each = (1 - plan.choice) * (mass * given).sum(-1) + plan.choice * given[..., 0]
        mean: Tensor = (each * weight).sum() / weight.sum()
        return mean

    fast: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = (
        torch.compile(loss_of, dynamic=False) if compiled else loss_of
    )
    stream = batches(every, plan)
    for _ in range(first):
        next(stream)
    began = time.monotonic() - spent
    recent: list[float] = []
    for step in tqdm(range(first, plan.steps), initial=first, total=plan.steps, mininterval=5):
        x, best, mass, weight = (part.to(device) for part in next(stream))
        loss = fast(x, best, mass, weight)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(step)
        recent.append(loss.item())
        done = step + 1
        if done % plan.evaluate_every == 0 or done == plan.steps:
            point = {
                "step": done,
                "tokens": done * plan.batch,
                "distillation": sum(recent) / len(recent),
                "stories": mean_loss(model, probe[0]),
                "dialogues": mean_loss(model, probe[1]),
                "seconds": time.monotonic() - began,
            }
            curve.append(point)
            recent.clear()
            log.info(" ".join(f"{name} {value:.6g}" for name, value in point.items()))
            curve_file.write_text(json.dumps({"plan": asdict(plan), "curve": curve}, indent=1))
        if done % plan.save_every == 0 or done == plan.steps:
            state = {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": done,
                "curve": curve,
                "seconds": time.monotonic() - began,
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    return model

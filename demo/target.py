"""Training the target on the corpora."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from corpora import IGNORE, IntArray, Split, encode, pack
from llama import TARGET, Llama
from muon import Optimiser
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

log = logging.getLogger("demo")


@dataclass(frozen=True)
class TargetPlan:
    """How the target is trained; sizes in tokens, rates as the optimiser takes them."""

    steps: int = 1600
    row: int = 512
    batch: int = 8192
    long_row: int = 1024
    long_share: float = 0.04
    """Share of the steps, the last ones, in rows of `long_row`, so every position is trained."""
    stories: float = 0.5
    """Share of the tokens that are stories."""
    decay: float = 0.5
    """Share of the steps, the last ones, in which the rates go to zero."""
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    average: float = 0.99
    """Decay of the running average of the weights, used for models taken before the end."""
    seed: int = 1
    evaluate_every: int = 100
    save_every: int = 50


class Cycle:
    """Documents in an endless, freshly shuffled order."""

    def __init__(self, documents: list[list[int]], rng: random.Random) -> None:
        self.documents = documents
        self.rng = rng
        self.order: list[int] = []

    def take(self, tokens: int) -> list[list[int]]:
        """Further documents, of at least `tokens` tokens together."""
        out: list[list[int]] = []
        while tokens > 0:
            if not self.order:
                self.order = list(range(len(self.documents)))
                self.rng.shuffle(self.order)
            out.append(self.documents[self.order.pop()])
            tokens -= len(out[-1])
        return out


def batches(
    stories: list[list[int]], dialogues: list[list[int]], plan: TargetPlan
) -> Iterator[tuple[IntArray, IntArray]]:
    """Training batches, `[batch / row, row]` inputs and labels, in an order fixed by the seed."""
    rng = random.Random(plan.seed)
    tales, talks = Cycle(stories, rng), Cycle(dialogues, rng)
    step, block = 0, 32 * plan.batch
    switch = plan.steps - math.ceil(plan.steps * plan.long_share)
    while True:
        row = plan.row if step < switch else plan.long_row
        some = tales.take(round(block * plan.stories)) + talks.take(
            round(block * (1 - plan.stories))
        )
        inputs, labels = pack(some, row, rng)
        rows = plan.batch // row
        for at in range(0, len(inputs) - rows + 1, rows):
            if step == switch and row == plan.row:
                break
            yield inputs[at : at + rows], labels[at : at + rows]
            step += 1


def device_of(name: str) -> torch.device:
    """The device named, `auto` being a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def mean_loss(model: Llama, rows: tuple[IntArray, IntArray]) -> float:
    """Mean cross-entropy, nats per token, in float32 over packed rows."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with torch.no_grad():
        for at in range(0, len(rows[0]), 8):
            x = torch.from_numpy(rows[0][at : at + 8]).to(device)
            y = torch.from_numpy(rows[1][at : at + 8]).to(device)
            loss = F.cross_entropy(
                model(x).flatten(0, 1), y.flatten(), ignore_index=IGNORE, reduction="sum"
            )
            total, count = total + loss.item(), count + int((y != IGNORE).sum())
    return total / count


def train_target(
    tokenizer: Tokenizer,
    training: Split,
    held_out: Split,
    plan: TargetPlan,
    scratch: Path,
    device: torch.device,
    compiled: bool,
) -> Llama:
    """Train the target, resuming from `scratch/target.pt` where a stopped run left one.

    Writes the held-out curve to `scratch/target_curve.json`.
    """
    torch.manual_seed(plan.seed)
    model = Llama(TARGET).to(device)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimiser = Optimiser(model, plan.steps, plan.decay, plan.muon_lr, plan.adam_lr)
    checkpoint, curve_file = scratch / "target.pt", scratch / "target_curve.json"
    curve: list[dict[str, float]] = []
    first, spent = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average, first, curve, spent = (
            state["average"], state["step"], state["curve"], state["seconds"]
        )  # fmt: skip
        log.info("resuming at step %d", first)
    stories, dialogues = encode(tokenizer, training.stories), encode(tokenizer, training.dialogues)
    log.info(
        "training tokens: %d of stories, %d of dialogues",
        sum(map(len, stories)), sum(map(len, dialogues)),
    )  # fmt: skip
    probe = [
        pack(encode(tokenizer, documents[:96]), plan.row, random.Random(0))
        for documents in (held_out.stories, held_out.dialogues)
    ]

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(x)
        return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=IGNORE)

    fast: Callable[[Tensor, Tensor], Tensor] = (
        torch.compile(loss_of, dynamic=False) if compiled else loss_of
    )
    stream = batches(stories, dialogues, plan)
    for _ in range(first):
        next(stream)
    began = time.monotonic() - spent
    recent: list[float] = []
    for step in tqdm(range(first, plan.steps), initial=first, total=plan.steps, mininterval=5):
        x, y = next(stream)
        loss = fast(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(step)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - plan.average)
        recent.append(loss.item())
        done = step + 1
        if done % plan.evaluate_every == 0 or done == plan.steps:
            point = {
                "step": done,
                "tokens": done * plan.batch,
                "training": sum(recent) / len(recent),
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
                "average": average,
                "step": done,
                "curve": curve,
                "seconds": time.monotonic() - began,
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    return model

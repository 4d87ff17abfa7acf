"""Teaching the target not to go round in circles.

A small model that always takes its most probable token tends to repeat what it has just said.
After training, the target writes stories after openings of the training split; where it repeats
a run of tokens of its own story, the repeating tokens are made less probable (the sequence-level
unlikelihood of Welleck et al. 2019), while the other half of every batch is corpus text as before.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from corpora import IGNORE, Split, encode, pack
from lessons import OwnText, openings, write
from llama import Llama
from muon import Optimiser
from target import TargetPlan, batches, mean_loss
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

log = logging.getLogger("demo")


@dataclass(frozen=True)
class LoopPlan:
    """How the target is kept from repeating itself."""

    rounds: int = 2
    """In each the target writes anew and is then trained."""
    stories: int = 1024
    story_tokens: int = 176
    steps: int = 50
    """Of each round."""
    batch: int = 4096
    """Tokens of own text in a step, and as many of corpus text."""
    row: int = 512
    run: int = 5
    """Tokens in a run that counts as repeated."""
    weight: float = 2.0
    muon_lr: float = 0.003
    adam_lr: float = 0.0004
    seed: int = 4


def repeats(ids: list[int], size: int) -> list[bool]:
    """For each token, whether it ends a run of `size` tokens that stood earlier in the text."""
    seen: set[tuple[int, ...]] = set()
    out = [False] * len(ids)
    for end in range(size, len(ids) + 1):
        run = tuple(ids[end - size : end])
        out[end - 1] = run in seen
        seen.add(run)
    return out


def unloop(
    model: Llama,
    tokenizer: Tokenizer,
    training: Split,
    held_out: Split,
    plan: LoopPlan,
    scratch: Path,
    compiled: bool,
) -> Llama:
    """Train the model so, in place; adds what it did to `scratch/target_curve.json`."""
    device = next(model.parameters()).device
    stories, dialogues = encode(tokenizer, training.stories), encode(tokenizer, training.dialogues)
    probe = [
        pack(encode(tokenizer, documents[:96]), plan.row, random.Random(0))
        for documents in (held_out.stories, held_out.dialogues)
    ]
    corpus = batches(stories, dialogues, TargetPlan(batch=plan.batch, row=plan.row, seed=plan.seed))
    optimiser = Optimiser(model, plan.rounds * plan.steps, 0.9, plan.muon_lr, plan.adam_lr)
    rng = random.Random(plan.seed)

    def loss_of(x: Tensor, y: Tensor, bad: Tensor) -> Tensor:
        """`bad` marks labels to be avoided; where it is false, `y` is learned or `IGNORE`d."""
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(x).float()
        nats = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(x.shape)
        learned = (y != IGNORE) & ~bad
        avoid = -torch.log1p(-torch.exp(-nats).clamp(max=0.999)) * bad
        out: Tensor = (nats * learned).sum() / learned.sum() + plan.weight * avoid.sum() / (
            plan.batch
        )
        return out

    fast: Callable[[Tensor, Tensor, Tensor], Tensor] = (
        torch.compile(loss_of, dynamic=False) if compiled else loss_of
    )
    step, shares, losses = 0, [], []
    for number in range(plan.rounds):
        tokens, flags = [0], [False]
        places: list[list[int]] = []
        own = OwnText(stories=plan.stories, seed=100 * plan.seed + number)
        for group in tqdm(list(openings(stories, own)), desc="own stories", mininterval=5):
            prompts = torch.tensor(group, device=device)
            for ids, _, _ in write(model, prompts, plan.story_tokens, False, 0, 0):
                text = ids.tolist()
                places.append(list(range(len(tokens), len(tokens) + len(text) - 1)))
                tokens += text
                flags += repeats(text, plan.run)
        shares.append(sum(flags) / len(flags))
        log.info("round %d: %.3f of the tokens repeat a run", number + 1, shares[-1])
        flat, bad = torch.tensor(tokens), torch.tensor(flags)
        todo: list[Tensor] = []
        for _ in tqdm(range(plan.steps), desc="training", mininterval=5):
            while len(todo) < plan.batch // plan.row:
                todo += torch.from_numpy(pack(places, plan.row, rng)[0]).unbind()
            at = torch.stack([todo.pop() for _ in range(plan.batch // plan.row)])
            after = at + (at > 0)
            x, y = next(corpus)
            ids = torch.cat((flat[at], torch.from_numpy(x)))
            avoid = torch.cat((bad[after], torch.zeros(x.shape, dtype=torch.bool)))
            own_labels = torch.where(bad[after], flat[after], IGNORE)
            labels = torch.cat((own_labels, torch.from_numpy(y)))
            loss = fast(ids.to(device), labels.to(device), avoid.to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step(step)
            losses.append(loss.item())
            step += 1
        after_round = {
            "stories": mean_loss(model, probe[0]),
            "dialogues": mean_loss(model, probe[1]),
        }
        log.info("round %d: held-out %s, loss %.4f", number + 1, after_round, sum(losses) / step)
    file = scratch / "target_curve.json"
    kept = json.loads(file.read_text(encoding="utf-8"))
    kept["loops"] = {"plan": asdict(plan), "repeating_share": shares, "held_out": after_round}
    file.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return model

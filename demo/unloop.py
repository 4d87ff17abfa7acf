"""Teaching the target not to go round in circles.

A small model that always takes its most probable token tends to repeat what it has just said.
After training, the target writes stories after openings of the training split under a rule: a word
that would complete a run of tokens for the third time is left out of the choice. Then it learns
what it would have written under that rule, beside corpus text as before, so that it comes to write
so by itself. Only its own next best choices take the place of what it leaves out.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from corpora import IGNORE, Split, encode, pack
from lessons import CHOICES, Lessons, OwnText, join, openings
from llama import Cache, Llama
from muon import Optimiser
from speculate import ENDS
from target import TargetPlan, batches, mean_loss
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

log = logging.getLogger("demo")

Row = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class LoopPlan:
    """How the target is kept from repeating itself; sizes in tokens."""

    rounds: int = 6
    """In each the target writes anew and is then trained."""
    stories: int = 1024
    story_tokens: int = 176
    steps: int = 140
    """Of each round."""
    corpus: int = 8192
    own: int = 4096
    """Tokens of corpus text and of own text in a step."""
    row: int = 512
    run: int = 4
    """Tokens in a run."""
    times: int = 2
    """How often a run may stand in a story."""
    own_weight: float = 0.5
    """Weight of the loss on own text, where that on corpus text has 1."""
    turn_weight: float = 8.0
    """Weight of a place at which the rule changed the choice, where others have 1."""
    muon_lr: float = 0.01
    adam_lr: float = 0.0015
    seed: int = 4


class Runs:
    """The runs of `size` tokens of one text, and what would complete one once too often."""

    def __init__(self, size: int, times: int) -> None:
        self.size, self.times = size, times
        self.seen: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self.last: tuple[int, ...] = ()

    def add(self, token: int) -> None:
        """The text goes on with `token`."""
        if len(self.last) == self.size - 1:
            self.seen[self.last][token] += 1
        self.last = (*self.last, token)[1 - self.size :]

    def spent(self) -> list[int]:
        """The tokens that would complete a run that stands `times` times already."""
        after = self.seen.get(self.last, Counter())
        return [token for token, count in after.items() if count >= self.times]


def word_starts(tokenizer: Tokenizer) -> Tensor:
    """Whether each token begins something new, rather than going on with a word, `[entries]`."""
    names = [tokenizer.id_to_token(index) or "" for index in range(tokenizer.get_vocab_size())]
    return torch.tensor([not name[:1].isalpha() or name[0] in "ĠĊ" for name in names])


@torch.inference_mode()
def write_by_rule(
    model: Llama, prompts: Tensor, starts: Tensor, plan: LoopPlan
) -> tuple[list[Row], list[Tensor]]:
    """Greedy stories after prompts `[batch, length]`, with no run more than `times` times.

    For each: tokens `[n]`, the best choices after each of them and their probabilities
    `[n, CHOICES]`, and whether the rule changed the first of these, `[n]`. A word once begun may
    always be ended.
    """
    batch, length = prompts.shape
    device = prompts.device
    cache = Cache(model.shape, batch, length + plan.story_tokens, device)
    runs = [Runs(plan.run, plan.times) for _ in range(batch)]
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    ids, best, mass, turned = [prompts], [], [], []
    for _ in range(plan.story_tokens):
        logits = model.logits(model.hidden(ids[-1], cache))
        first = logits.argmax(-1)
        for row, (past, new) in enumerate(zip(runs, ids[-1].tolist(), strict=True)):
            for token in new:
                past.add(token)
            spent = [token for token in past.spent() if starts[token]]
            logits[row, -1, spent] = -torch.inf
        top = logits.topk(CHOICES)
        best.append(top.indices)
        mass.append(top.values.softmax(-1))
        turned.append(top.indices[..., 0] != first)
        ids.append(top.indices[:, -1, :1])
        ended |= torch.isin(ids[-1][:, 0], torch.tensor(ENDS, device=device))
        if bool(ended.all()):
            break
    text, all_best, all_mass, changed = (
        torch.cat(parts, dim=1).cpu() for parts in (ids, best, mass, turned)
    )
    rows, marks = [], []
    for row in range(batch):
        over = torch.isin(text[row, length:], torch.tensor(ENDS)).nonzero()
        size = length + int(over[0, 0]) if len(over) else text.shape[1] - 1
        rows.append((text[row, :size], all_best[row, :size], all_mass[row, :size]))
        marks.append(changed[row, :size])
    return rows, marks


def own_stories(
    model: Llama, stories: list[list[int]], starts: Tensor, plan: LoopPlan, seed: int
) -> tuple[Lessons, Tensor]:
    """The target's own stories under the rule, and the weight of each place `[n]`."""
    device = next(model.parameters()).device
    rows: list[Row] = []
    marks = [torch.zeros(1, dtype=torch.bool)]
    groups = list(openings(stories, OwnText(stories=plan.stories, seed=seed)))
    for group in tqdm(groups, desc="own stories", mininterval=5):
        some, changed = write_by_rule(model, torch.tensor(group, device=device), starts, plan)
        rows += some
        marks += changed
    weights = 1 + (plan.turn_weight - 1) * torch.cat(marks).float()
    return join(rows), weights


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
    starts = word_starts(tokenizer)
    probe = [
        pack(encode(tokenizer, documents[:96]), plan.row, random.Random(0))
        for documents in (held_out.stories, held_out.dialogues)
    ]
    corpus = batches(
        stories, dialogues, TargetPlan(steps=10**9, batch=plan.corpus, row=plan.row, seed=plan.seed)
    )
    optimiser = Optimiser(model, plan.rounds * plan.steps, 0.9, plan.muon_lr, plan.adam_lr)
    rng = random.Random(plan.seed)

    def loss_of(
        x: Tensor, y: Tensor, own: Tensor, best: Tensor, mass: Tensor, weight: Tensor
    ) -> Tensor:
        """Corpus text `x` with labels `y`; own text with what follows each place of it."""
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(torch.cat((x, own))).float()
        learned = F.cross_entropy(logits[: len(x)].flatten(0, 1), y.flatten(), ignore_index=IGNORE)
        given = -logits[len(x) :].log_softmax(-1).gather(-1, best)
        each = ((mass * given).sum(-1) + given[..., 0]) / 2
        out: Tensor = learned + plan.own_weight * (each * weight).sum() / weight.sum()
        return out

    fast: Callable[..., Tensor] = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    step = 0
    after: list[dict[str, float]] = []
    for number in range(plan.rounds):
        own, weights = own_stories(model, stories, starts, plan, 100 * plan.seed + number)
        share = (weights > 1).float().mean().item()
        log.info("round %d: the rule changes %.4f of the tokens", number + 1, share)
        todo: list[tuple[Tensor, Tensor]] = []
        recent: list[float] = []
        for _ in tqdm(range(plan.steps), desc="training", mininterval=5):
            while len(todo) < plan.own // plan.row:
                at, labels = map(torch.from_numpy, pack(own.places(), plan.row, rng))
                todo += zip(at, weights[at] * (labels != IGNORE), strict=True)
            some = [todo.pop() for _ in range(plan.own // plan.row)]
            at, weight = (torch.stack(parts) for parts in zip(*some, strict=True))
            x, y = map(torch.from_numpy, next(corpus))
            parts = (x, y, own.tokens[at].long(), own.best[at].long(), own.mass[at].float(), weight)
            loss = fast(*(part.to(device) for part in parts))
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step(step)
            recent.append(loss.item())
            step += 1
        after.append(
            {
                "rule_changed": share,
                "training": sum(recent) / len(recent),
                "stories": mean_loss(model, probe[0]),
                "dialogues": mean_loss(model, probe[1]),
            }
        )
        log.info("round %d: %s", number + 1, after[-1])
    file = scratch / "target_curve.json"
    kept = json.loads(file.read_text(encoding="utf-8"))
    kept["loops"] = {"plan": asdict(plan), "rounds": after}
    file.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return model

"""What the draft learns from: text, and what the target would say next at every place of it.

The target continues openings and contexts of the training split. While it does so, its most
probable next tokens are kept for every position, so that the target need not be run again while
the draft is trained. Corpus text is judged by the target in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from corpora import END_OF_TURN_ID
from llama import Cache, Llama
from speculate import ENDS
from torch import Tensor
from tqdm import tqdm

CHOICES = 8
"""Next tokens kept per position, the most probable ones; their probabilities are scaled to 1."""


@dataclass(frozen=True)
class OwnText:
    """How much the target writes for its draft."""

    batch: int = 128
    stories: int = 4096
    story_tokens: int = 160
    dialogues: int = 14336
    dialogue_tokens: int = 80
    judged: int = 4
    """Of the dialogues of the corpus, every so manyth is judged, which is enough of them."""
    seed: int = 3


@dataclass
class Lessons:
    """Documents one behind the other, with what follows each token.

    `tokens` is `[n]`; `best` and `mass`, `[n, CHOICES]`, are the most probable next tokens and
    their probabilities. Entry 0 is no text: it stands for padding. `documents` are ranges.
    """

    tokens: Tensor
    best: Tensor
    mass: Tensor
    documents: list[tuple[int, int]]

    def places(self) -> list[list[int]]:
        """The entries of every document, for packing."""
        return [list(range(start, end)) for start, end in self.documents]


def talk_weights(lessons: Lessons, user: float) -> Tensor:
    """Weight of each entry `[n]` of dialogues: 1 where the assistant speaks next, else `user`.

    The user opens a dialogue, so the assistant's turns follow an odd number of turn ends.
    """
    turns = (lessons.tokens == END_OF_TURN_ID).int().cumsum(0)
    before = torch.zeros_like(turns)
    for start, end in lessons.documents:
        before[start:end] = turns[start - 1]
    return torch.where((turns - before) % 2 == 1, 1.0, user)


def join(rows: list[tuple[Tensor, Tensor, Tensor]]) -> Lessons:
    """Lessons of documents, each given as tokens `[n]`, best and mass `[n, CHOICES]`."""
    parts = [(torch.zeros(1), torch.zeros(1, CHOICES), torch.zeros(1, CHOICES)), *rows]
    tokens = torch.cat([part[0].to(torch.int16) for part in parts])
    best = torch.cat([part[1].to(torch.int16) for part in parts])
    mass = torch.cat([part[2].to(torch.float16) for part in parts])
    at, documents = 1, []
    for row in rows:
        documents.append((at, at + len(row[0])))
        at += len(row[0])
    return Lessons(tokens, best, mass, documents)


@torch.inference_mode()
def judge(target: Llama, documents: list[list[int]], name: str) -> Lessons:
    """Lessons of corpus text: what the target thinks would come next at every place of it.

    In bfloat16 arithmetic, which is a third of the work and near enough for text that the target
    did not write.
    """
    device = next(target.parameters()).device
    order = sorted(range(len(documents)), key=lambda index: len(documents[index]))
    rows: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(documents)
    for at in tqdm(range(0, len(order), 32), desc=name, mininterval=5):
        group = [documents[index][: target.shape.positions] for index in order[at : at + 32]]
        ids = torch.zeros(len(group), max(map(len, group)), dtype=torch.long)
        for row, document in enumerate(group):
            ids[row, : len(document)] = torch.tensor(document)
        with torch.autocast(device.type, torch.bfloat16):
            top = target(ids.to(device)).float().topk(CHOICES)
        best, mass = top.indices.cpu(), top.values.softmax(-1).cpu()
        for row, (index, document) in enumerate(zip(order[at : at + 32], group, strict=True)):
            size = len(document)
            rows[index] = (ids[row, :size], best[row, :size], mass[row, :size])
    return join([row for row in rows if row is not None])


@torch.inference_mode()
def write(
    target: Llama, prompts: Tensor, tokens: int, talk: bool, sampled: int, seed: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Let the target continue prompts `[batch, length]` by up to `tokens` tokens.

    A story is continued greedily after `sampled` tokens drawn at temperature 1, to its end. In a
    talk (prompts ending in `Assistant:`) the target plays both sides: the assistant greedily, the
    user drawn at temperature 1, so that the greedy replies stand in varied contexts.
    """
    device = prompts.device
    rng = torch.Generator(device).manual_seed(seed)
    batch, length = prompts.shape
    cache = Cache(target.shape, batch, length + tokens, device)
    greedy = torch.ones(batch, dtype=torch.bool, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    ends = torch.tensor(ENDS[:1] if talk else ENDS, device=device)
    ids, best, mass = [prompts], [], []
    for index in range(tokens):
        logits = target.logits(target.hidden(ids[-1], cache))
        top = logits.topk(CHOICES)
        best.append(top.indices)
        mass.append(top.values.softmax(-1))
        if not talk:
            greedy[:] = index >= sampled
        drawn = torch.multinomial(logits[:, -1].softmax(-1), 1, generator=rng)
        step = torch.where(greedy[:, None], top.indices[:, -1, :1], drawn)
        if talk:
            greedy ^= step[:, 0] == END_OF_TURN_ID
        ids.append(step)
        ended |= torch.isin(step[:, 0], ends)
        if bool(ended.all()):
            break
    text = torch.cat(ids, dim=1).cpu()
    all_best, all_mass = torch.cat(best, dim=1).cpu(), torch.cat(mass, dim=1).cpu()
    out = []
    for row in range(batch):
        over = torch.isin(text[row, length:], ends.cpu()).nonzero()
        size = length + int(over[0, 0]) if len(over) else text.shape[1] - 1
        out.append((text[row, :size], all_best[row, :size], all_mass[row, :size]))
    return out


def openings(stories: list[list[int]], plan: OwnText) -> Iterator[list[list[int]]]:
    """Batches of the first 3 to 24 tokens of training stories, of equal length in a batch."""
    rng = random.Random(plan.seed)
    for _ in range(plan.stories // plan.batch):
        length = rng.randint(4, 25)
        long_enough = [story for story in stories if len(story) > length]
        yield [story[:length] for story in rng.sample(long_enough, plan.batch)]


def contexts(
    dialogues: list[list[int]], opening: list[int], plan: OwnText
) -> Iterator[list[list[int]]]:
    """Batches of contexts of training dialogues that end in `Assistant:` (`opening`'s tokens).

    A context has at most 300 tokens; those of a batch are equally long.
    """
    rng = random.Random(plan.seed)
    alike: dict[int, list[list[int]]] = {}
    for ids in dialogues:
        places = [
            at + len(opening)
            for at in range(1, min(len(ids), 300) - len(opening))
            if ids[at : at + len(opening)] == opening
        ]
        for place in rng.sample(places, min(3, len(places))):
            alike.setdefault(place, []).append(ids[:place])
    groups: list[list[list[int]]] = []
    for length in sorted(alike):
        rng.shuffle(alike[length])
        starts = range(0, len(alike[length]) - plan.batch // 4, plan.batch)
        groups.extend(alike[length][at : at + plan.batch] for at in starts)
    rng.shuffle(groups)
    made = 0
    for group in groups:
        if made >= plan.dialogues:
            return
        made += len(group)
        yield group


def lessons(
    target: Llama,
    stories: list[list[int]],
    dialogues: list[list[int]],
    opening: list[int],
    plan: OwnText,
    file: Path,
) -> list[Lessons]:
    """Stories and dialogues of the corpus, then the target's own stories and dialogues.

    Kept in `file` so that a resumed run has them.
    """
    if file.is_file():
        return [Lessons(*one) for one in torch.load(file, weights_only=True)]
    device = next(target.parameters()).device
    made: list[list[tuple[Tensor, Tensor, Tensor]]] = [[], []]
    sources = (list(openings(stories, plan)), list(contexts(dialogues, opening, plan)))
    lengths = (plan.story_tokens, plan.dialogue_tokens)
    for kind, (source, tokens) in enumerate(zip(sources, lengths, strict=True)):
        name = ("own stories", "own dialogues")[kind]
        for index, group in enumerate(tqdm(source, desc=name, mininterval=5)):
            prompts = torch.tensor(group, device=device)
            made[kind] += write(target, prompts, tokens, kind == 1, 4 * (index % 2), index)
    every = [
        judge(target, stories, "corpus stories"),
        judge(target, dialogues[:: plan.judged], "corpus dialogues"),
        *map(join, made),
    ]
    torch.save([(one.tokens, one.best, one.mass, one.documents) for one in every], file)
    return every

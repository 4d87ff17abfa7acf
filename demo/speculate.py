"""Greedy generation: of many prompts at once, and speculatively of one prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from corpora import END_OF_TEXT_ID, END_OF_TURN_ID
from llama import Cache, Llama
from torch import Tensor

ENDS = (END_OF_TEXT_ID, END_OF_TURN_ID)


@dataclass
class Count:
    """What a speculative run did, in tokens."""

    drafted: int = 0
    accepted: int = 0
    rounds: int = 0

    def add(self, other: Count) -> None:
        """Add another run's counts to these."""
        self.drafted += other.drafted
        self.accepted += other.accepted
        self.rounds += other.rounds


@torch.inference_mode()
def generate(model: Llama, prompts: Tensor, tokens: int) -> list[list[int]]:
    """Greedy continuations of prompts `[batch, length]`, each ended after its first end token."""
    device = prompts.device
    batch, length = prompts.shape
    cache = Cache(model.shape, batch, length + tokens, device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    ends = torch.tensor(ENDS, device=device)
    out = torch.full((batch, tokens), END_OF_TEXT_ID, device=device)
    step = prompts
    for index in range(tokens):
        step = model.logits(model.hidden(step, cache)[:, -1]).argmax(-1, keepdim=True)
        out[:, index] = step[:, 0]
        ended |= torch.isin(step[:, 0], ends)
        if bool(ended.all()):
            break
    return [cut(row[: index + 1]) for row in out.tolist()]


def cut(ids: list[int], ends: tuple[int, ...] = ENDS) -> list[int]:
    """The ids up to and including the first end token."""
    for index, token in enumerate(ids):
        if token in ends:
            return ids[: index + 1]
    return ids


@torch.inference_mode()
def speculative(
    target: Llama,
    draft: Llama,
    prompt: list[int],
    tokens: int,
    gamma: int,
    ends: tuple[int, ...] = ENDS,
) -> tuple[list[int], Count]:
    """Greedy speculative decoding: the target's own greedy text, and what the draft did for it.

    In every round the draft proposes `gamma` tokens (fewer only after an end token or at the end
    of `tokens`), the target checks them in one pass, keeps the longest agreeing beginning and
    adds one token of its own.
    """
    room = len(prompt) + tokens + gamma + 1
    slow, quick = Cache(target.shape, 1, room), Cache(draft.shape, 1, room)
    text, count = list(prompt), Count()
    limit = len(prompt) + tokens
    while len(text) < limit and (len(text) == len(prompt) or text[-1] not in ends):
        proposal: list[int] = []
        while len(proposal) < min(gamma, limit - len(text)):
            step = torch.tensor([(text + proposal)[quick.length :]])
            proposal.append(int(draft.logits(draft.hidden(step, quick)[0, -1]).argmax()))
            if proposal[-1] in ends:
                break
        step = torch.tensor([(text + proposal)[slow.length :]])
        hidden = target.hidden(step, slow)[0, -len(proposal) - 1 :]
        choices = target.logits(hidden).argmax(-1).tolist()
        kept = 0
        while kept < len(proposal) and proposal[kept] == choices[kept]:
            kept += 1
        count.add(Count(len(proposal), kept, 1))
        text += choices[: kept + 1]
        text = text[: len(prompt)] + cut(text[len(prompt) : limit], ends)
        slow.length = min(slow.length, len(text) - 1)
        quick.length = min(quick.length, len(text) - 1)
    return text[len(prompt) :], count

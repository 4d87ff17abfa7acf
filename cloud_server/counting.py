"""How many guesses stand, counted on the device that made the choices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.lm.staging import staged

_NONE = -2
"""Fills up short drafts; equals no choice, not even that of a row without a number (-1)."""


def count_there(choices: Tensor, guesses: Sequence[Sequence[int]]) -> Tensor:
    """Counts each draft's guesses before the first that is not the choice of its row.

    `choices` `[n]` are the target's: one a guess, and one more after each draft. Returns
    `[2, drafts]`: how many stand, and the choice that follows them, -1 where a draft has a row
    that holds no choice.
    """
    width = 1 + max(map(len, guesses), default=0)
    rows: list[int] = []
    given: list[int] = []
    start = 0
    for draft in guesses:
        beyond = width - len(draft)
        rows += range(start, start + len(draft))
        rows += [start + len(draft)] * beyond
        given += [*draft, *[_NONE] * beyond]
        start += len(draft) + 1
    table = staged([*rows, *given], choices.device).view(2, len(guesses), width)
    chosen = choices[table[0]]
    accepted = (chosen == table[1]).cumprod(1).sum(1)
    following = chosen.gather(1, accepted[:, None])[:, 0]
    following = torch.where(chosen.amin(1) < 0, -1, following)
    return torch.stack((accepted, following))

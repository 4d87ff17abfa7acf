"""How guesses are made and let pass, beyond how many: values, without a model."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from common.types import DraftDistribution


class Doubt(enum.Enum):
    """Says by what a gate tells how sure the draft model is of a guess.

    All are of the model's own distribution: temperature 1, untruncated, without penalties.
    """

    ENTROPY = "entropy"  # of the distribution, nats: sure up to the threshold
    MARGIN = "margin"  # the likeliest's probability over the second's: sure from the threshold on
    LOGPROB = "logprob"  # natural log-probability of the guess: sure from the threshold on


@dataclass(frozen=True, slots=True)
class Gate:
    """Lets a block pass without asking the cloud when the draft model is sure of all of it: LOSSY.

    `threshold` is in nats, for MARGIN a probability.
    """

    doubt: Doubt
    threshold: float


@dataclass(frozen=True, slots=True)
class DraftPolicy:
    """States how guesses are made.

    `candidates` None: with the target's own noise, so that they agree as often as the two
    distributions allow; else each is drawn from its so many likeliest, and says so. A guess to
    which the model gives less than `min_confidence` (of the distribution a gate sees) is the last
    of its draft. It is sent all the same: what was drawn must not decide whether it is judged.
    """

    candidates: int | None = None
    min_confidence: float = 0.0
    gate: Gate | None = None


PLAIN = DraftPolicy()
"""Guesses coupled with the target, all of them sent."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """Is one draft: guesses, what each was drawn from if drawn, and if the gate lets all pass.

    `interrupted`: more would have followed, had there been time. `num_read_tokens`: of the history,
    so many had to go through the model first.
    """

    token_ids: tuple[int, ...] = ()
    distributions: tuple[DraftDistribution, ...] = ()
    sure: bool = False
    interrupted: bool = False
    num_read_tokens: int = 0


def never() -> bool:
    """Interrupts no draft."""
    return False

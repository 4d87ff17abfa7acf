"""How many tokens to draft in the next round (the draft length γ)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class DraftLength(Protocol):
    """Decides the draft length, round by round."""

    def next(self, remaining: int) -> int:
        """Returns how many tokens to draft when the output may have `remaining` more."""
        ...


@dataclass(frozen=True, slots=True)
class FixedDraftLength:
    """Drafts `length` tokens a round, or as many as can count.

    `max_draft_tokens` is what the server takes in one request. The target adds a
    token of its own to every round, so of `remaining` tokens one is never drafted;
    `remaining` ends with the context too (see Stopper.remaining).
    """

    length: int
    max_draft_tokens: int

    def next(self, remaining: int) -> int:
        """Returns the draft length of the next round, at least 0."""
        return max(0, min(self.length, self.max_draft_tokens, remaining - 1))

"""How many tokens to draft in the next draft (the draft length γ), and how far ahead to send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge_client.policy import Drafted
from edge_client.steps import Step


class Pace(Protocol):
    """Decides round by round, for one text after another."""

    @property
    def ahead(self) -> int:
        """How many drafts may be sent ahead of the oldest verdict awaited; 0: stop and wait."""
        ...

    def begin(self) -> None:
        """Takes note that the next round is the first of a text."""
        ...

    def next(self, remaining: int) -> int:
        """Returns how many tokens to draft when the output may have `remaining` more."""
        ...

    def drafted(self, drafted: Drafted, spent_ns: int) -> None:
        """Takes note of how long guesses took."""
        ...

    def learn(self, step: Step) -> None:
        """Takes note of what a verdict said and how long everything took."""
        ...


@dataclass(frozen=True, slots=True)
class FixedPace:
    """Drafts `length` tokens a round, or as many as can count, and always as far ahead.

    `max_draft_tokens` is what the server takes in one request. The target adds a
    token of its own to every round, so of `remaining` tokens one is never drafted;
    `remaining` ends with the context too (see Stopper.remaining).
    """

    length: int
    max_draft_tokens: int
    ahead: int = 0

    def begin(self) -> None:
        """Is the same for each text."""

    def next(self, remaining: int) -> int:
        """Returns the draft length of the next round, at least 0."""
        return max(0, min(self.length, self.max_draft_tokens, remaining - 1))

    def drafted(self, drafted: Drafted, spent_ns: int) -> None:
        """Learns nothing."""

    def learn(self, step: Step) -> None:
        """Learns nothing."""

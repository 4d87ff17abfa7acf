"""What one step of the engine is asked to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """Asks for a run of tokens of one session.

    The tokens stand at [position, position + n). The session must hold at least `position`
    tokens; whatever it holds beyond is dropped first. Logits are wanted for the last `num_logits`
    of the tokens, none for a chunk in the middle of a prompt.
    """

    session: int
    token_ids: Sequence[int]
    position: int
    num_logits: int

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.position + len(self.token_ids)

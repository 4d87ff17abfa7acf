"""THE stop-and-count rule. Every arm, on both ends, ends its output here and nowhere else.

Tokens are taken one by one, in order, whatever blocks they arrive in:

1. a token is counted, always, so the one that ends the output is part of it;
2. an end-of-sequence token ends it (EOS);
3. a token whose text completes a stop string ends it (STOP_STRING): the token
   counts, the text is cut before the stop string;
4. the max_new_tokens-th token ends it (MAX_NEW_TOKENS);
5. the token that fills the context ends it (CONTEXT_LENGTH).

The first that holds, in this order, is the reason. Tokens after it were never output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.types import FinishReason, StopParams


@dataclass(frozen=True, slots=True)
class Kept:
    """Is the part of a block that belongs to the output, and the text now certain."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None


class Stopper:
    """Applies the rule to one generation.

    `model_eos` are the target's end-of-sequence tokens, used unless `stop` names
    its own; `room` is how many tokens the context has left after the prompt;
    `detokenize` gives each token's text, and is needed only for stop strings or
    when the text itself is wanted. Text that could turn out to begin a stop
    string is held back until that is decided.
    """

    def __init__(
        self,
        stop: StopParams,
        *,
        model_eos: Sequence[int],
        room: int,
        detokenize: Callable[[int], str] | None = None,
    ) -> None:
        if stop.stop_strings and detokenize is None:
            raise ValueError("stop strings need a detokenizer")
        eos = model_eos if stop.eos_token_ids is None else stop.eos_token_ids
        self.eos_token_ids = frozenset(eos)
        self._stop_strings = stop.stop_strings
        self._max_new_tokens = stop.max_new_tokens
        self._room = room
        self._detokenize = detokenize
        self._held = ""
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    @property
    def remaining(self) -> int:
        """How many more tokens the output may have: 0 once it has ended."""
        if self.finish_reason is not None:
            return 0
        return min(self._max_new_tokens, self._room) - self.num_tokens

    def push(self, token_ids: Sequence[int]) -> Kept:
        """Takes the next block and returns the part that is output."""
        text: list[str] = []
        kept = 0
        for token_id in token_ids:
            if self.finish_reason is not None:
                break
            kept += 1
            text.append(self._take(token_id))
        return Kept(tuple(token_ids[:kept]), "".join(text), self.finish_reason)

    def _take(self, token_id: int) -> str:
        self.num_tokens += 1
        if self._detokenize is not None:
            self._held += self._detokenize(token_id)
        if token_id in self.eos_token_ids:
            self.finish_reason = FinishReason.EOS
        elif (start := self._stop_string_at()) is not None:
            self.finish_reason = FinishReason.STOP_STRING
            self._held = self._held[:start]
        elif self.num_tokens >= self._max_new_tokens:
            self.finish_reason = FinishReason.MAX_NEW_TOKENS
        elif self.num_tokens >= self._room:
            self.finish_reason = FinishReason.CONTEXT_LENGTH
        keep_back = self._undecided() if self.finish_reason is None else 0
        certain, self._held = (
            self._held[: len(self._held) - keep_back],
            self._held[len(self._held) - keep_back :],
        )
        return certain

    def _stop_string_at(self) -> int | None:
        """Returns where the earliest stop string begins in the held text."""
        found = [at for s in self._stop_strings if (at := self._held.find(s)) >= 0]
        return min(found, default=None)

    def _undecided(self) -> int:
        """Returns the length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stop_strings), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(s.startswith(self._held[-length:]) for s in self._stop_strings):
                return length
        return 0

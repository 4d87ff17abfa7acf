"""The draft model and its place in a text: guesses that follow a history."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import compress, count
from operator import ne

import torch

from common import PROTOCOL_VERSION
from common.lm.loading import load
from common.lm.precision import apply_policy, dtype_name
from common.lm.runner import LanguageModel, Segment
from common.lm.sampling import choose
from common.lm.threads import set_threads
from common.types import Peer, SamplingParams

PREFILL_CHUNK = 512
"""Tokens one forward takes in of a long history."""


class EdgeModel(LanguageModel):
    """Is the engine with one session, in float32 on the CPU unless told otherwise."""

    def __init__(
        self,
        path_or_id: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Applies the precision policy of this process and loads the model.

        `threads` is how many torch uses in this process (see common/lm/threads.py).
        Raises ModelError.
        """
        self.precision = apply_policy(dtype)
        loaded = load(path_or_id, dtype=dtype, device=device)
        set_threads(threads, loaded)
        super().__init__(loaded, cache_tokens=loaded.context_length)

    @property
    def peer(self) -> Peer:
        """What this end says of itself in the handshake."""
        return Peer(
            protocol_version=PROTOCOL_VERSION,
            tokenizer_fingerprint=self.loaded.tokenizer_fingerprint,
            vocab_size=self.loaded.vocab_size,
            dtype=dtype_name(self.dtype),
        )


class Drafter:
    """Guesses how a history goes on.

    The cache follows the history it is given: what the two have in common stays,
    the rest is rolled back, what is missing is computed. So it cannot go stale,
    whatever was accepted, rejected or skipped in between; the last guess of a
    block, which never went through the model, is simply missing.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._session = model.cache.allocate()
        self._cached: list[int] = []  # the tokens whose keys and values the session holds

    @property
    def context_length(self) -> int:
        """Tokens that history and guesses may come to."""
        return self.model.loaded.context_length

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The draft model's own end-of-sequence tokens."""
        return self.model.loaded.eos_token_ids

    def reset(self) -> None:
        """Forgets everything, so that the next history is computed from its start."""
        self.model.cache.truncate(self._session, 0)
        self._cached.clear()

    def draft(
        self,
        history: Sequence[int],
        count: int,
        sampling: SamplingParams,
        ends: Collection[int] = (),
    ) -> tuple[int, ...]:
        """Guesses the `count` tokens that follow `history`.

        Fewer where the context ends, and none after one of `ends`: no output goes on there.
        The choice uses the target's noise for the same position, so equal models guess
        right at any temperature. `history` has at least one token.
        """
        end = min(len(history) + count, self.context_length)
        guesses: list[int] = []
        unseen = list(history)
        for position in range(len(history), end):
            logits = self._extend(unseen) if guesses else self._follow(unseen)
            guesses += choose(logits, [position], [sampling])
            if guesses[-1] in ends:
                break
            unseen = guesses[-1:]
        return tuple(guesses)

    def _follow(self, history: list[int]) -> torch.Tensor:
        """Brings the cache in step and returns the logits `[1, vocab]` after the last token."""
        common = next(
            compress(count(), map(ne, self._cached, history)),
            min(len(self._cached), len(history)),
        )
        # The last token goes through the model in any case: its logits are wanted.
        common = min(common, len(history) - 1)
        self.model.cache.truncate(self._session, common)
        del self._cached[common:]
        for start in range(common, len(history), PREFILL_CHUNK):
            logits = self._extend(history[start : start + PREFILL_CHUNK])
        return logits

    def _extend(self, token_ids: list[int]) -> torch.Tensor:
        """Appends tokens to the cache and returns the logits `[1, vocab]` after the last."""
        logits = self.model.forward([Segment(self._session, token_ids, len(self._cached), 1)])
        self._cached += token_ids
        return logits

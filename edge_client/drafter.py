"""The draft model and its place in a text: guesses that follow a history."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import compress, count
from operator import ne

import torch

from common import PROTOCOL_VERSION
from common.config import Config
from common.lm.execution import CompileMode
from common.lm.loading import load
from common.lm.opinion import opinion_steps
from common.lm.precision import apply_policy, dtype_name
from common.lm.runner import LanguageModel, Segment
from common.lm.sampling import Context
from common.lm.threads import set_threads
from common.types import DraftDistribution, Opinion, Peer, SamplingParams
from edge_client.guess import confidence, coupled_guess, drawn_guess, is_sure
from edge_client.policy import PLAIN, Drafted, DraftPolicy, never

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
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        compile_mode: CompileMode = "off",
    ) -> None:
        """Applies the precision policy of this process and loads the model.

        `threads` is how many torch uses in this process (see common/lm/threads.py).
        Raises ModelError.
        """
        self.precision = apply_policy(dtype)
        loaded = load(
            path_or_id,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        set_threads(threads, loaded)
        super().__init__(loaded, loaded.context_length, compile_mode)

    @classmethod
    def configured(cls, path_or_id: str, config: Config) -> EdgeModel:
        """Loads the draft model as configured."""
        edge = config.edge
        model = cls(
            path_or_id,
            dtype=edge.dtype,
            threads=edge.threads,
            trust_remote_code=edge.trust_remote_code,
            allow_pickle=edge.allow_pickle,
            compile_mode=config.engine.compile,
        )
        if config.engine.compile == "on":
            model.compile()
        return model

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
        *,
        prompt_length: int,
        ends: Collection[int] = (),
        policy: DraftPolicy = PLAIN,
        interrupted: Callable[[], bool] = never,
        behind: bool = False,
    ) -> Drafted:
        """Guesses at most `count` tokens that follow `history`, a prompt first.

        Fewer where the context ends or the policy says so, and none after one of `ends`:
        no output goes on there. `interrupted` is asked before each token but the first, and
        ends the draft. `behind` says that the first guess stands for the bonus token of a draft in
        flight: doubt does not end there, or it would matter when that one is answered. `history`
        has at least one token.
        """
        end = min(len(history) + count, self.context_length)
        tokens = list(history)
        distributions: list[DraftDistribution] = []
        sure = policy.gate is not None
        cut = False
        num_read = 0
        while len(tokens) < end and not cut:
            if len(tokens) > len(history):
                logits = self._extend(tokens[-1:])
            else:
                logits, num_read = self._follow(tokens)
            context = Context(tokens, len(tokens), prompt_length)
            if policy.candidates is None or sampling.is_greedy:
                guess = coupled_guess(logits, context, sampling)
            else:
                guess, origin = drawn_guess(logits, context, sampling, policy.candidates)
                distributions.append(origin)
            tokens.append(guess)
            sure = sure and policy.gate is not None and is_sure(policy.gate, logits, guess)
            if guess in ends:
                break
            is_bonus = behind and len(tokens) == len(history) + 1
            if (
                policy.min_confidence
                and not is_bonus
                and confidence(logits, guess) < policy.min_confidence
            ):
                break
            cut = len(tokens) < end and interrupted()
        guesses = tuple(tokens[len(history) :])
        return Drafted(guesses, tuple(distributions), sure and bool(guesses), cut, num_read)

    def opinion(self, context: Sequence[int], text: Sequence[int]) -> Opinion:
        """Says what the draft model thinks of a text after `context`, and forgets everything."""
        self.reset()
        steps = opinion_steps(self.model, self._session, context, text, PREFILL_CHUNK)
        while True:
            try:
                next(steps)
            except StopIteration as ended:
                opinion: Opinion = ended.value[1]
                return opinion

    def _follow(self, history: list[int]) -> tuple[torch.Tensor, int]:
        """Brings the cache in step; returns the logits `[1, vocab]` after the last token.

        And how many tokens went through the model for it.
        """
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
        return logits, len(history) - common

    def _extend(self, token_ids: list[int]) -> torch.Tensor:
        """Appends tokens to the cache and returns the logits `[1, vocab]` after the last."""
        logits = self.model.forward([Segment(self._session, token_ids, len(self._cached), 1)])
        self._cached += token_ids
        return logits

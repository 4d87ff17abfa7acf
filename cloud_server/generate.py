"""The `cloud` arm: stock Hugging Face generate, streamed token by token.

It runs the unmodified module over the same weights, one request at a time, on a
thread of its own; only the end of the text (common/stopping.py) and the noise
of a sampled choice (cloud_server/processors.py) are ours, through the
extension points generate offers for both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cloud_server.jobs import Clock
from cloud_server.processors import stock_processors
from common.stopping import Stopper
from common.types import GeneratedTokens, SamplingParams, StepTiming


@dataclass(slots=True)
class StockRequest:
    """Is one generation: where its tokens go, and whether anybody still wants them."""

    tokens: tuple[int, ...]
    prompt_length: int
    sampling: SamplingParams
    stopper: Stopper
    arrived_ns: int
    tell: Callable[[GeneratedTokens], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class StockGenerator:
    """Runs stock generate; `run` blocks, and is called on one worker thread."""

    def __init__(self, model: PreTrainedModel, vocab_size: int, clock: Clock) -> None:
        self._model = model
        # What a checkpoint's generation_config.json asks for (penalties, temperature, its own
        # end tokens) would otherwise be merged into ours.
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        self._logits_width: int = model.get_output_embeddings().weight.shape[0]  # type: ignore[no-untyped-call]
        self._vocab_size = vocab_size
        self._clock = clock
        self.step_started_ns: int | None = None
        """When the step now running began; None when nothing runs. Read by any thread."""
        self.steps = 0
        """How many steps were begun, one a token."""

    def run(self, request: StockRequest) -> None:
        """Generates to the end of the text or until cancelled."""
        if request.cancelled.is_set():
            return
        try:
            self._generate(request)
        finally:
            self.step_started_ns = None

    @torch.inference_mode()
    def _generate(self, request: StockRequest) -> None:
        self._begin_step(self._clock())
        input_ids = torch.tensor([request.tokens], device=self._model.device)
        follower = _Follower(request, self._clock, self._begin_step)
        self._model.generate(  # type: ignore[operator]
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False,
                use_cache=True,
                max_new_tokens=request.stopper.remaining,
                pad_token_id=0,
            ),
            logits_processor=stock_processors(
                request.sampling,
                prompt_length=request.prompt_length,
                vocab_size=self._vocab_size,
                logits_width=self._logits_width,
            ),
            stopping_criteria=StoppingCriteriaList([follower]),
        )

    def _begin_step(self, now: int) -> None:
        self.steps += 1
        self.step_started_ns = now


class _Follower(StoppingCriteria):
    """Sees each token as generate makes it: applies the stop rule, and passes the token on."""

    def __init__(
        self, request: StockRequest, clock: Clock, begin_step: Callable[[int], None]
    ) -> None:
        self._request = request
        self._clock = clock
        self._begin_step = begin_step
        self._step_tokens = len(request.tokens)
        self._started_ns = clock()
        self._last_ns = request.arrived_ns

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        """Returns bool `[batch]`: whether the text, or the client's interest in it, has ended."""
        now = self._clock()
        request = self._request
        kept = request.stopper.push([int(input_ids[0, -1])])
        computed_ns = now - self._started_ns
        timing = StepTiming(
            queued_ns=self._started_ns - self._last_ns,
            computed_ns=computed_ns,
            total_ns=now - self._last_ns,
            busy_ns=computed_ns,
            step_sessions=1,
            step_tokens=self._step_tokens,
            forward_passes=1,
        )
        self._started_ns = self._last_ns = now
        self._begin_step(now)
        self._step_tokens = 1
        request.tell(GeneratedTokens(kept.token_ids, kept.finish_reason, timing))
        over = kept.finish_reason is not None or request.cancelled.is_set()
        return torch.full((input_ids.shape[0],), over, device=input_ids.device)

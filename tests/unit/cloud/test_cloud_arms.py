"""What keeps the two cloud arms honest: a whole clock, and no settings but ours."""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from types import SimpleNamespace
from typing import Any, cast

from cloud_server.acceptance import Judged
from cloud_server.admission import Guest
from cloud_server.generate import StockGenerator, StockRequest
from cloud_server.jobs import Job
from cloud_server.live import LiveSession
from cloud_server.metrics import Metrics
from cloud_server.sessions import TargetSession
from common.lm.compatibility import stock_logits
from common.stopping import Stopper
from common.types import (
    GeneratedTokens,
    OpenSession,
    Peer,
    SamplingParams,
    StepTiming,
    StopParams,
)
from tests.models import loaded, tiny

PROMPT = (5, 6, 7, 5, 6, 7)


def test_each_streamed_piece_begins_when_the_one_before_was_done() -> None:
    """Otherwise time of the server's would count as network."""

    async def second_job() -> tuple[Job, Job]:
        submitted: list[Job] = []
        ticks = itertools.count(0, 1000)
        host = SimpleNamespace(
            clock=lambda: next(ticks),
            engine=SimpleNamespace(submit=submitted.append),
            metrics=Metrics(),
        )
        opening = OpenSession(Peer("", "", 0, ""), PROMPT, SamplingParams(), StopParams(9))
        state = TargetSession(
            opening, context_length=99, model_eos=(), detokenizer=lambda: lambda token: ""
        )
        pieces: Any = LiveSession(cast(Any, host), state, 0, Guest("here", 0), None).decode()
        waiting = asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(0)
        (first,) = submitted
        following = first.then(Judged(0, 8), StepTiming(total_ns=77))
        assert (await waiting).token_ids == (8,)
        await pieces.aclose()
        assert following is not None
        return first, following

    first, following = asyncio.run(second_job())
    assert following.arrived_ns == first.arrived_ns + 77


def test_the_cloud_arm_says_since_when_its_step_runs() -> None:
    ticks = itertools.count(1000, 1000)
    described = loaded(copy.deepcopy(tiny("llama")))
    generator = StockGenerator(described.model, described.vocab_size, lambda: next(ticks))
    seen: list[tuple[int, int | None]] = []

    def tell(_: GeneratedTokens) -> None:
        seen.append((generator.steps, generator.step_started_ns))

    stopper = Stopper(StopParams(3, ()), model_eos=(), room=99)
    generator.run(StockRequest(PROMPT, len(PROMPT), SamplingParams(), stopper, 0, tell))
    assert [steps for steps, _ in seen] == [2, 3, 4]  # each token is told in the next one's step
    started = [at for _, at in seen]
    assert None not in started
    assert len(set(started)) == 3
    assert generator.step_started_ns is None


def test_a_checkpoints_generation_config_does_not_reach_the_cloud_arm() -> None:
    model = copy.deepcopy(tiny("llama"))
    config = model.generation_config
    assert config is not None
    config.repetition_penalty = 50.0
    config.suppress_tokens = list(range(100))
    described = loaded(model)
    made: list[GeneratedTokens] = []
    stopper = Stopper(StopParams(8, ()), model_eos=(), room=99)
    generator = StockGenerator(model, described.vocab_size, time.monotonic_ns)
    generator.run(StockRequest(PROMPT, len(PROMPT), SamplingParams(), stopper, 0, made.append))
    text = list(PROMPT)
    for _ in range(8):
        text.append(int(stock_logits(described, text)[-1].argmax()))
    assert [token for piece in made for token in piece.token_ids] == text[len(PROMPT) :]

"""The arms that use the target, in one process: all is real but the wire."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace

import torch

from cloud_server.admission import Admission
from cloud_server.assisted import assisting
from cloud_server.description import describe
from cloud_server.drafting import Drafting
from cloud_server.engine import Engine
from cloud_server.generate import StockGenerator, StockRequest
from cloud_server.host import Host
from cloud_server.metrics import Metrics
from cloud_server.run_ahead import RunAhead
from common.config import CloudSection
from common.lm import noise, precision
from common.lm.runner import LanguageModel
from common.lm.sampling import Context, penalise, truncate
from common.types import AheadTokens, Draft, GeneratedTokens, OpenSession
from edge_client.drafter import Drafter
from edge_client.session import ClientSession


@dataclass(frozen=True)
class Run:
    opening: OpenSession
    draft_length: int
    ahead: int = 0
    run_ahead: int = 0


@contextmanager
def hosting(
    target: LanguageModel, limits: CloudSection, draft: LanguageModel | None = None
) -> Iterator[Host]:
    metrics = Metrics()
    drafting = None
    if draft is not None:
        drafting = Drafting(
            draft,
            token_budget=limits.token_budget,
            prefill_chunk=limits.prefill_chunk,
            clock=time.monotonic_ns,
            on_forward=metrics.observe_draft_step,
        )
    engine = Engine(
        target,
        token_budget=limits.token_budget,
        prefill_chunk=limits.prefill_chunk,
        clock=time.monotonic_ns,
        on_step=metrics.observe_step,
        drafting=drafting,
    )
    engine.start()
    info = describe(target, limits, precision.apply_policy(), draft)
    try:
        yield Host(
            engine=engine,
            loaded=target.loaded,
            info=info,
            execution=target.execution,
            limits=limits,
            metrics=metrics,
            clock=time.monotonic_ns,
            admission=Admission(limits),
            drafting=drafting,
        )
    finally:
        engine.stop()


async def cloud_optimized(host: Host, run: Run) -> list[int]:
    async with host.open(run.opening, "here") as live:
        return [token async for piece in live.decode() for token in piece.token_ids]


async def cloud_assisted(host: Host, run: Run) -> list[GeneratedTokens]:
    """Returns the pieces: how they were made is of interest beside what they hold."""
    async with (
        host.open(run.opening, "here") as live,
        assisting(live, host.drafts(), run.draft_length) as pieces,
    ):
        return [piece async for piece in pieces]


async def run_ahead(host: Host, run: Run, drafter: Drafter) -> list[int]:
    """Drafts while the target writes on; its tokens come between the verdicts."""
    opening = replace(run.opening, run_ahead=run.run_ahead)
    session = ClientSession(opening.prompt_token_ids, run_ahead=run.run_ahead)
    drafts: asyncio.Queue[tuple[Draft, int]] = asyncio.Queue()

    async def sent() -> AsyncIterator[tuple[Draft, int]]:
        while True:
            yield await drafts.get()

    async with host.open(opening, "here") as live:
        live.prefill()
        async with aclosing(RunAhead(live, run.run_ahead).answers(sent())) as answers:
            while not session.finished:
                while session.num_standing <= run.ahead:
                    behind = session.num_standing > 0
                    lacking = run.draft_length + behind - session.num_unsent_tokens
                    drafted = drafter.draft(
                        session.tokens,
                        max(0, lacking),
                        opening.sampling,
                        prompt_length=session.prompt_length,
                    )
                    session.guess(drafted.token_ids)
                    if behind and not session.num_unsent_tokens:
                        break
                    drafts.put_nowait((session.next_draft(), host.clock()))
                told = await anext(answers)
                if isinstance(told, AheadTokens):
                    session.receive_ahead(told)
                else:
                    session.apply(told)
    return list(session.history[len(opening.prompt_token_ids) :])


async def speculative(host: Host, run: Run, drafter: Drafter) -> list[int]:
    if run.run_ahead:
        return await run_ahead(host, run, drafter)
    session = ClientSession(run.opening.prompt_token_ids)
    async with host.open(run.opening, "here") as live:
        live.prefill()
        sent: deque[Draft] = deque()
        while True:
            while session.num_standing <= run.ahead:
                behind = session.num_standing > 0
                drafted = drafter.draft(
                    session.tokens,
                    run.draft_length + behind,
                    run.opening.sampling,
                    prompt_length=session.prompt_length,
                )
                if behind and not drafted.token_ids:  # the draft model's context has ended
                    break
                session.guess(drafted.token_ids)
                sent.append(session.next_draft())
            settled = session.apply(await live.verify(sent.popleft(), host.clock()))
            if settled.finish_reason is not None:
                return list(session.history[len(run.opening.prompt_token_ids) :])


def cloud(host: Host, stock: StockGenerator, run: Run) -> list[int]:
    made: list[GeneratedTokens] = []
    state = host.new_state(run.opening)
    prompt = run.opening.prompt_token_ids
    stock.run(StockRequest(prompt, len(prompt), state.sampling, state.stopper, 0, made.append))
    return [token for piece in made for token in piece.token_ids]


async def batch(host: Host, runs: list[Run], drafter: list[Drafter]) -> list[list[int]]:
    """Runs everything at once, so that decodes, verifies and prompts share forwards."""
    return await asyncio.gather(
        *(cloud_optimized(host, run) for run in runs),
        *(speculative(host, run, d) for run, d in zip(runs, drafter, strict=True)),
    )


@dataclass(frozen=True)
class Parting:
    """Is where two texts part: the index in the output, and how far apart the two scores are."""

    index: int
    gap: float


@torch.inference_mode()
def parting(host: Host, run: Run, expected: Sequence[int], other: Sequence[int]) -> Parting:
    """Finds where two texts part; the scores are the stock module's, noise included."""
    at = next(i for i, (a, b) in enumerate(zip(expected, other, strict=False)) if a != b)
    prompt, sampling = run.opening.prompt_token_ids, run.opening.sampling
    tokens = [*prompt, *expected[:at]]
    context = Context(tokens, len(tokens), len(prompt))
    scores = host.loaded.model(torch.tensor([tokens])).logits[:, -1]
    scores = penalise(scores, [context], [sampling])
    if sampling.temperature:
        scores = truncate(scores, [sampling])
        blocks = torch.arange(-(-scores.shape[1] // 4))
        words = noise._words(
            [sampling.seed], [len(tokens)], torch.zeros_like(blocks), blocks, noise.Stream.CHOICE
        )
        scores = scores + noise._rough_gumbel(words).flatten()[: scores.shape[1]]
    return Parting(at, abs(float(scores[0, expected[at]] - scores[0, other[at]])))

"""The real loop, thousands of times side by side, over models that are tables.

Nothing of the loop is simulated: every seed has its own `speculate`, ClientSession, Drafter,
Stopper and TargetSession, and all share one Engine. Each runs in a greenlet that stops where it
needs a token chosen or a verdict; when all have stopped, one call answers all choices, and one step
of the engine all drafts. That is how a server batches; here it turns milliseconds a token into
microseconds, so that a hundred thousand samples are a matter of seconds.
"""

from __future__ import annotations

import gc
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from cloud_server.acceptance import Judged
from cloud_server.engine import Engine
from cloud_server.jobs import Job
from cloud_server.sessions import TargetSession
from common.errors import OutriderError
from common.lm.runner import LanguageModel, Segment
from common.lm.sampling import Context, choose
from common.stopping import Stopper
from common.types import (
    EXACT,
    Draft,
    OpenSession,
    Peer,
    SamplingParams,
    StopParams,
    Verdict,
    VerificationParams,
)
from edge_client import guess
from edge_client.drafter import Drafter
from edge_client.link import Answer, Opened
from edge_client.loop import speculate
from edge_client.policy import PLAIN, Drafted, DraftPolicy, never
from edge_client.session import ClientSession
from edge_client.steps import Step
from tests.enumeration import EOS, LENGTH, PROMPT, Floats, Output, row_of

SIDE_BY_SIDE = 1024
AT_ONE = SamplingParams(temperature=1.0)
CONTEXT = 32
PEER = Peer("", "", 0, "")


class TokenCache:
    """Holds the tokens of each session, where a model holds keys and values."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []

    @property
    def sessions(self) -> range:
        return range(len(self.tokens))

    def allocate(self, tokens: int = 1) -> int:
        self.tokens.append([])
        return len(self.tokens) - 1

    def length(self, session: int) -> int:
        return len(self.tokens[session])

    def truncate(self, session: int, length: int) -> None:
        del self.tokens[session][length:]

    def adopt(self, session: int, token_ids: Sequence[int], count: int) -> int:
        """Shares nothing: what a session runs is then its own draws' alone."""
        return self.length(session)

    def publish(self, session: int, token_ids: Sequence[int], count: int) -> None:
        """Shares nothing."""


class TableModel:
    """Is a LanguageModel whose logits stand in a table (see tests/enumeration.py)."""

    def __init__(self, table: Floats) -> None:
        self._table = torch.from_numpy(table).float()
        self.cache = TokenCache()
        self.loaded = SimpleNamespace(context_length=CONTEXT, eos_token_ids=(EOS,))

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Returns the rows `[sum(num_logits), vocab]` after the last tokens of each segment."""
        rows: list[int] = []
        vocab_size = self._table.shape[1]
        for segment in segments:
            tokens = self.cache.tokens[segment.session]
            assert segment.position <= len(tokens)
            tokens[segment.position :] = segment.token_ids
            ends = range(len(tokens) - segment.num_logits + 1, len(tokens) + 1)
            rows += [row_of(tokens[len(PROMPT) : end], vocab_size) for end in ends]
        if len(rows) == 1:
            return self._table[rows[0] : rows[0] + 1]  # a view, in a quarter of the time
        return self._table[rows]


Rows = Callable[..., list[Any]]


class Gathered:
    """Answers one-row calls of many greenlets by one call of a function over rows."""

    def __init__(self, function: Rows) -> None:
        self._function = function
        self._waiting: dict[tuple[Any, ...], list[tuple[greenlet, Any]]] = defaultdict(list)

    def __call__(
        self,
        logits: Tensor,
        contexts: Sequence[Context],
        params: Sequence[SamplingParams],
        *same: Any,
    ) -> list[Any]:
        row = (logits, contexts[0], params[0])
        self._waiting[same].append((getcurrent(), row))
        return [_wait()]

    def answer(self) -> bool:
        """Answers all that wait; returns whether any did."""
        waiting, self._waiting = self._waiting, defaultdict(list)
        for same, calls in waiting.items():
            logits, contexts, params = zip(*(row for _, row in calls), strict=True)
            answers = self._function(torch.cat(logits), contexts, params, *same)
            for (caller, _), answer in zip(calls, answers, strict=True):
                caller.switch(answer)
        return bool(waiting)


class Stream:
    """Is the server of one session: what LiveSession.verify does, waiting in a greenlet."""

    def __init__(self, server: Server, state: TargetSession) -> None:
        self._server = server
        self._state = state
        self._handle = server.model.cache.allocate()
        self._drafts: deque[Draft] = deque()
        self._asked = 0

    def send(self, draft: Draft) -> None:
        self._drafts.append(draft)
        if len(self._drafts) == 1:
            self._begin()

    def _begin(self) -> None:
        """Has the oldest draft judged, if it still stands."""
        self._admitted = admitted = self._state.admit(self._drafts[0])
        if isinstance(admitted, Verdict):
            return
        caller = getcurrent()
        job = Job(
            session=self._handle,
            tokens=[*admitted.context, *admitted.guesses],
            valid=admitted.valid,
            check=admitted,
            arrived_ns=0,
            then=lambda judged, _: self._server.answered.append((caller, judged)),
            failed=self._server.failures.append,
        )
        self._server.engine.submit(job)

    def opened(self) -> Opened:
        return Opened(0, 0)

    def arrived(self, within_s: float = 0.0) -> bool:
        """Lets a verdict come before every third guess that follows its draft."""
        self._asked += 1
        return self._asked % 3 == 0

    def receive(self) -> Answer:
        verdict = self._admitted
        if not isinstance(verdict, Verdict):
            verdict = self._state.settle(self._drafts[0], verdict, _wait())
            self._state.remember(verdict)
        self._drafts.popleft()
        if self._drafts:
            self._begin()
        return Answer(verdict, elapsed_ns=0, bytes_up=0, bytes_down=0)


class Server:
    """Is a real engine whose thread never starts."""

    def __init__(self, table: Floats) -> None:
        self.model = TableModel(table)
        self.answered: list[tuple[greenlet, Judged | None]] = []
        self.failures: list[OutriderError] = []
        self.engine = Engine(
            cast(LanguageModel, self.model),
            token_budget=1 << 30,
            prefill_chunk=1 << 30,
            clock=lambda: 0,
            on_step=lambda _: None,
        )

    def step(self) -> bool:
        """Judges all drafts that wait and goes on with their sessions; returns whether any did."""
        if self.engine._inbox.empty():
            return False  # taking it in would wait for somebody to put something there
        self.engine._take_inbox()
        self.engine.step()
        if self.failures:
            raise self.failures[0]
        answered, self.answered = self.answered, []
        for caller, judged in answered:
            caller.switch(judged)
        return bool(answered)


class Regardless(Drafter):
    """Guesses on after an EOS, so that it lies in the middle of a block; the server must end it."""

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
        return super().draft(history, count, sampling, prompt_length=prompt_length, policy=policy)


@dataclass(frozen=True, slots=True)
class Length:
    """Drafts so many tokens whatever remains, so that the server must cut what is too much."""

    tokens: int
    ahead: int = 0

    def begin(self) -> None: ...

    def next(self, remaining: int) -> int:
        return self.tokens

    def drafted(self, drafted: Drafted, spent_ns: int) -> None: ...

    def learn(self, step: Step) -> None: ...


@dataclass(frozen=True, slots=True)
class Setup:
    """Is how samples are made. The seeds take the draft lengths in turn."""

    target: Floats
    draft: Floats
    sampling: SamplingParams = AT_ONE
    verification: VerificationParams = EXACT
    policy: DraftPolicy = PLAIN
    lengths: tuple[int, ...] = (1, 2, 3, 4)
    ahead: int = 0
    drafter: type[Drafter] = Drafter


@dataclass(slots=True)
class Written:
    """Is what the seeds wrote, in their order, and how drafting went over all of them."""

    outputs: list[Output]
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_hits: int = 0  # drafts sent ahead that were judged
    num_overtaken: int = 0


def write(setup: Setup, seeds: Sequence[int]) -> Written:
    """Runs the loop once a seed."""
    written = Written([()] * len(seeds))
    for start in range(0, len(seeds), SIDE_BY_SIDE):
        server = Server(setup.target)
        model = TableModel(setup.draft)
        with _without_gc(), _gathering() as gathered:
            for index in range(start, min(start + SIDE_BY_SIDE, len(seeds))):
                greenlet(_generate).switch(setup, server, model, seeds[index], index, written)
            while any(function.answer() for function in gathered) or server.step():
                pass
    return written


def _generate(
    setup: Setup, server: Server, model: TableModel, seed: int, index: int, written: Written
) -> None:
    sampling, stop = replace(setup.sampling, seed=seed), StopParams(LENGTH)
    opening = OpenSession(PEER, PROMPT, sampling, stop, verification=setup.verification)
    state = TargetSession(
        opening, context_length=CONTEXT, model_eos=(EOS,), detokenizer=lambda: str
    )
    steps = speculate(
        ClientSession(PROMPT),
        setup.drafter(cast(LanguageModel, model)),
        Stream(server, state),
        Stopper(stop, model_eos=(EOS,), room=CONTEXT - len(PROMPT)),
        Length(setup.lengths[seed % len(setup.lengths)], setup.ahead),
        setup.policy,
        sampling,
        clock=lambda: 0,
    )
    for step in steps:
        written.outputs[index] += step.token_ids
        written.num_draft_tokens += step.num_draft_tokens or 0
        written.num_accepted_tokens += step.num_accepted_tokens or 0
        written.num_overtaken += bool(step.overtaken)
        written.num_hits += bool(step.ahead and not step.overtaken)


@contextmanager
def _gathering() -> Iterator[list[Gathered]]:
    """Puts the choices of all drafters into one call, here and nowhere else."""
    choices, draws = Gathered(choose), Gathered(guess.drawn_guesses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guess, "choose", choices)
        patch.setattr(guess, "drawn_guesses", draws)
        yield [choices, draws]


@contextmanager
def _without_gc() -> Iterator[None]:
    """Spares the collector a look at a thousand stacks again and again; nearly half the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _wait() -> Any:
    """Stops this greenlet until somebody switches to it, and returns what they bring."""
    parent = getcurrent().parent
    assert parent is not None
    return parent.switch()

"""What a round takes the edge beside the draft model's forwards and waiting for the server.

For benchmarks/engine.py, whose row it is: the arm `speculative` in this process, against a server
over loopback, its forwards and its waits timed where they are called.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from common.config import NetworkSection
from common.lm.execution import CompileMode
from common.lm.runner import Segment
from common.types import Draft, GenerateMode, OpenSession, SamplingParams, ServerInfo, StopParams
from edge_client.arms import Drafting, GenerationRequest, build_arms
from edge_client.draft_length import FixedPace
from edge_client.drafter import Drafter, EdgeModel
from edge_client.experiments.prompts import read_prompts
from edge_client.link import Ahead, Answer, Cloud, Opened, Piece, VerifyStream
from edge_client.resume import ResilientCloud
from edge_client.text import TextEncoder
from edge_client.transport import CloudConnection


@dataclass(slots=True)
class Spent:
    """Adds up rounds: how many, and nanoseconds in all, in forwards and in waiting."""

    rounds: int = 0
    all_ns: int = 0
    forwards_ns: int = 0
    waiting_ns: int = 0

    def __add__(self, other: Spent) -> Spent:
        """Returns both together."""
        return Spent(
            self.rounds + other.rounds,
            self.all_ns + other.all_ns,
            self.forwards_ns + other.forwards_ns,
            self.waiting_ns + other.waiting_ns,
        )

    @property
    def own_ns(self) -> int:
        """All the rest."""
        return self.all_ns - self.forwards_ns - self.waiting_ns

    @property
    def share(self) -> float:
        """The rest over all."""
        return self.own_ns / self.all_ns


def edge_overhead(
    address: str,
    draft: Path,
    prompts: Path,
    *,
    draft_length: int,
    tokens: int,
    limit: int,
    compile_mode: CompileMode = "on",
) -> Spent:
    """Has texts written greedily, one after another, and adds up all rounds but their first.

    Which reads the prompt. The first text is left out, to warm up.
    """
    network = NetworkSection()
    with ResilientCloud(
        [address], lambda to: CloudConnection(to, network, 2**22), network
    ) as cloud:
        model = _TimedModel(str(draft), threads=1, compile_mode=compile_mode)
        model.compile()
        timed = _TimedCloud(cloud, model.spent)
        arm = build_arms(
            ["speculative"],
            tokenizer=model.loaded.tokenizer,
            peer=model.peer,
            drafter=Drafter(model),
            cloud=timed,
            server=cloud.info(),
            drafting=Drafting(FixedPace(draft_length, draft_length)),
        )["speculative"]
        encoder = TextEncoder(model.loaded.tokenizer)
        total = Spent()
        for number, prompt in enumerate(read_prompts(prompts)[: 1 + limit]):
            asked = GenerationRequest(prompt.encode(encoder), SamplingParams(), StopParams(tokens))
            made = _rounds(arm.run(asked), model.spent)
            if number:
                total += made
        return total


def _rounds(steps: Iterator[object], spent: Spent) -> Spent:
    """Takes all steps, and returns what all but the first took; `spent` is added to meanwhile."""
    next(steps)
    spent.forwards_ns = spent.waiting_ns = 0
    began = time.perf_counter_ns()
    rounds = sum(1 for _ in steps)
    return replace(spent, rounds=rounds, all_ns=time.perf_counter_ns() - began)


class _TimedModel(EdgeModel):
    """Is a draft model that adds up its forwards."""

    spent = Spent()  # before the model is there: loading it runs forwards

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Runs one step."""
        began = time.perf_counter_ns()
        try:
            return super().forward(segments)
        finally:
            self.spent.forwards_ns += time.perf_counter_ns() - began


class _TimedCloud:
    """Is a cloud whose sessions add up how long they are waited for."""

    def __init__(self, cloud: Cloud, spent: Spent) -> None:
        self._cloud = cloud
        self._spent = spent

    def info(self) -> ServerInfo:
        return self._cloud.info()

    def generate(self, mode: GenerateMode, opening: OpenSession) -> Iterator[Piece]:
        return self._cloud.generate(mode, opening)

    @contextmanager
    def open(self, opening: OpenSession) -> Iterator[VerifyStream]:
        with self._cloud.open(opening) as stream:
            yield _TimedStream(stream, self._spent)


class _TimedStream:
    def __init__(self, stream: VerifyStream, spent: Spent) -> None:
        self._stream = stream
        self._spent = spent

    def opened(self) -> Opened:
        return self._stream.opened()

    def send(self, draft: Draft) -> None:
        self._stream.send(draft)

    def arrived(self, within_s: float = 0.0) -> bool:
        return self._stream.arrived(within_s)

    def receive(self) -> Answer | Ahead:
        """Waits; what serialization took of it is the edge's own."""
        began = time.perf_counter_ns()
        arrived = self._stream.receive()
        waited = time.perf_counter_ns() - began
        if isinstance(arrived, Answer):
            waited -= arrived.serialization_ns or 0
        self._spent.waiting_ns += waited
        return arrived

"""A client behind a link of its own, and what a text takes there: see network.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.link import relayed
from common.config import NetworkSection
from common.types import SamplingParams, StopParams
from edge_client.adaptive import ADAPTIVE_LENGTHS, AdaptivePace
from edge_client.arms import Arm, Drafting, GenerationRequest, build_arms
from edge_client.draft_length import FixedPace, Pace
from edge_client.drafter import Drafter, EdgeModel
from edge_client.resume import ResilientCloud
from edge_client.transport import CloudConnection

SAMPLING = SamplingParams(temperature=1.0, seed=20261125)
TOKENS = 64
PROMPT = "Once upon a time there was a small boat that wanted to see the sea."


@dataclass(frozen=True, slots=True)
class Reading:
    """Is what one text took."""

    tokens_per_s: float
    forwards_a_token: float
    bytes_up_a_round: float


class Client:
    """Is a draft model behind a link to the server."""

    def __init__(self, draft: Path, address: str, stack: ExitStack) -> None:
        network = NetworkSection()

        def connect(to: str) -> CloudConnection:
            return CloudConnection(to, network, 2**22)

        self._cloud = stack.enter_context(ResilientCloud([address], connect, network))
        self._info = self._cloud.info()
        self._model = EdgeModel(str(draft), threads=1)
        self._drafter = Drafter(self._model)
        tokenizer = self._model.loaded.tokenizer
        self._prompt = tuple(tokenizer(PROMPT)["input_ids"])

    def paced(self, pace: Pace, sampling: SamplingParams = SAMPLING, run_ahead: int = 0) -> Reading:
        """Has a text written by drafts at a pace."""
        return self._read(self._arm("speculative", Drafting(pace, run_ahead=run_ahead)), sampling)

    def alone(self, name: str, sampling: SamplingParams = SAMPLING) -> Reading:
        """Has a text written by another arm."""
        return self._read(self._arm(name, Drafting(FixedPace(0, 0))), sampling)

    def _arm(self, name: str, drafting: Drafting) -> Arm:
        arms = build_arms(
            [name],
            tokenizer=self._model.loaded.tokenizer,
            peer=self._model.peer,
            drafter=self._drafter,
            cloud=self._cloud,
            server=self._info,
            drafting=drafting,
        )
        return arms[name]

    def _read(self, arm: Arm, sampling: SamplingParams) -> Reading:
        request = GenerationRequest(self._prompt, sampling, StopParams(TOKENS, ()))
        started = time.perf_counter()
        steps = list(arm.run(request))
        seconds = time.perf_counter() - started
        tokens = sum(len(step.token_ids) for step in steps)
        rounds = [step for step in steps if step.num_accepted_tokens is not None]
        return Reading(
            tokens / seconds,
            sum(step.timing.forward_passes for step in steps if step.timing) / tokens,
            median(step.bytes_up or 0 for step in rounds[1:]) if len(rounds) > 1 else 0.0,
        )


@contextmanager
def client(draft: Path, server: str, rtt_ms: float) -> Iterator[Client]:
    """Connects a draft model through a relay of its own, and lets both ends warm up."""
    host, _, port = server.rpartition(":")
    with relayed((host, int(port)), "--rtt", f"{rtt_ms}ms") as link, ExitStack() as stack:
        made = Client(draft, f"{link[0]}:{link[1]}", stack)
        if rtt_ms < 60:
            made.paced(FixedPace(2, 64))
        yield made


def adaptive() -> AdaptivePace:
    """Is the default pace of `drafting.length: adaptive`, `network.pipeline: auto`."""
    return AdaptivePace(ADAPTIVE_LENGTHS, 64)

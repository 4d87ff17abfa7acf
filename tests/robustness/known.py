"""Texts whose tokens are known beforehand, and how a client that knows one drafts it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from common import wire
from common.types import GenerateMode, OpenSession, Peer, SamplingParams, StopParams
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub
from tests.models import VOCAB_SIZE

CONTEXT = 256
"""Tokens the tiny models of tests/models.py can hold."""

GREEDY = SamplingParams()
SAMPLED = (
    SamplingParams(temperature=0.8, seed=7),
    SamplingParams(temperature=1.0, top_k=40, top_p=0.9, seed=2**63),
    SamplingParams(temperature=0.7, repetition_penalty=1.2, frequency_penalty=0.3, seed=1),
)


@dataclass(frozen=True)
class Known:
    """Is a generation and the tokens that it must come to."""

    opening: OpenSession
    tokens: tuple[int, ...]

    @property
    def prompt_length(self) -> int:
        return len(self.opening.prompt_token_ids)

    @property
    def sequence(self) -> tuple[int, ...]:
        """Prompt and output, so that an index is a position."""
        return self.opening.prompt_token_ids + self.tokens


def openings(
    count: int, max_new_tokens: int, samplings: Sequence[SamplingParams] = (GREEDY, *SAMPLED)
) -> list[OpenSession]:
    """Makes prompts of 1 to 40 tokens, each with the next way of sampling; none ends early."""
    chance = random.Random(count)
    return [
        OpenSession(
            peer=Peer("", "", 0, ""),
            prompt_token_ids=tuple(
                chance.randrange(1, VOCAB_SIZE) for _ in range(chance.randint(1, 40))
            ),
            sampling=samplings[number % len(samplings)],
            stop=StopParams(max_new_tokens=max_new_tokens, eos_token_ids=()),
        )
        for number in range(count)
    ]


def references(address: str, wanted: Sequence[OpenSession]) -> list[Known]:
    """Has an undisturbed server write each text with zero drafts."""
    with grpc.insecure_channel(address) as channel:
        stub = VerifierStub(channel)
        known = []
        for one in wanted:
            pieces = stub.Generate(wire.generate_to_proto(GenerateMode.OPTIMIZED, one), timeout=60)
            known.append(Known(one, tuple(token for piece in pieces for token in piece.token_ids)))
        return known


@dataclass
class Follower:
    """Drafts a known text, some guesses wrong, and keeps what the verdicts confirm."""

    known: Known
    chance: random.Random
    tokens: list[int] = field(default_factory=list)
    finished: bool = False
    _step: int = 0
    _epoch: int = 0
    _drafted: list[int] = field(default_factory=list)

    def draft(self) -> pb.VerifyRequest:
        """Guesses 0 to 8 tokens, one of them wrong as often as not."""
        self._step += 1
        done = len(self.tokens)
        self._drafted = list(self.known.tokens[done : done + self.chance.randint(0, 8)])
        if self._drafted and self.chance.random() < 0.5:
            place = self.chance.randrange(len(self._drafted))
            self._drafted[place] = self.chance.randrange(VOCAB_SIZE)
        return pb.VerifyRequest(
            step_id=self._step,
            position=self.known.prompt_length + done,
            epoch=self._epoch,
            draft_token_ids=self._drafted,
        )

    def take(self, verdict: pb.Verdict) -> None:
        """Goes on by what a verdict says, which must be an answer to the draft."""
        assert verdict.step_id == self._step, verdict
        assert verdict.outcome == pb.OUTCOME_VERIFIED, verdict
        self.tokens += self._drafted[: verdict.accepted_count]
        if verdict.HasField("next_token_id"):
            self.tokens.append(verdict.next_token_id)
        self._epoch += verdict.accepted_count < len(self._drafted)
        self.finished = verdict.finish_reason != pb.FINISH_REASON_UNSPECIFIED

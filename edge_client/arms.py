"""The arms: ways of producing the text, all to the same interface and the same stop rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from common.detokenizer import Detokenizer, HasBackend
from common.errors import ConfigError, InternalError, PromptError
from common.stopping import Stopper
from common.types import (
    EXACT,
    GenerateMode,
    OpenSession,
    Peer,
    SamplingParams,
    ServerInfo,
    StopParams,
    VerificationParams,
)
from edge_client.draft_length import Pace
from edge_client.link import Clock, Cloud
from edge_client.loop import DraftSource, check_agreement, speculate
from edge_client.policy import PLAIN, DraftPolicy
from edge_client.session import ClientSession
from edge_client.steps import Step, streamed_step

__all__ = [
    "ARM_NAMES",
    "DEFAULT_ARMS",
    "Arm",
    "Drafting",
    "GenerationRequest",
    "LocalModel",
    "Step",
    "build_arms",
]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Asks an arm for one generation."""

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopParams
    conversation: bytes = b""  # what it is a turn of, if of any
    continues: bool = False  # the turn before was the last that this arm ran


class Arm(Protocol):
    """Produces text."""

    @property
    def name(self) -> str:
        """The arm's name in the glossary."""
        ...

    def run(self, request: GenerationRequest) -> Iterator[Step]:
        """Yields the output as it is made; the last step, and only that, has a finish reason.

        Of the run before, neither end keeps tokens or their cache, unless it was the turn before
        of the same conversation; a pace keeps what it learnt.
        Closing the iterator early ends the generation on both ends. Raises
        PromptError when the prompt leaves no room in the context, ServiceError
        when the server fails; steps already yielded stay valid.
        """
        ...


@dataclass(frozen=True, slots=True)
class Drafting:
    """States how many guesses are made a round, how, and by which rule they are judged.

    The pace is one for all texts: what it learns of link and models holds for the next.
    `cloud_length` is how many a draft model on the server makes; None: as many as it likes.
    """

    pace: Pace
    policy: DraftPolicy = PLAIN
    verification: VerificationParams = EXACT
    run_ahead: int = 0  # tokens the target may write alone while it waits for drafts
    cloud_length: int | None = None


class LocalModel(DraftSource, Protocol):
    """Is the draft model to the arms (see drafter.py)."""

    @property
    def context_length(self) -> int:
        """Tokens that prompt and output may come to."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The draft model's own end-of-sequence tokens."""
        ...

    def reset(self) -> None:
        """Forgets everything seen so far."""
        ...


@dataclass(frozen=True, slots=True)
class _Rule:
    """Makes the stop rule of one generation; every arm's output ends by it."""

    tokenizer: HasBackend
    eos_token_ids: tuple[int, ...]
    context_length: int

    def stopper(self, request: GenerationRequest) -> Stopper:
        room = self.context_length - len(request.prompt_token_ids)
        if room < 1:
            raise PromptError(
                f"the prompt has {len(request.prompt_token_ids)} tokens and the context "
                f"{self.context_length}; shorten it to at most {self.context_length - 1}"
            )
        return Stopper(
            request.stop,
            model_eos=self.eos_token_ids,
            room=room,
            detokenize=Detokenizer(self.tokenizer),
        )


@dataclass(frozen=True, slots=True)
class Edge:
    """Is the draft model alone, with no network."""

    drafter: LocalModel
    rule: _Rule
    name: str = "edge"

    def run(self, request: GenerationRequest) -> Iterator[Step]:
        """Yields one token a step."""
        stopper = self.rule.stopper(request)
        if not request.continues:
            self.drafter.reset()
        history = list(request.prompt_token_ids)
        while stopper.finish_reason is None:
            drafted = self.drafter.draft(
                history, 1, request.sampling, prompt_length=len(request.prompt_token_ids)
            )
            kept = stopper.push(drafted.token_ids)
            history += kept.token_ids
            yield Step(kept.token_ids, kept.text, kept.finish_reason)


@dataclass(frozen=True, slots=True)
class CloudAlone:
    """Is the cloud alone: `cloud` (stock Hugging Face), `cloud_optimized` (our engine), or
    `cloud_assisted` (our engine, and a draft model beside the target).

    `draft_length` is how many guesses that one makes a round; None: as the server likes.
    """

    name: str
    mode: GenerateMode
    cloud: Cloud
    peer: Peer
    rule: _Rule
    draft_length: int | None = None

    def run(self, request: GenerationRequest) -> Iterator[Step]:
        """Yields the tokens as the server streams them."""
        stopper = self.rule.stopper(request)
        opening = replace(_opening(self.peer, request), draft_length=self.draft_length)
        for piece in self.cloud.generate(self.mode, opening):
            tokens = piece.tokens
            kept = stopper.push(tokens.token_ids)
            # The server may name the reason with the last token or in a message of its own.
            reason = tokens.finish_reason or stopper.finish_reason
            check_agreement(kept, tokens.token_ids, reason)
            if not kept.token_ids:
                continue
            yield streamed_step(piece, kept)
        if stopper.finish_reason is None:
            raise InternalError("the server ended the generation and named no finish reason")


@dataclass(frozen=True, slots=True)
class Speculative:
    """Drafts here and verifies in the cloud: the target's own text, unless a rule is lossy."""

    drafter: LocalModel
    cloud: Cloud
    peer: Peer
    rule: _Rule
    drafting: Drafting
    clock: Clock
    name: str = "speculative"

    def run(self, request: GenerationRequest) -> Iterator[Step]:
        """Yields the confirmed tokens of a round at a time."""
        stopper = self.rule.stopper(request)
        if not request.continues:
            self.drafter.reset()
        self.drafting.pace.begin()
        ahead = self.drafting.run_ahead
        session = ClientSession(request.prompt_token_ids, run_ahead=ahead)
        opening = replace(
            _opening(self.peer, request),
            verification=self.drafting.verification,
            run_ahead=ahead,
        )
        with self.cloud.open(opening) as stream:
            yield from speculate(
                session,
                self.drafter,
                stream,
                stopper,
                self.drafting.pace,
                self.drafting.policy,
                request.sampling,
                self.clock,
            )


def _opening(peer: Peer, request: GenerationRequest) -> OpenSession:
    return OpenSession(
        peer,
        request.prompt_token_ids,
        request.sampling,
        request.stop,
        conversation=request.conversation,
    )


DEFAULT_ARMS = ("edge", "cloud", "cloud_optimized", "speculative")
ARM_NAMES = (*DEFAULT_ARMS, "cloud_assisted")  # not by default: not every server has a draft model


def build_arms(
    names: Sequence[str],
    *,
    tokenizer: HasBackend,
    peer: Peer,
    drafter: LocalModel | None,
    cloud: Cloud | None,
    server: ServerInfo | None,
    drafting: Drafting,
    clock: Clock = time.monotonic_ns,
) -> dict[str, Arm]:
    """Builds the named arms, in the order named.

    `cloud` and `server` may be None for `edge` alone, `drafter` for the cloud arms.
    Raises ConfigError for an unknown or repeated name, or one that lacks its parts.
    """
    builders: Mapping[str, Callable[[], Arm]] = {
        "edge": lambda: _edge(tokenizer, drafter, server),
        "cloud": lambda: CloudAlone(
            "cloud", GenerateMode.STOCK, *_reach(cloud, peer, tokenizer, server)
        ),
        "cloud_optimized": lambda: CloudAlone(
            "cloud_optimized", GenerateMode.OPTIMIZED, *_reach(cloud, peer, tokenizer, server)
        ),
        "speculative": lambda: Speculative(
            _drafter(drafter), *_reach(cloud, peer, tokenizer, server), drafting, clock
        ),
        "cloud_assisted": lambda: CloudAlone(
            "cloud_assisted",
            GenerateMode.ASSISTED,
            *_reach(cloud, peer, tokenizer, _drafting_server(server)),
            drafting.cloud_length,
        ),
    }
    for name in names:
        if name not in builders:
            raise ConfigError(f"there is no arm {name!r}; choose from {', '.join(ARM_NAMES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"an arm is named twice in {','.join(names)}; name each once")
    return {name: builders[name]() for name in names}


def _edge(tokenizer: HasBackend, drafter: LocalModel | None, server: ServerInfo | None) -> Edge:
    drafter = _drafter(drafter)
    context, eos = drafter.context_length, drafter.eos_token_ids
    if server is not None:
        # Beside other arms it ends as they do, or their outputs could not be compared.
        context, eos = min(context, server.context_length), server.eos_token_ids
    return Edge(drafter, _Rule(tokenizer, eos, context))


def _drafter(drafter: LocalModel | None) -> LocalModel:
    if drafter is None:
        raise ConfigError("the arms edge and speculative need a draft model; name one with --draft")
    return drafter


def _drafting_server(server: ServerInfo | None) -> ServerInfo | None:
    if server is not None and not server.draft_model_name:
        raise ConfigError(
            f"the arm cloud_assisted needs a server with a draft model, and the one that serves "
            f"{server.model_name} has none; start it with --draft-model"
        )
    return server


def _reach(
    cloud: Cloud | None, peer: Peer, tokenizer: HasBackend, server: ServerInfo | None
) -> tuple[Cloud, Peer, _Rule]:
    if cloud is None or server is None:
        raise ConfigError("every arm but edge needs a server; name one with --server")
    return cloud, peer, _Rule(tokenizer, server.eos_token_ids, server.context_length)

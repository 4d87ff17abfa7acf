"""Puts the parts of the client together: connection, draft model, handshake, arms."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from common import wire
from common.config import Config, DecodingSection
from common.types import (
    Peer,
    SamplingParams,
    ServerInfo,
    StopParams,
    VerificationMode,
    VerificationParams,
)
from edge_client.adaptive import ADAPTIVE_LENGTHS, AdaptivePace
from edge_client.arms import Arm, Drafting, build_arms
from edge_client.draft_length import FixedPace, Pace
from edge_client.drafter import Drafter, EdgeModel
from edge_client.policy import Doubt, DraftPolicy, Gate
from edge_client.resume import ResilientCloud
from edge_client.rivals import RunAheadPace
from edge_client.text import TextEncoder
from edge_client.transport import CloudConnection

UNADAPTED_LENGTH = 4
"""Tokens drafted a round where `adaptive` would make a text depend on the link."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """Holds the parts; `cloud` and `server` are None when no arm needs a server."""

    model: EdgeModel
    encoder: TextEncoder
    drafter: Drafter
    arms: Mapping[str, Arm]
    cloud: ResilientCloud | None
    server: ServerInfo | None

    @property
    def context_length(self) -> int:
        """The smallest context among the models: what every arm can hold."""
        own = self.model.loaded.context_length
        return own if self.server is None else min(own, self.server.context_length)


@contextmanager
def assemble(
    config: Config, *, draft: str, servers: Sequence[str], arms: Sequence[str]
) -> Iterator[Assembly]:
    """Connects, loads the draft model, checks that the two ends fit, and builds the arms.

    No `servers` means the configured one, and none at all when only `edge` runs.
    Raises UnavailableError before the model is loaded when nobody is there.
    """
    with ExitStack() as stack:
        cloud = info = None
        if servers or set(arms) != {"edge"}:
            cloud = stack.enter_context(connect(config, servers))
            info = cloud.info()
        model = EdgeModel.configured(draft, config)
        if info is not None:
            wire.check_handshake(model.peer, _server_peer(info))
        drafter = Drafter(model)
        yield Assembly(
            model=model,
            drafter=drafter,
            encoder=TextEncoder(model.loaded.tokenizer),
            arms=build_arms(
                arms,
                tokenizer=model.loaded.tokenizer,
                peer=model.peer,
                drafter=drafter,
                cloud=cloud,
                server=info,
                drafting=_drafting(config, info),
            ),
            cloud=cloud,
            server=info,
        )


def connect(config: Config, servers: Sequence[str]) -> ResilientCloud:
    """Makes the connection to the named servers, or to the configured one."""

    def to(address: str) -> CloudConnection:
        return CloudConnection(
            address,
            config.network,
            config.cloud.max_message_bytes,
            security=config.security,
        )

    return ResilientCloud(servers or [config.cloud.listen], to, config.network)


def sampling_params(decoding: DecodingSection) -> SamplingParams:
    """Returns how tokens are chosen; a seed is drawn where none is given."""
    return SamplingParams(
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        min_p=decoding.min_p,
        repetition_penalty=decoding.repetition_penalty,
        presence_penalty=decoding.presence_penalty,
        frequency_penalty=decoding.frequency_penalty,
        # 32 bits: whole in every JSON reader, and short enough to type again.
        seed=secrets.randbits(32) if decoding.seed is None else decoding.seed,
    )


def stop_params(decoding: DecodingSection) -> StopParams:
    """Returns when a generation ends."""
    return StopParams(
        max_new_tokens=decoding.max_new_tokens,
        eos_token_ids=() if decoding.ignore_eos else None,
        stop_strings=decoding.stop,
    )


def _pace(config: Config, server: ServerInfo | None) -> Pace:
    asked, pipeline = config.drafting.length, config.network.pipeline
    if config.verification.mode != "coupled" or config.gate.kind != "none":
        # There the text depends on where drafts end, and a seed shall give it again.
        asked = UNADAPTED_LENGTH if asked == "adaptive" else asked
        pipeline = 0 if pipeline == "auto" else pipeline
    lengths = ADAPTIVE_LENGTHS if asked == "adaptive" else (asked,)
    most = lengths[-1] if server is None else server.max_draft_tokens
    if asked == "adaptive" or pipeline == "auto":
        pace = AdaptivePace(lengths, most, None if pipeline == "auto" else pipeline)
        return RunAheadPace(pace) if config.network.run_ahead and not lengths[0] else pace
    return FixedPace(asked, most, pipeline)


def _drafting(config: Config, server: ServerInfo | None) -> Drafting:
    drafting, gate = config.drafting, config.gate
    verification = verification_params(config)
    drawn = verification.mode is VerificationMode.REJECTION
    return Drafting(
        _pace(config, server),
        DraftPolicy(
            candidates=drafting.candidates if drawn else None,
            min_confidence=drafting.confidence_threshold if drafting.stop == "confidence" else 0.0,
            gate=None
            if gate.kind == "none" or gate.threshold is None
            else Gate(Doubt(gate.kind), gate.threshold),
        ),
        verification,
        config.network.run_ahead,
        _cloud_length(drafting.length, server),
    )


def _cloud_length(asked: int | str, server: ServerInfo | None) -> int | None:
    """Returns the draft length asked of the server's draft model; None leaves it to the server."""
    if server is None or not isinstance(asked, int):
        return None
    return min(asked, server.max_draft_tokens)


def verification_params(config: Config) -> VerificationParams:
    """Returns the rule by which guesses are judged."""
    given = config.verification
    return VerificationParams(
        mode=VerificationMode(given.mode),
        rank_threshold=given.rank_threshold,
        typical_threshold=given.typical_threshold,
        typical_alpha=given.typical_alpha,
        gated=config.gate.kind != "none",
    )


def _server_peer(info: ServerInfo) -> Peer:
    return Peer(info.protocol_version, info.tokenizer_fingerprint, info.vocab_size, info.dtype)

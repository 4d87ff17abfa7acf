"""The Verifier service: messages in, messages out; what they mean is decided elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc.aio

from cloud_server.arrivals import arrivals
from cloud_server.assisted import assisting
from cloud_server.authentication import client_of
from cloud_server.generate import StockGenerator
from cloud_server.host import Host
from cloud_server.run_ahead import RunAhead
from cloud_server.stock import StockTurns
from cloud_server.unary import UnarySessions
from common import wire
from common.errors import (
    InternalError,
    InvalidRequestError,
    OutriderError,
    UnavailableError,
)
from common.lm.execution import DRAFT_ENGINE, ENGINE
from common.machine.usage import read_usage
from common.types import AheadTokens, Draft, GenerateMode, Verdict
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc

logger = logging.getLogger(__name__)

OPENING_SECONDS = 10.0
"""How long a stream may be open before it says what session it wants."""

Context = grpc.aio.ServicerContext[Any, Any]


_OPEN_FIRST = "the first message of a session must be `open`"
_NOT_FOUND = pb.EntryError(
    code=grpc.StatusCode.NOT_FOUND.value[0],
    reason="NOT_FOUND",
    message="no such session; open it again with all its tokens",
)


async def _drafts(
    requests: AsyncIterator[tuple[pb.SessionRequest, int]], limits: wire.WireLimits
) -> AsyncIterator[tuple[Draft, int]]:
    """Yields the drafts of an open session, each with its arrival."""
    async for request, arrived_ns in requests:
        if request.WhichOneof("message") != "verify":
            raise InvalidRequestError("a session is opened once; send `verify` messages")
        yield wire.draft_from_proto(request.verify, limits), arrived_ns


def _response(told: Verdict | AheadTokens) -> pb.SessionResponse:
    if isinstance(told, AheadTokens):
        return pb.SessionResponse(ahead=wire.ahead_to_proto(told))
    return pb.SessionResponse(verdict=wire.verdict_to_proto(told))


async def _refused(error: OutriderError) -> pb.VerifyBatchResult:
    return pb.VerifyBatchResult(error=wire.error_to_proto(error))


class VerifierServicer(verifier_pb2_grpc.VerifierServicer):
    """Serves the contract of proto/outrider/v1/verifier.proto."""

    def __init__(self) -> None:
        """Answers every call with UnavailableError until it has its parts (`begin`)."""
        self._parts: tuple[Host, StockTurns, UnarySessions] | None = None

    def begin(self, host: Host, stock: StockGenerator) -> UnarySessions:
        """Serves from now on; returns the sessions that are no call's, for who ends them."""
        unary = UnarySessions(host)
        self._parts = host, StockTurns(host, stock), unary
        return unary

    @property
    def _host(self) -> Host:
        return self._ready()[0]

    @property
    def _stock(self) -> StockTurns:
        return self._ready()[1]

    @property
    def _unary(self) -> UnarySessions:
        return self._ready()[2]

    def _ready(self) -> tuple[Host, StockTurns, UnarySessions]:
        if self._parts is None:
            raise UnavailableError("this server is still loading its model; ask again in a moment")
        return self._parts

    async def Session(
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> AsyncIterator[pb.SessionResponse]:
        """Holds one session: opens it, then answers each verify request in order."""
        host = self._host
        limits, client, deadline_ns = host.wire_limits, client_of(context), self._deadline(context)
        idle_s = min(OPENING_SECONDS, host.limits.idle_session_seconds)
        async with aclosing(arrivals(request_iterator, host.clock, lambda: idle_s)) as requests:
            try:
                first, _ = await anext(requests)
            except StopAsyncIteration:
                raise InvalidRequestError(_OPEN_FIRST) from None
            if first.WhichOneof("message") != "open":
                raise InvalidRequestError(_OPEN_FIRST)
            idle_s = host.limits.idle_session_seconds
            opening = wire.open_from_proto(first.open, limits)
            async with host.open(opening, client, deadline_ns) as live:
                live.prefill()
                yield pb.SessionResponse(
                    opened=pb.SessionOpened(
                        position=live.state.position, context_length=host.info.context_length
                    )
                )
                drafts = _drafts(requests, limits)
                most = min(opening.run_ahead, host.limits.max_run_ahead)
                answers = RunAhead(live, most).answers if opening.run_ahead else live.verdicts
                async with aclosing(answers(drafts)) as told:
                    async for one in told:
                        yield _response(one)

    def _deadline(self, context: Context) -> int | None:
        """Returns when the call must be over, on this server's clock; None when it may last."""
        left_s = context.time_remaining()
        return None if left_s is None else self._host.clock() + int(left_s * 1e9)

    async def VerifyBatch(
        self, request: pb.VerifyBatchRequest, context: Context
    ) -> pb.VerifyBatchResponse:
        """Opens what is new, then verifies all side by side, so that they share forwards."""
        most = self._host.limits.max_sessions
        if len(request.entries) > most:
            raise InvalidRequestError(
                f"entries holds {len(request.entries)}; a batch takes at most {most} "
                "(cloud.max_sessions)"
            )
        client, deadline_ns = client_of(context), self._deadline(context)
        new: list[bytes] = []
        try:
            opened = await asyncio.gather(
                *(self._open_entry(entry, client, new) for entry in request.entries)
            )
            results = await asyncio.gather(
                *(
                    self._verify_entry(entry, client, token, deadline_ns)
                    if isinstance(token, bytes)
                    else _refused(token)
                    for entry, token in zip(request.entries, opened, strict=True)
                )
            )
        except BaseException as error:  # the caller left, or is told: it never learns the tokens
            for token in new:
                await self._unary.close(token, error)
            raise
        for result in results:
            if result.HasField("error"):
                self._host.metrics.errors.labels(result.error.reason).inc()
        return pb.VerifyBatchResponse(results=results)

    async def _open_entry(
        self, entry: pb.VerifyBatchEntry, client: str, new: list[bytes]
    ) -> bytes | OutriderError:
        """Returns the token of the entry's session, noted if `new`, or why there is none."""
        if entry.WhichOneof("session") != "open":
            return entry.session_token
        try:
            opening = wire.open_from_proto(entry.open, self._host.wire_limits)
            new.append(await self._unary.open(client, opening))
        except OutriderError as error:
            return error
        return new[-1]

    async def _verify_entry(
        self, entry: pb.VerifyBatchEntry, client: str, token: bytes, deadline_ns: int | None
    ) -> pb.VerifyBatchResult:
        arrived_ns = self._host.clock()
        session = self._unary.get(client, token)
        if session is None:
            return pb.VerifyBatchResult(error=_NOT_FOUND)
        result = pb.VerifyBatchResult(session_token=token)
        try:
            async with self._unary.using(session):
                if self._unary.get(client, token) is not session:  # ended while this entry waited
                    return pb.VerifyBatchResult(error=_NOT_FOUND)
                if entry.HasField("verify"):
                    draft = wire.draft_from_proto(entry.verify, self._host.wire_limits)
                    result.verdict.CopyFrom(
                        wire.verdict_to_proto(
                            await session.live.verify(draft, arrived_ns, deadline_ns)
                        )
                    )
        except OutriderError as error:
            await self._unary.close(token, error)
            return await _refused(error)
        except Exception as error:  # a fault of ours in one entry must not end the others
            logger.error("an entry of a batch failed", exc_info=error)
            ours = InternalError(f"{type(error).__name__}: {error}")
            await self._unary.close(token, ours)
            return await _refused(ours)
        if entry.close:
            await self._unary.close(token)
            result.session_token = b""
        return result

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Streams one of the cloud arms."""
        mode, opening = wire.generate_from_proto(request, self._host.wire_limits)
        client = client_of(context)
        if mode is GenerateMode.STOCK:
            async with self._stock.open(opening, client) as pieces:
                async for tokens in pieces:
                    yield wire.generated_to_proto(tokens)
            return
        drafting = self._host.drafts() if mode is GenerateMode.ASSISTED else None
        async with self._host.open(opening, client, self._deadline(context)) as live:
            if drafting is None:
                async for tokens in live.decode():
                    yield wire.generated_to_proto(tokens)
                return
            async with assisting(live, drafting, opening.draft_length) as pieces:
                async for tokens in pieces:
                    yield wire.generated_to_proto(tokens)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Returns logits of a few tokens after a context, and how probable a text is there."""
        host = self._host
        scores = await host.score(
            *wire.score_from_proto(request, host.wire_limits, host.info.context_length),
            client_of(context),
            self._deadline(context),
        )
        opinion = scores.opinion
        return pb.ScoreResponse(
            logits=scores.logits, text_logprobs=opinion.logprobs, text_ranks=opinion.ranks
        )

    async def Echo(self, request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
        """Returns the payload."""
        arrived_ns = self._host.clock()
        response = pb.EchoResponse(payload=request.payload)
        response.total_ns = self._host.clock() - arrived_ns
        return response

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.ServerInfo:
        """Describes this server, with how it runs by now and what it has used so far."""
        info = self._host.info
        now = {ENGINE: self._host.execution.description}
        if self._host.drafting is not None:
            now[DRAFT_ENGINE] = self._host.drafting.model.execution.description
        now |= read_usage(info.device.partition(" ")[0]).to_texts()
        return wire.info_to_proto(replace(info, environment={**info.environment, **now}))

"""Clients that know their text and use the stubs by hand: each way to have it made."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio

from common import wire
from common.types import GenerateMode
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub
from tests.robustness.known import Follower, Known

Stub = Any  # the published type stubs know only a part of grpc.aio
EOF: Any = vars(grpc.aio)["EOF"]

NO_ROOM = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,  # this client was idle for too long, as it may be on a busy machine
)
NO_ROOM_CODES = tuple(code.value[0] for code in NO_ROOM)
NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]
TIMEOUT_S = 60.0
OF_THE_LIBRARY = "Internal error from Core"
"""What grpc.aio's client says of a write that crossed the end of its call; the status is lost."""


class NoRoomError(Exception):
    """Says that the server had no room, or none any more, as it may."""


class LeftError(Exception):
    """Says that a client went away in the middle, as it meant to."""


Leave = Callable[[], bool]
"""Asked after each answer: whether the client goes away now."""


def stays() -> bool:
    return False


@asynccontextmanager
async def connected(address: str, *options: tuple[str, int]) -> AsyncIterator[Stub]:
    """Connects with a connection of its own."""
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(address, [*own, *options]) as channel:
        yield VerifierStub(channel)


async def by_session(
    stub: Stub, known: Known, chance: random.Random, leave: Leave = stays
) -> list[int]:
    """Has a text made through a stream of its own."""
    follower = Follower(known, chance)
    with _call(stub.Session(timeout=TIMEOUT_S)) as call:
        await call.write(pb.SessionRequest(open=wire.open_to_proto(known.opening)))
        opened = await call.read()
        assert opened.HasField("opened"), opened
        while not follower.finished:
            _maybe_leave(leave)
            await call.write(pb.SessionRequest(verify=follower.draft()))
            follower.take((await call.read()).verdict)
        await call.done_writing()
        assert await call.read() is EOF
    return follower.tokens


async def by_batches(
    stub: Stub, known: Known, chance: random.Random, leave: Leave = stays
) -> list[int]:
    """Has a text made through the unary form; who leaves closes nothing."""
    follower = Follower(known, chance)
    entry = pb.VerifyBatchEntry(open=wire.open_to_proto(known.opening), verify=follower.draft())
    while True:
        request = pb.VerifyBatchRequest(entries=[entry])
        with _call(stub.VerifyBatch(request, timeout=TIMEOUT_S)) as call:
            (result,) = (await call).results
        # NOT_FOUND: idle for too long between two batches, as it may be on a busy machine.
        if result.error.code in (*NO_ROOM_CODES, NOT_FOUND):
            raise NoRoomError(result.error.message)
        assert not result.HasField("error"), result.error
        if entry.close:
            return follower.tokens
        follower.take(result.verdict)
        _maybe_leave(leave)
        entry = pb.VerifyBatchEntry(session_token=result.session_token)
        if follower.finished:
            entry.close = True
        else:
            entry.verify.CopyFrom(follower.draft())


async def by_generate(
    stub: Stub, known: Known, mode: GenerateMode, leave: Leave = stays
) -> list[int]:
    """Has a text made by the target alone."""
    tokens: list[int] = []
    request = wire.generate_to_proto(mode, known.opening)
    with _call(stub.Generate(request, timeout=TIMEOUT_S)) as call:
        while (piece := await call.read()) is not EOF:
            tokens += piece.token_ids
            _maybe_leave(leave)
    return tokens


@contextmanager
def _call(call: Any) -> Iterator[Any]:
    """Ends a call with the block, and tells a server without room from one at fault."""
    try:
        yield call
    except grpc.aio.AioRpcError as error:
        # An idle client's write may cross the end of its call: then the library's own words come.
        if error.code() in NO_ROOM or error.details() == OF_THE_LIBRARY:
            raise NoRoomError(error.details()) from error
        raise
    finally:
        call.cancel()


def _maybe_leave(leave: Leave) -> None:
    if leave():
        raise LeftError

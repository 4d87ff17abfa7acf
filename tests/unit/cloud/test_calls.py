"""How many calls a client may have under way, over a real server that opens no session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from cloud_server.access import Access
from cloud_server.credentials import Credentials
from cloud_server.lifecycle import Lifecycle
from cloud_server.listening import SERVICE, grpc_server
from cloud_server.metrics import Metrics
from cloud_server.servicer import VerifierServicer
from common.config import CloudSection
from common.errors import OverloadedError
from common.wire import WireLimits
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub
from tests.integration.test_service import refusal

LIMITS = CloudSection(listen="127.0.0.1:0", max_sessions=64, max_client_sessions=2)
MOST = 2 * 2 + 16
TOKENS = {"ann": "a" * 16, "bob": "b" * 16}


@asynccontextmanager
async def connected(directory: Path) -> AsyncIterator[dict[str, Any]]:
    """Serves, and yields for each client a channel and the metadata that it calls with."""
    file = directory / "tokens"
    file.write_text("".join(f"{name} {token}\n" for name, token in TOKENS.items()))
    metrics, servicer = Metrics(), VerifierServicer()
    host: Any = SimpleNamespace(clock=lambda: 0, limits=LIMITS, wire_limits=WireLimits(9, 9))
    servicer.begin(host, stock=Any)  # type: ignore[arg-type]
    access = Access(None, Credentials(str(file)))
    lifecycle = Lifecycle(SERVICE, metrics)
    async with (
        grpc_server(LIMITS, servicer, lifecycle, metrics, access) as (_, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield {
            name: (channel, [("authorization", f"Bearer {token}")])
            for name, token in TOKENS.items()
        }


async def echo(channel: Any, metadata: Any) -> grpc.aio.AioRpcError | None:
    stub: Any = VerifierStub(channel)
    try:
        await stub.Echo(pb.EchoRequest(), metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error
    return None


def test_streams_that_open_nothing_fill_their_clients_calls_and_nobody_elses(
    tmp_path: Path,
) -> None:
    async def fill() -> None:
        async with connected(tmp_path) as clients:
            channel, metadata = clients["ann"]
            assert await echo(channel, metadata) is None
            stub: Any = VerifierStub(channel)
            # One more than it may have: an echo may be under way when one of them comes.
            silent = [stub.Session(metadata=metadata) for _ in range(MOST + 1)]
            while (error := await echo(channel, metadata)) is None:
                pass
            code, ours = refusal(error)
            assert code == "RESOURCE_EXHAUSTED"
            assert isinstance(ours, OverloadedError)
            assert ours.retry_after_s == 1.0
            assert f"has {MOST} calls under way" in str(ours)
            assert "cloud.max_client_sessions" in str(ours)
            assert await echo(*clients["bob"]) is None
            for _, known in clients.values():
                health: Any = HealthStub(channel)
                await health.Check(health_pb2.HealthCheckRequest(), metadata=known)
            for call in silent:
                call.cancel()
            while await echo(channel, metadata) is not None:
                pass

    asyncio.run(fill())


def test_health_watches_of_one_client_do_not_keep_others_from_asking(tmp_path: Path) -> None:
    async def watch() -> None:
        async with connected(tmp_path) as clients:
            channel, metadata = clients["ann"]
            health: Any = HealthStub(channel)
            request = health_pb2.HealthCheckRequest()
            watches = [health.Watch(request, metadata=metadata) for _ in range(MOST)]
            for call in watches:
                await call.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health.Check(request, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await health.Check(request, metadata=clients["bob"][1])
            assert await echo(channel, metadata) is None
            for call in watches:
                call.cancel()

    asyncio.run(watch())


def test_calls_that_are_over_count_no_more(tmp_path: Path) -> None:
    async def ask() -> None:
        async with connected(tmp_path) as clients:
            for _ in range(3 * MOST):
                assert await echo(*clients["ann"]) is None

    asyncio.run(ask())

"""What the health service says, and what a server says that has no model yet."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from cloud_server.access import Access
from cloud_server.lifecycle import Lifecycle
from cloud_server.listening import SERVICE, grpc_server
from cloud_server.metrics import PHASES, Metrics
from cloud_server.servicer import VerifierServicer
from common.config import CloudSection
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub

SERVING = health_pb2.HealthCheckResponse.SERVING


async def said(lifecycle: Lifecycle, name: str) -> bool:
    request = health_pb2.HealthCheckRequest(service=name)
    answer: Any = await lifecycle.service.Check(request, None)
    return bool(answer.status == SERVING)


def test_each_phase_is_told_by_its_name_and_only_serving_is_healthy() -> None:
    async def ask() -> None:
        metrics = Metrics()
        lifecycle = Lifecycle(SERVICE, metrics)
        for phase in PHASES:
            await lifecycle.enter(phase)
            assert [await said(lifecycle, name) for name in PHASES] == [p == phase for p in PHASES]
            for name in ("", SERVICE):
                assert await said(lifecycle, name) == (phase == "serving")
            value = metrics.registry.get_sample_value("outrider_phase", {"outrider_phase": phase})
            assert value == 1

    asyncio.run(ask())


@pytest.mark.parametrize("name", ["engine", "stock"])
def test_a_step_that_does_not_end_takes_the_server_out_of_health_until_it_does(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def watch() -> None:
        lifecycle = Lifecycle(SERVICE, Metrics())
        await lifecycle.enter("serving")
        runners: Any = {
            name: SimpleNamespace(step_started_ns=None, steps=7) for name in ("engine", "stock")
        }
        runner = runners[name]
        watching = asyncio.create_task(lifecycle.watch(runners, 0.001, lambda: 5_000_000))

        async def until(stuck: bool) -> None:
            while lifecycle.is_stuck is not stuck:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert await said(lifecycle, "") is not stuck

        runner.step_started_ns = 4_500_000  # half of what it may take
        for _ in range(100):
            await asyncio.sleep(0)
        await until(stuck=False)
        runner.step_started_ns = 3_000_000
        await until(stuck=True)
        runner.step_started_ns = None
        await until(stuck=False)
        watching.cancel()

    asyncio.run(watch())
    assert [record.getMessage() for record in caplog.records] == [
        f"watchdog {name} step=7 is stuck",
        f"watchdog {name} step=7 has ended",
    ]


def test_a_server_that_is_loading_answers_health_and_nothing_else() -> None:
    async def ask() -> None:
        cloud, metrics, access = CloudSection(listen="127.0.0.1:0"), Metrics(), Access(None, None)
        lifecycle, servicer = Lifecycle(SERVICE, metrics), VerifierServicer()
        async with (
            grpc_server(cloud, servicer, lifecycle, metrics, access) as (_, address),
            grpc.aio.insecure_channel(address) as channel,
        ):
            health: Any = HealthStub(channel)
            for name, is_serving in (("", False), ("loading", True), ("serving", False)):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert (answer.status == SERVING) is is_serving
            stub: Any = VerifierStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetServerInfo(pb.GetServerInfoRequest())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "still loading" in str(caught.value.details())

    asyncio.run(ask())

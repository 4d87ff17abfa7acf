"""A server that looks after itself: limits, idle sessions, draining, and what it tells of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from common.errors import OutriderError, OverloadedError, UnavailableError, leaves
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub
from tests.integration.processes import ENVIRONMENT, Server, serving
from tests.integration.test_service import Session, generate, opening, refusal, verify
from tests.models import Pair
from tests.robustness.clients import EOF, connected
from tests.robustness.test_slow_clients import SMALL_WINDOW
from tests.robustness.watching import metric, wait_for_rest

SERVING = health_pb2.HealthCheckResponse.SERVING
EVICTED = 'outrider_request_errors_total{reason="EVICTED"}'


@pytest.fixture(scope="module")
def strict_server(tiny_pair: Pair) -> Iterator[Server]:
    with serving(
        tiny_pair.target,
        *("--set", "cloud.max_client_sessions=2", "--set", "cloud.max_prompt_tokens=20"),
        *("--set", "cloud.max_new_tokens=50", "--set", "cloud.idle_session_seconds=0.3"),
    ) as running:
        yield running


@pytest.fixture
def stub(strict_server: Server) -> Iterator[VerifierStub]:
    with grpc.insecure_channel(strict_server.address) as channel:
        yield VerifierStub(channel)
    assert wait_for_rest(strict_server) == {}


def is_serving(channel: grpc.Channel, name: str = "") -> bool:
    health: Any = HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
    return bool(answer.status == SERVING)


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (opening(prompt_token_ids=[5] * 21), "cloud.max_prompt_tokens"),
        (opening(max_new_tokens=51), "cloud.max_new_tokens"),
    ],
    ids=["prompt", "output"],
)
@pytest.mark.parametrize("mode", ["OPTIMIZED", "STOCK"])
def test_more_than_a_client_may_ask_is_its_own_fault(
    stub: VerifierStub, asked: pb.OpenSession, key: str, mode: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        generate(stub, asked, mode)
    code, error = refusal(caught.value)
    assert code == "INVALID_ARGUMENT"
    assert key in str(error)


def test_a_client_with_all_its_sessions_is_told_when_to_ask_again(stub: VerifierStub) -> None:
    sessions = [Session(stub) for _ in range(2)]
    for session in sessions:
        session.ask(open=opening())
    with pytest.raises(grpc.RpcError) as caught:
        generate(stub, opening())
    code, error = refusal(caught.value)
    assert code == "RESOURCE_EXHAUSTED"
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s is not None
    assert "cloud.max_client_sessions" in str(error)
    for session in sessions:
        session.call.cancel()


def test_an_idle_stream_is_ended_with_the_reason_and_can_be_opened_again(
    stub: VerifierStub, strict_server: Server
) -> None:
    session = Session(stub)
    session.ask(open=opening())
    first = session.verdict(verify(1, 3, []))
    with pytest.raises(grpc.RpcError) as caught:
        next(session.call)
    code, error = refusal(caught.value)
    assert (code, error and error.reason) == ("ABORTED", "EVICTED")
    assert wait_for_rest(strict_server) == {}
    again = Session(stub)
    assert again.ask(open=opening(generated_token_ids=[first.next_token_id])).opened.position == 4
    again.half_close()
    assert list(again.call) == []


def test_a_stream_that_names_no_session_is_ended(stub: VerifierStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(Session(stub).call)
    code, error = refusal(caught.value)
    assert (code, error and error.reason) == ("ABORTED", "EVICTED")


@pytest.fixture(scope="module")
def impatient_server(tiny_pair: Pair) -> Iterator[Server]:
    with serving(tiny_pair.target, "--set", "cloud.idle_session_seconds=0.3") as running:
        yield running


def endings(server: Server) -> list[str]:
    """Returns the reasons for which sessions ended, in their order."""
    return [line.split("reason=")[1].split()[0] for line in server.log if "reason=" in line]


async def evicted_for_not_reading(server: Server) -> None:
    """Waits until the server has counted one more eviction, and holds nothing any more."""
    before = metric(server, EVICTED)
    while metric(server, EVICTED) == before:
        await asyncio.sleep(0)
    assert await asyncio.to_thread(wait_for_rest, server) == {}
    assert endings(server)[-1] == "EVICTED"


async def read_to_the_end(call: Any) -> None:
    while await call.read() is not EOF:
        pass


@pytest.mark.parametrize("mode", ["STOCK", "OPTIMIZED"])
def test_a_generation_that_nobody_reads_is_ended_with_the_reason(
    impatient_server: Server, mode: str
) -> None:
    async def run() -> None:
        async with connected(impatient_server.address, *SMALL_WINDOW) as stub:
            request = pb.GenerateRequest(mode=f"GENERATE_MODE_{mode}", open=opening(1000))
            call: Any = stub.Generate(request)
            await evicted_for_not_reading(impatient_server)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_to_the_end(call)
            assert caught.value.code() is grpc.StatusCode.ABORTED
            assert "no answer was read for 0.3 s" in str(caught.value.details())

    asyncio.run(run())


def test_a_session_that_goes_on_asking_and_reads_no_answer_is_ended(
    impatient_server: Server,
) -> None:
    async def ask_on(call: Any) -> None:
        # The model works once; each repeat is answered from memory.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # once it is ended
            while True:
                await call.write(pb.SessionRequest(verify=verify(1, 3, [])))

    async def run() -> None:
        async with connected(impatient_server.address, *SMALL_WINDOW) as stub:
            call: Any = stub.Session()
            await call.write(pb.SessionRequest(open=opening()))
            asking = asyncio.ensure_future(ask_on(call))
            await evicted_for_not_reading(impatient_server)
            call.cancel()
            await asking

    asyncio.run(run())


def test_a_score_is_no_longer_than_a_prompt_may_be(stub: VerifierStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Score(pb.ScoreRequest(context_token_ids=[5] * 21, token_ids=[7]), timeout=60)
    code, error = refusal(caught.value)
    assert code == "INVALID_ARGUMENT"
    assert "cloud.max_prompt_tokens" in str(error)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_server_that_is_loading_answers_signals_and_health(
    number: signal.Signals, code: int, tiny_pair: Pair, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_pair.target, model)
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")  # whoever reads it waits for ever
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "cloud_server", "serve", "--model", str(model)]
    with subprocess.Popen(
        [*command, "--listen", address, "--metrics-listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    ) as process, grpc.insecure_channel(address) as channel:  # fmt: skip
        try:
            health: Any = HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="loading")
            answer = health.Check(request, timeout=60, wait_for_ready=True)
            assert answer.status == SERVING
            assert not is_serving(channel)
            process.send_signal(signal.SIGUSR1)
            assert process.stderr is not None
            assert process.stderr.readline() == "outrider-cloud: loading\n"
            process.send_signal(number)
            assert process.wait(60) == code
        finally:
            process.kill()


def test_a_draining_server_refuses_new_sessions_and_finishes_those_it_has(tiny_pair: Pair) -> None:
    with (
        serving(tiny_pair.target, "--set", "cloud.redirect=heir:1") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = VerifierStub(channel)
        assert is_serving(channel)
        assert is_serving(channel, "serving")
        session = Session(stub)
        session.ask(open=opening())
        server.process.send_signal(signal.SIGTERM)
        while is_serving(channel):
            pass
        assert is_serving(channel, "draining")
        with pytest.raises(grpc.RpcError) as caught:
            generate(stub, opening())
        code, error = refusal(caught.value)
        assert (code, error and error.reason) == ("UNAVAILABLE", "UNAVAILABLE")
        assert "draining" in str(error)
        assert isinstance(error, UnavailableError)
        assert error.redirect == "heir:1"
        assert session.verdict(verify(1, 3, [])).outcome == pb.OUTCOME_VERIFIED
        session.half_close()
        assert list(session.call) == []
        assert server.process.wait(60) == 0


def batch(stub: VerifierStub, **entry: Any) -> pb.VerifyBatchResult:
    request = pb.VerifyBatchRequest(entries=[pb.VerifyBatchEntry(**entry)])
    (result,) = stub.VerifyBatch(request, timeout=60).results
    return result


def test_a_draining_server_keeps_a_unary_session_that_is_used_and_ends_one_that_is_not(
    tiny_pair: Pair,
) -> None:
    with (
        serving(tiny_pair.target, "--set", "cloud.drain_seconds=1000") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = VerifierStub(channel)
        batch(stub, open=opening())
        used = batch(stub, open=opening(200)).session_token
        server.process.send_signal(signal.SIGTERM)
        while is_serving(channel):
            pass
        for step in range(100):  # as a client goes on that is in the middle of a text
            result = batch(stub, session_token=used, verify=verify(1 + step, 3 + step, []))
            assert result.verdict.outcome == pb.OUTCOME_VERIFIED
        assert batch(stub, session_token=used, close=True).error.reason == ""
        assert server.process.wait(60) == 0  # drain_seconds is far: the other one was ended
    assert sorted(endings(server)) == ["DONE", "EVICTED"]


def test_what_ended_a_unary_session_stands_in_the_log(tiny_pair: Pair) -> None:
    with (
        serving(tiny_pair.target) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = VerifierStub(channel)
        assert batch(stub, open=opening(), close=True).error.reason == ""
        failed = batch(stub, open=opening(), verify=verify(1, 1, []))
        assert failed.error.reason == "INVALID_REQUEST"
        batch(stub, open=opening())  # and leaves it
    assert endings(server) == ["DONE", "INVALID_REQUEST", "EVICTED"]


def test_a_second_sigterm_ends_it_with_sessions_open(tiny_pair: Pair) -> None:
    with (
        serving(tiny_pair.target, "--set", "cloud.drain_seconds=1000") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        session = Session(VerifierStub(channel))
        session.ask(open=opening())
        server.process.send_signal(signal.SIGTERM)
        while is_serving(channel):
            pass
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        with pytest.raises(grpc.RpcError):
            next(session.call)


def test_it_says_what_it_is_doing_and_logs_who_came_and_went(tiny_pair: Pair) -> None:
    with (
        serving(tiny_pair.target) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        session = Session(VerifierStub(channel))
        session.ask(open=opening())
        session.verdict(verify(1, 3, []))
        server.process.send_signal(signal.SIGUSR1)
        session.verdict(verify(2, 4, []))
        session.half_close()
        assert list(session.call) == []
        assert wait_for_rest(server) == {}
        with urllib.request.urlopen(f"http://{server.metrics}/metrics") as page:
            counted = page.read().decode()
    log = "".join(server.log)
    assert "outrider-cloud: serving\n" in log
    assert "1 of 64 sessions, 0 tokens in flight" in log
    assert "1 sessions of 127.0.0.1" in log
    opened = next(line for line in server.log if " opened session=" in line)
    name = opened.split("session=")[1].split()[0]
    ended = next(line for line in server.log if f" ended session={name} " in line)
    assert "kind=session client=127.0.0.1 tokens=3" in opened
    assert "slot=" in ended
    assert "step=" in ended
    assert "reason=DONE" in ended
    for error in leaves(OutriderError):
        assert f'outrider_request_errors_total{{reason="{error.reason}"}} 0.0' in counted
    assert 'outrider_phase{outrider_phase="serving"} 1.0' in counted
    assert "outrider_build_info{" in counted

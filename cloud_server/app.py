"""The server process: puts the parts together, says READY, and drains when told to."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version

import grpc
import grpc.aio
import torch
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from cloud_server.access import Access, read_access
from cloud_server.admission import Admission
from cloud_server.authentication import AuthenticationInterceptor
from cloud_server.engine import CloudModel, Engine
from cloud_server.generate import StockGenerator
from cloud_server.host import Host
from cloud_server.interceptors import ErrorInterceptor
from cloud_server.lifecycle import Lifecycle
from cloud_server.metrics import Metrics
from cloud_server.servicer import VerifierServicer
from common import PROTOCOL_VERSION
from common.config import CloudSection, Config
from common.errors import ConfigError, UnavailableError
from common.lm import precision
from common.lm.runner import LanguageModel
from common.types import ServerInfo
from outrider.v1 import verifier_pb2, verifier_pb2_grpc

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""How long the last answers of a drained server may take to leave it."""
POLL_SECONDS = 0.02

SERVICE = verifier_pb2.DESCRIPTOR.services_by_name["Verifier"].full_name


def serve(model_path: str, config: Config) -> None:
    """Serves until SIGTERM or SIGINT has drained it; prints the one READY line on stdout."""
    cloud = config.cloud
    if cloud.token_budget <= cloud.max_draft_tokens:
        raise ConfigError(
            f"cloud.token_budget = {cloud.token_budget} must exceed cloud.max_draft_tokens = "
            f"{cloud.max_draft_tokens}: a draft and its bonus token share one forward"
        )
    access = read_access(_split(cloud.listen, "listen")[0], config.security)
    # A hangup before the loop runs is answered by the tokens being read again when it does.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asyncio.run(_serve(model_path, cloud, access))


def load_target(model_path: str, cloud: CloudSection) -> CloudModel:
    """Loads the target as configured."""
    return CloudModel(
        model_path,
        dtype=cloud.dtype,
        device=cloud.device,
        threads=cloud.threads,
        cache_tokens=cloud.cache_tokens,
        trust_remote_code=cloud.trust_remote_code,
        allow_pickle=cloud.allow_pickle,
    )


async def _serve(model_path: str, cloud: CloudSection, access: Access) -> None:
    metrics = Metrics()
    servicer = VerifierServicer()
    lifecycle = Lifecycle(SERVICE, metrics)
    _reload_on_hangup(access)
    async with (
        _metrics_server(cloud, metrics) as metrics_address,
        _grpc_server(cloud, servicer, lifecycle, metrics, access) as (server, address),
    ):
        told_to_stop = _signals(lambda: _say_what_is_done(lifecycle))
        model = await _unless_stopped(
            _in_background(lambda: load_target(model_path, cloud)), told_to_stop
        )
        if model is None:
            return
        host = _host(model, cloud, metrics)
        metrics.describe(host.info, lambda: host.engine.cache_tokens_in_use)
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGUSR1, _say_what_is_done, lifecycle, host
        )
        servicer.begin(host, StockGenerator(model.stock, host.info.vocab_size, host.clock))
        host.engine.start()
        tasks = [
            asyncio.create_task(servicer.expire_idle()),
            asyncio.create_task(
                lifecycle.watch(host.engine, cloud.watchdog_seconds, time.monotonic_ns)
            ),
        ]
        await lifecycle.enter("serving")
        print(f"READY grpc={address} metrics={metrics_address}", flush=True)
        await told_to_stop.get()
        logger.info("draining for at most %s s; a second signal stops at once", cloud.drain_seconds)
        await lifecycle.enter("draining")
        host.admission.closed = "this server is draining; ask another one"
        drained = asyncio.ensure_future(_guests_gone(host, servicer))
        again = asyncio.ensure_future(told_to_stop.get())
        await asyncio.wait(
            [drained, again], timeout=cloud.drain_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        await server.stop(FLUSH_SECONDS if drained.done() else 0)
        for task in (*tasks, drained, again):
            task.cancel()
        await servicer.close()
        host.engine.stop(FLUSH_SECONDS)


async def _unless_stopped(
    loading: Awaitable[CloudModel], told_to_stop: asyncio.Queue[int]
) -> CloudModel | None:
    """Returns the model, or None when SIGTERM comes before it is there; Ctrl-C is raised."""
    loaded = asyncio.ensure_future(loading)
    told = asyncio.ensure_future(told_to_stop.get())
    await asyncio.wait([loaded, told], return_when=asyncio.FIRST_COMPLETED)
    if not told.done():
        told.cancel()
        return await loaded
    loaded.cancel()
    if told.result() == signal.SIGINT:
        raise KeyboardInterrupt
    return None


def _host(model: CloudModel, cloud: CloudSection, metrics: Metrics) -> Host:
    engine = Engine(
        model,
        token_budget=cloud.token_budget,
        prefill_chunk=cloud.prefill_chunk,
        clock=time.monotonic_ns,
        on_step=metrics.observe_step,
    )
    return Host(
        engine=engine,
        loaded=model.loaded,
        info=describe(model, cloud, model.precision),
        limits=cloud,
        metrics=metrics,
        clock=time.monotonic_ns,
        admission=Admission(cloud),
    )


async def _in_background(load: Callable[[], CloudModel]) -> CloudModel:
    """Runs what blocks on a thread that does not outlive the process."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[CloudModel] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not loaded.done():
            set_it()

    def run() -> None:
        try:
            model = load()
        except BaseException as error:
            outcome = partial(loaded.set_exception, error)  # raised again where it is awaited
        else:
            outcome = partial(loaded.set_result, model)
        with suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await loaded


async def _guests_gone(host: Host, servicer: VerifierServicer) -> None:
    while host.admission.guests:
        await servicer.close()
        await asyncio.sleep(POLL_SECONDS)


def _say_what_is_done(lifecycle: Lifecycle, host: Host | None = None) -> None:
    lines = [f"{lifecycle.phase}{', stuck' if lifecycle.is_stuck else ''}"]
    lines += [] if host is None else host.work()
    print("\n".join(f"outrider-cloud: {line}" for line in lines), file=sys.stderr, flush=True)


def _signals(say_what_is_done: Callable[[], None]) -> asyncio.Queue[int]:
    received: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received.put_nowait, number)
    loop.add_signal_handler(signal.SIGUSR1, say_what_is_done)
    return received


def _reload_on_hangup(access: Access) -> None:
    def ignore() -> None:
        logger.info("SIGHUP: there is no security.token_file to read again; nothing changes")

    reload = access.credentials.reload if access.credentials else ignore
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    if access.credentials:
        reload()


@asynccontextmanager
async def _metrics_server(cloud: CloudSection, metrics: Metrics) -> AsyncIterator[str]:
    host, port = _split(cloud.metrics_listen, "metrics_listen")
    try:
        server, thread = start_http_server(port, host, registry=metrics.registry)
    except OSError as error:
        raise _cannot_listen("metrics_listen", cloud.metrics_listen, error) from None
    try:
        yield _address(host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@asynccontextmanager
async def _grpc_server(
    cloud: CloudSection,
    servicer: VerifierServicer,
    lifecycle: Lifecycle,
    metrics: Metrics,
    access: Access,
) -> AsyncIterator[tuple[grpc.aio.Server, str]]:
    def count(reason: str) -> None:
        metrics.errors.labels(reason).inc()

    guard = [AuthenticationInterceptor(access.credentials, count)] if access.credentials else []
    server = grpc.aio.server(
        interceptors=[*guard, ErrorInterceptor(count)],
        options=[
            ("grpc.max_receive_message_length", cloud.max_message_bytes),
            ("grpc.max_send_message_length", cloud.max_message_bytes),
            ("grpc.so_reuseport", 0),
            # A client that vanished without a word is noticed, and its session freed; and it may
            # ask as often whether the server is there.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ],
    )
    verifier_pb2_grpc.add_VerifierServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(lifecycle.service, server)
    await lifecycle.enter("loading")
    reflection.enable_server_reflection((SERVICE, HEALTH, reflection.SERVICE_NAME), server)
    host, _ = _split(cloud.listen, "listen")
    try:
        port = (
            server.add_secure_port(cloud.listen, access.tls)
            if access.tls
            else server.add_insecure_port(cloud.listen)
        )
    except RuntimeError as error:
        raise _cannot_listen("listen", cloud.listen, error) from None
    await server.start()
    try:
        yield server, _address(host, port)
    finally:
        await server.stop(0)


def _split(address: str, key: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(
            f"cloud.{key} = {address!r}: write it as HOST:PORT (port 0: any free one)"
        )
    return host.strip("[]"), int(port)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cannot_listen(key: str, address: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"cannot listen on {address} ({error}); choose another address with cloud.{key}, "
        "or port 0 for any free one"
    )


def describe(
    model: LanguageModel, cloud: CloudSection, policy: precision.PrecisionReport
) -> ServerInfo:
    """States what this server is, as GetServerInfo answers it."""
    loaded = model.loaded
    environment = {name: version(name) for name in ("torch", "transformers", "grpcio", "protobuf")}
    return ServerInfo(
        protocol_version=PROTOCOL_VERSION,
        server_version=version("outrider"),
        model_name=loaded.short_name,
        model_fingerprint=loaded.model_fingerprint,
        tokenizer_fingerprint=loaded.tokenizer_fingerprint,
        vocab_size=loaded.vocab_size,
        dtype=precision.dtype_name(model.dtype),
        cache_dtype=precision.dtype_name(model.cache.dtype),
        checkpoint_dtype=loaded.checkpoint_dtype,
        device=_device_name(loaded.device),
        context_length=loaded.context_length,
        eos_token_ids=loaded.eos_token_ids,
        max_sessions=cloud.max_sessions,
        max_draft_tokens=cloud.max_draft_tokens,
        token_budget=cloud.token_budget,
        cache_tokens=cloud.cache_tokens,
        max_message_bytes=cloud.max_message_bytes,
        idle_session_seconds=cloud.idle_session_seconds,
        precision=policy.settings,
        environment=environment
        | {
            "python": platform.python_version(),
            "threads": str(torch.get_num_threads()),
            "cores": str(_cores()),
            "platform": f"{sys.platform} {platform.machine()}",
        },
    )


def _cores() -> int | None:
    # Linux alone knows the cores of this process.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)

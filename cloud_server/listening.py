"""The addresses a server listens on, and the two listeners: gRPC and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from cloud_server.access import Access
from cloud_server.authentication import AuthenticationInterceptor
from cloud_server.calls import CallLimitInterceptor
from cloud_server.interceptors import ErrorInterceptor
from cloud_server.lifecycle import Lifecycle
from cloud_server.metrics import Metrics
from cloud_server.servicer import VerifierServicer
from common.config import CloudSection
from common.errors import ConfigError, UnavailableError
from outrider.v1 import verifier_pb2, verifier_pb2_grpc

SERVICE = verifier_pb2.DESCRIPTOR.services_by_name["Verifier"].full_name


@asynccontextmanager
async def metrics_server(cloud: CloudSection, metrics: Metrics) -> AsyncIterator[str]:
    """Serves the metrics for the length of an `async with` block; yields the address."""
    host, port = split(cloud.metrics_listen, "metrics_listen")
    try:
        server, thread = start_http_server(port, host, registry=metrics.registry)
    except OSError as error:
        raise _cannot_listen("metrics_listen", cloud.metrics_listen, error) from None
    try:
        yield joined(host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@asynccontextmanager
async def grpc_server(
    cloud: CloudSection,
    servicer: VerifierServicer,
    lifecycle: Lifecycle,
    metrics: Metrics,
    access: Access,
) -> AsyncIterator[tuple[grpc.aio.Server, str]]:
    """Serves calls for the length of an `async with` block; yields the server and its address."""

    def count(reason: str) -> None:
        metrics.errors.labels(reason).inc()

    guard = [AuthenticationInterceptor(access.credentials, count)] if access.credentials else []
    errors = ErrorInterceptor(count, cloud.idle_session_seconds)
    server = grpc.aio.server(
        interceptors=[*guard, CallLimitInterceptor(cloud, count), errors],
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
    host, _ = split(cloud.listen, "listen")
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
        yield server, joined(host, port)
    finally:
        await server.stop(0)


def split(address: str, key: str) -> tuple[str, int]:
    """Returns host and port; raises ConfigError for what is not HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(
            f"cloud.{key} = {address!r}: write it as HOST:PORT (port 0: any free one)"
        )
    return host.strip("[]"), int(port)


def check_redirect(address: str) -> None:
    """Raises ConfigError for what is no HOST:PORT of another server."""
    try:
        _, port = split(address, "redirect")
    except ConfigError:
        port = 0
    if port == 0:
        raise ConfigError(
            f"cloud.redirect = {address!r}: write it as HOST:PORT, as clients name that server, "
            "or leave it out"
        )


def joined(host: str, port: int) -> str:
    """Writes an address as `split` reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cannot_listen(key: str, address: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"cannot listen on {address} ({error}); choose another address with cloud.{key}, "
        "or port 0 for any free one"
    )

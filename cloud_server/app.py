"""The server process: puts the parts together, says READY, and drains when told to."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from cloud_server.access import Access, read_access
from cloud_server.admission import Admission
from cloud_server.description import describe
from cloud_server.engine import Engine
from cloud_server.generate import StockGenerator
from cloud_server.host import Host
from cloud_server.lifecycle import Lifecycle
from cloud_server.listening import SERVICE, check_redirect, grpc_server, metrics_server, split
from cloud_server.metrics import Metrics
from cloud_server.model import CloudModel
from cloud_server.servicer import VerifierServicer
from cloud_server.unary import UnarySessions
from common.config import CloudSection, Config
from common.errors import ConfigError
from common.lm.execution import COMPILING

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""How long the last answers of a drained server may take to leave it."""
POLL_SECONDS = 0.02
UNUSED_SECONDS = 2.0
"""How long a draining server keeps a session without a stream that no call uses: a client in the
middle of a text comes back after a draft and a way through the network."""


def serve(model_path: str, config: Config) -> None:
    """Serves until SIGTERM or SIGINT has drained it; prints the one READY line on stdout."""
    cloud = config.cloud
    if cloud.token_budget <= cloud.max_draft_tokens:
        raise ConfigError(
            f"cloud.token_budget = {cloud.token_budget} must exceed cloud.max_draft_tokens = "
            f"{cloud.max_draft_tokens}: a draft and its bonus token share one forward"
        )
    if cloud.redirect is not None:
        check_redirect(cloud.redirect)
    access = read_access(split(cloud.listen, "listen")[0], config.security)
    # A hangup before the loop runs is answered by the tokens being read again when it does.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asyncio.run(_serve(model_path, config, access))
    if any(thread.name == COMPILING for thread in threading.enumerate()):
        # The compiler's own threads abort the process when the interpreter ends below them.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def load_target(model_path: str, config: Config) -> CloudModel:
    """Loads the target as configured."""
    cloud = config.cloud
    model = CloudModel(
        model_path,
        dtype=cloud.dtype,
        device=cloud.device,
        threads=cloud.threads,
        cache_tokens=cloud.cache_tokens,
        trust_remote_code=cloud.trust_remote_code,
        allow_pickle=cloud.allow_pickle,
        compile_mode=config.engine.compile,
    )
    if config.engine.compile == "on":
        model.compile()
    return model


async def _serve(model_path: str, config: Config, access: Access) -> None:
    cloud = config.cloud
    metrics = Metrics()
    servicer = VerifierServicer()
    lifecycle = Lifecycle(SERVICE, metrics)
    _reload_on_hangup(access)
    async with (
        metrics_server(cloud, metrics) as metrics_address,
        grpc_server(cloud, servicer, lifecycle, metrics, access) as (server, address),
    ):
        told_to_stop = _signals(lambda: _say_what_is_done(lifecycle))
        model = await _unless_stopped(
            _in_background(lambda: load_target(model_path, config)), told_to_stop
        )
        if model is None:
            return
        host = _host(model, cloud, metrics)
        metrics.describe(host.info, lambda: host.engine.cache_tokens_in_use)
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGUSR1, _say_what_is_done, lifecycle, host
        )
        stock = StockGenerator(model.stock, host.info.vocab_size, host.clock)
        unary = servicer.begin(host, stock)
        host.engine.start()
        model.compile_meanwhile()
        tasks = [
            asyncio.create_task(unary.expire_idle()),
            asyncio.create_task(
                lifecycle.watch(
                    {"engine": host.engine, "stock": stock},
                    cloud.watchdog_seconds,
                    time.monotonic_ns,
                )
            ),
        ]
        await lifecycle.enter("serving")
        print(f"READY grpc={address} metrics={metrics_address}", flush=True)
        await told_to_stop.get()
        logger.info("draining for at most %s s; a second signal stops at once", cloud.drain_seconds)
        await lifecycle.enter("draining")
        host.admission.closed = "this server is draining; ask another one"
        drained = asyncio.ensure_future(_guests_gone(host, unary))
        again = asyncio.ensure_future(told_to_stop.get())
        await asyncio.wait(
            [drained, again], timeout=cloud.drain_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        await server.stop(FLUSH_SECONDS if drained.done() else 0)
        for task in (*tasks, drained, again):
            task.cancel()
        await unary.close_all()
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
        execution=model.execution,
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


async def _guests_gone(host: Host, unary: UnarySessions) -> None:
    while host.admission.guests:
        await unary.close_unused(UNUSED_SECONDS)
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

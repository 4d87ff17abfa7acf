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
from cloud_server.drafting import Drafting
from cloud_server.engine import Engine
from cloud_server.generate import StockGenerator
from cloud_server.host import Host
from cloud_server.lifecycle import Lifecycle
from cloud_server.listening import SERVICE, check_redirect, grpc_server, metrics_server, split
from cloud_server.metrics import Metrics
from cloud_server.model import CloudModel, load_draft, load_target
from cloud_server.servicer import VerifierServicer
from cloud_server.unary import UnarySessions
from common.config import CloudSection, Config
from common.errors import ConfigError
from common.lm.execution import COMPILING
from common.lm.runner import LanguageModel, compile_meanwhile

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""How long the last answers of a drained server may take to leave it."""
POLL_SECONDS = 0.02
UNUSED_SECONDS = 2.0
"""How long a draining server keeps a session without a stream that no call uses: a client in the
middle of a text comes back after a draft and a way through the network."""


Models = tuple[CloudModel, LanguageModel | None]
"""The target, and the draft model beside it where there is one."""


def serve(model_path: str, config: Config, draft_path: str | None = None) -> None:
    """Serves until SIGTERM or SIGINT has drained it; prints the one READY line on stdout.

    `draft_path` names the draft model of the arm `cloud_assisted`; None: there is none.
    """
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
    load = partial(_load, model_path, draft_path, config)
    asyncio.run(_serve(load, cloud, access))
    if any(thread.name == COMPILING for thread in threading.enumerate()):
        # The compiler's own threads abort the process when the interpreter ends below them.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _load(model_path: str, draft_path: str | None, config: Config) -> Models:
    target = load_target(model_path, config)
    return target, None if draft_path is None else load_draft(draft_path, target, config)


async def _serve(load: Callable[[], Models], cloud: CloudSection, access: Access) -> None:
    metrics = Metrics()
    servicer = VerifierServicer()
    lifecycle = Lifecycle(SERVICE, metrics)
    _reload_on_hangup(access)
    async with (
        metrics_server(cloud, metrics) as metrics_address,
        grpc_server(cloud, servicer, lifecycle, metrics, access) as (server, address),
    ):
        told_to_stop = _signals(lambda: _say_what_is_done(lifecycle))
        models = await _unless_stopped(_in_background(load), told_to_stop)
        if models is None:
            return
        host = _host(models, cloud, metrics)
        drafting = host.drafting
        metrics.describe(
            host.info,
            lambda: host.engine.cache_tokens_in_use,
            lambda: 0 if drafting is None else drafting.cache_tokens_in_use,
        )
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGUSR1, _say_what_is_done, lifecycle, host
        )
        stock = StockGenerator(models[0].stock, host.info.vocab_size, host.clock)
        unary = servicer.begin(host, stock)
        host.engine.start()
        compile_meanwhile(*(model for model in models if model is not None))
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
        host.engine.hurry()
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
    loading: Awaitable[Models], told_to_stop: asyncio.Queue[int]
) -> Models | None:
    """Returns the models, or None when SIGTERM comes before they are there; Ctrl-C is raised."""
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


def _host(models: Models, cloud: CloudSection, metrics: Metrics) -> Host:
    model, draft = models
    drafting = None
    if draft is not None:
        drafting = Drafting(
            draft,
            token_budget=cloud.token_budget,
            prefill_chunk=cloud.prefill_chunk,
            clock=time.monotonic_ns,
            on_forward=metrics.observe_draft_step,
        )
    engine = Engine(
        model,
        token_budget=cloud.token_budget,
        prefill_chunk=cloud.prefill_chunk,
        clock=time.monotonic_ns,
        on_step=metrics.observe_step,
        drafting=drafting,
        window_ns=round(cloud.batch_window_ms * 1e6),
    )
    return Host(
        engine=engine,
        loaded=model.loaded,
        info=describe(model, cloud, model.precision, draft),
        execution=model.execution,
        limits=cloud,
        metrics=metrics,
        clock=time.monotonic_ns,
        admission=Admission(cloud),
        drafting=drafting,
    )


async def _in_background(load: Callable[[], Models]) -> Models:
    """Runs what blocks on a thread that does not outlive the process."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[Models] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not loaded.done():
            set_it()

    def run() -> None:
        try:
            models = load()
        except BaseException as error:
            outcome = partial(loaded.set_exception, error)  # raised again where it is awaited
        else:
            outcome = partial(loaded.set_result, models)
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

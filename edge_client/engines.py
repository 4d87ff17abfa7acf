"""How both models run, once nothing changes any more: a measurement begins then."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from common.lm.execution import COMPILING, DRAFT_ENGINE, ENGINE
from edge_client.app import Assembly
from edge_client.link import Cloud
from edge_client.terminal import note

POLL_S = 0.25


def compile_draft(parts: Assembly) -> str:
    """Compiles the draft model's graphs as configured; returns how it runs, and says why not so."""
    execution = parts.model.execution
    if execution.path == "kernels":
        note("outrider-edge: compiling the draft model's graphs")
    parts.model.compile()
    if execution.note:
        note(f"outrider-edge: the draft model runs as {execution.path}: {execution.note}")
    return execution.path


@dataclass(frozen=True, slots=True)
class ServerEngines:
    """Says how a server's models run; None where it has no such model or does not tell."""

    target: str | None = None
    draft: str | None = None


def server_engines(parts: Assembly) -> ServerEngines:
    """Returns how the server's models run, once their graphs are there; None without a server."""
    if parts.cloud is None:
        return ServerEngines()
    engines = _told(parts.cloud)
    if COMPILING in (engines.target, engines.draft):
        note("outrider-edge: waiting for the server to compile its graphs")
    while COMPILING in (engines.target, engines.draft):
        threading.Event().wait(POLL_S)
        engines = _told(parts.cloud)
    return engines


def _told(cloud: Cloud) -> ServerEngines:
    environment = cloud.info().environment
    return ServerEngines(environment.get(ENGINE), environment.get(DRAFT_ENGINE))

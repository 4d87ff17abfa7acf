"""How both models run, once nothing changes any more: a measurement begins then."""

from __future__ import annotations

import threading

from common.lm.execution import COMPILING, ENGINE
from edge_client.app import Assembly
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


def target_engine(parts: Assembly) -> str | None:
    """Returns how the server's model runs, when its graphs are there; None without a server."""
    if parts.cloud is None:
        return None
    engine = parts.cloud.info().environment.get(ENGINE)
    if engine == COMPILING:
        note("outrider-edge: waiting for the server to compile its graphs")
    while engine == COMPILING:
        threading.Event().wait(POLL_S)
        engine = parts.cloud.info().environment.get(ENGINE)
    return engine

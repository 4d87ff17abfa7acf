"""What a server shows from outside: memory, metrics, and whether it is at rest."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

from tests.integration.processes import Server

SESSIONS = "outrider_num_requests_running"
CACHE = "outrider_kv_cache_used_tokens"
INTERNAL = 'outrider_request_errors_total{reason="INTERNAL"}'
ASKS = 20_000
"""How often a server may be asked whether it is at rest; each ask is a round trip."""


def resident_bytes(server: Server) -> int:
    """Returns the resident memory of the process (Linux), 0 once it has ended."""
    if server.process.poll() is not None:
        return 0
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def metric(server: Server, name: str) -> float | None:
    """Returns a metric, named with its labels, or None where the server has none of that name."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=30) as page:
        found = re.search(rf"^{re.escape(name)} (\S+)$", page.read().decode(), re.MULTILINE)
    return float(found[1]) if found else None


def in_use(server: Server) -> dict[str, float]:
    """Returns what the server holds for clients and is not zero."""
    return {name: held for name in (SESSIONS, CACHE) if (held := metric(server, name))}


def wait_for_rest(server: Server) -> dict[str, float]:
    """Asks until nothing is in use or ASKS are spent; returns what is left."""
    left: dict[str, float] = {}
    for _ in range(ASKS):
        left = in_use(server)
        if not left:
            break
    return left


def last_faults(server: Server) -> list[str]:
    """Returns what must not be when all clients have gone: a death, things held, own errors."""
    if server.process.poll() is not None:
        return [f"the server is gone: {server.process.returncode}", *tracebacks(server)]
    left = wait_for_rest(server)
    internal = metric(server, INTERNAL)
    return [
        *([f"held at the end: {left}"] if left else []),
        *([f"the server counts {internal:g} INTERNAL errors"] if internal else []),
        *tracebacks(server),
    ]


def tracebacks(server: Server) -> list[str]:
    """Returns the lines of the log that begin a traceback, each with what follows."""
    log = server.log
    return ["".join(log[at - 1 : at + 40]) for at, line in enumerate(log) if "Traceback" in line]

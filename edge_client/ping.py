"""`outrider-edge ping`: round trips of an idle link, at any message size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from common.config import Config
from common.errors import ConfigError, InternalError
from edge_client.app import connect
from edge_client.experiments.records import Percentiles, percentiles

_WARM_UP = 3  # the first calls carry the connection's own beginnings, and are not counted


def ping(config: Config, *, servers: Sequence[str], count: int, payload: int, as_json: bool) -> int:
    """Measures `count` echoes of `payload` bytes, one after the other.

    Prints p50, p95 and p99 of what the client saw, and of network time: that minus
    what the server says it took itself.
    """
    with connect(config, servers) as cloud:
        most = cloud.info().max_message_bytes
        if payload > most // 2:
            raise ConfigError(
                f"--payload-bytes {payload}: this server takes messages up to {most} bytes; "
                f"ask for at most {most // 2}"
            )
        for _ in range(_WARM_UP):
            cloud.echo(bytes(payload))
        echoes = [cloud.echo(bytes(payload)) for _ in range(count)]
    elapsed = percentiles(elapsed / 1e6 for elapsed, _ in echoes)
    network = percentiles((elapsed - server_ns) / 1e6 for elapsed, server_ns in echoes)
    if elapsed is None or network is None:
        raise InternalError(f"{count} echoes, and nothing measured")
    if as_json:
        print(
            json.dumps(
                {
                    "server": cloud.address,
                    "count": count,
                    "payload_bytes": payload,
                    "elapsed_ms": asdict(elapsed),
                    "network_ms": asdict(network),
                }
            )
        )
    else:
        print(f"{count} round trips of {payload} bytes to {cloud.address}")
        print(_line("elapsed", elapsed))
        print(_line("network", network))
    return 0


def _line(name: str, spread: Percentiles) -> str:
    return f"{name}  p50 {spread.p50:.3f} ms  p95 {spread.p95:.3f} ms  p99 {spread.p99:.3f} ms"

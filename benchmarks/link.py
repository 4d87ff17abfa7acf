"""Whether `outrider-link` behaves as asked: round trips, rates, and what it costs by itself.

    python -m benchmarks.link --out docs/results/link.md

A plain TCP server answers echoes and sends bytes; a client on the same machine talks to it directly
and through the relay, which runs as the process users start.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from benchmarks.tables import Table, environment

Address = tuple[str, int]
ROUND_TRIPS_MS = (0, 1, 5, 10, 20, 50, 100, 200)
RATES_MBIT = (1, 5, 20, 100)
ECHOES = 50
PAYLOAD = 64


def serve() -> Address:
    """Starts a server that echoes, and that sends or takes in so many bytes when asked to."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while request := client.recv(PAYLOAD):
            if request.startswith(b"send "):
                client.sendall(bytes(int(request.split()[1])))
            elif request.startswith(b"take "):
                drain(client, int(request.split()[1]))
                client.sendall(b"done")
            else:
                client.sendall(request)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    host, port = listener.getsockname()
    return host, port


@contextmanager
def relayed(target: Address, *flags: str) -> Iterator[Address]:
    """Starts `outrider-link` in front of a server."""
    command = [sys.executable, "-m", "edge_client.relay.cli", "--listen", "127.0.0.1:0"]
    command += ["--to", f"{target[0]}:{target[1]}", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as relay:
        assert relay.stdout is not None
        host, _, port = relay.stdout.readline().strip().partition("=")[2].rpartition(":")
        try:
            yield host, int(port)
        finally:
            relay.terminate()


def connect(to: Address) -> socket.socket:
    """Connects without delaying small writes."""
    client = socket.create_connection(to)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def round_trips_ms(to: Address) -> list[float]:
    """Times echoes one after the other, after three that are not counted."""
    with connect(to) as client:
        times = []
        for _ in range(ECHOES + 3):
            started = time.perf_counter()
            client.sendall(bytes(PAYLOAD))
            drain(client, PAYLOAD)
            times.append(1e3 * (time.perf_counter() - started))
    return times[3:]


def drain(client: socket.socket, size: int) -> None:
    """Reads so many bytes."""
    while size > 0:
        size -= len(client.recv(min(size, 65536)))


def down_mbit(to: Address, size: int) -> float:
    """Measures how fast bytes come down, from the first of them on."""
    with connect(to) as client:
        client.sendall(f"send {size}".encode())
        first = len(client.recv(65536))
        started = time.perf_counter()
        drain(client, size - first)
        return 8e-6 * (size - first) / (time.perf_counter() - started)


def up_mbit(to: Address, size: int) -> float:
    """Measures how fast bytes go up, until the server has the last of them."""
    with connect(to) as client:
        client.sendall(f"take {size}".encode().ljust(PAYLOAD))
        started = time.perf_counter()
        client.sendall(bytes(size))
        drain(client, 4)
        return 8e-6 * size / (time.perf_counter() - started)


def round_trip_table(server: Address) -> Table:
    """Compares round trips with what was asked for."""
    table = Table("asked", "median", "p95", "median - asked", "allowed: 1 ms + 2 %")
    direct = statistics.median(round_trips_ms(server))
    table.add("no relay", f"{direct:.3f} ms", "", "", "")
    for asked in tqdm(ROUND_TRIPS_MS, desc="round trips"):
        with relayed(server, "--rtt", f"{asked}ms") as address:
            times = round_trips_ms(address)
        median = statistics.median(times)
        within = abs(median - asked) <= 1 + 0.02 * asked
        table.add(
            f"{asked} ms",
            f"{median:.2f} ms",
            f"{statistics.quantiles(times, n=20)[-1]:.2f} ms",
            f"{median - asked:.2f} ms",
            "within" if within else "MISSED",
        )
    return table


def rate_table(server: Address) -> Table:
    """Compares rates with what was asked for, two seconds' worth of bytes each way."""
    table = Table("asked", "down", "up", "allowed: 5 %")
    for asked in tqdm(RATES_MBIT, desc="rates"):
        rate = f"{asked}mbit"
        with relayed(server, "--rtt", "10ms", "--up", rate, "--down", rate) as address:
            down, up = down_mbit(address, asked * 250_000), up_mbit(address, asked * 250_000)
        within = max(abs(down / asked - 1), abs(up / asked - 1)) <= 0.05
        table.add(
            f"{asked} Mbit/s",
            f"{down:.2f} Mbit/s",
            f"{up:.2f} Mbit/s",
            "within" if within else "MISSED",
        )
    return table


PAGE = """# The relay, held against what was asked of it

Made by `python -m benchmarks.link`: {echoes} echoes of {payload} bytes one after the other, and two
seconds' worth of bytes each way, through `outrider-link` as a process of its own.

{environment}

{round_trips}

{rates}

The row of 0 ms bounds what the relay costs by itself: two more hops through the kernel and two
threads that wake. Where there is a delay, threads wake a little late, each way. Up includes the
round trip before the first byte and after the last.
"""


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    options = parser.parse_args()
    server = serve()
    page = PAGE.format(
        echoes=ECHOES,
        payload=PAYLOAD,
        environment=environment(),
        round_trips=round_trip_table(server),
        rates=rate_table(server),
    )
    options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

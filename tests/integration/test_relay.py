"""The relay over real sockets: every byte, in order, and nothing left open."""

from __future__ import annotations

import random
import socket
import threading

import pytest

from edge_client.relay.profiles import symmetric
from edge_client.relay.relay import Relay
from edge_client.relay.shape import Shape


def echoing() -> tuple[str, int]:
    """Starts a server that sends back what it gets, and ends when the client does."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(client: socket.socket) -> None:
        with client:
            while data := client.recv(65536):
                client.sendall(data)

    def accept() -> None:
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    host, port = listener.getsockname()
    return host, port


def through(relay: Relay, data: bytes) -> bytes:
    """Sends all, says that it was all, and reads to the end."""
    with socket.create_connection(relay.address) as client:
        writer = threading.Thread(target=client.sendall, args=(data,))
        writer.start()
        received = bytearray()
        while len(received) < len(data):
            received += client.recv(65536)
        writer.join()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    return bytes(received)


@pytest.mark.parametrize(
    "shapes",
    [
        symmetric(0.0, 0.0, None, None),
        symmetric(0.004, 0.002, 4e6, 8e6),
        (Shape(rate=4e6, buffer=4096), Shape(trace=(1, 1, 2, 3))),
    ],
    ids=["no limits", "rates", "small buffer, trace"],
)
def test_every_byte_arrives_in_order_and_the_end_does_too(shapes: tuple[Shape, Shape]) -> None:
    relay = Relay(("127.0.0.1", 0), echoing(), *shapes)
    relay.start()
    data = random.Random(1).randbytes(200_000)
    assert through(relay, data) == data
    assert (relay.carried.up, relay.carried.down) == (len(data), len(data))
    relay.close()


def test_connections_leave_nothing_open() -> None:
    relay = Relay(("127.0.0.1", 0), echoing(), *symmetric(0.0, 0.0, None, None))
    relay.start()
    for number in range(20):
        assert through(relay, b"x" * number) == b"x" * number
    while relay._open:  # the last threads are on their way out; the suite's timeout watches
        pass
    assert relay.carried.connections == 20
    relay.close()


def test_closing_cuts_what_is_open() -> None:
    relay = Relay(("127.0.0.1", 0), echoing(), *symmetric(0.0, 0.0, None, None))
    relay.start()
    with socket.create_connection(relay.address) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        relay.close()
        assert client.recv(1) == b""

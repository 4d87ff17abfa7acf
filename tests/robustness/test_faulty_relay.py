"""Each fault of the relay is what it says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from tests.robustness.faulty_relay import FaultyRelay, Plan

NEVER = Plan(refuse=0.0, mean_bytes=1e12)
DATA = bytes(range(256)) * 8


def only(fault: str, **others: float) -> Plan:
    """Has one kind of fault, at the first byte."""
    calm = Plan(1e-9, reset=0, stall=0, half_close=0, truncate=0, delay=0, refuse=0)
    return replace(calm, **{fault: 1.0, **others})  # type: ignore[arg-type]


@contextmanager
def listening(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Serves one connection after the other from a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client, suppress(ConnectionError):
                    answer(client)

        threading.Thread(target=accept, daemon=True).start()
        host, port = listener.getsockname()
        yield f"{host}:{port}"
        listener.shutdown(socket.SHUT_RDWR)


def echo(client: socket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data)


@contextmanager
def through(
    plan: Plan, answer: Callable[[socket.socket], object] = echo
) -> Iterator[tuple[FaultyRelay, socket.socket]]:
    with listening(answer) as address, FaultyRelay(address, plan) as relay, dial(relay) as client:
        yield relay, client


def dial(relay: FaultyRelay) -> socket.socket:
    host, _, port = relay.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def received(client: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (more := client.recv(65536)):
        data += more
    return data


def test_without_faults_it_passes_on_every_byte_and_the_end() -> None:
    with through(NEVER) as (relay, client):
        client.sendall(DATA)
        assert received(client, len(DATA)) == DATA
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert not relay.counts


def test_refuse_closes_at_once() -> None:
    with through(Plan(refuse=1.0)) as (relay, client):
        assert client.recv(1) == b""
    assert relay.counts["refuse"] == 1


def test_reset_is_a_reset_and_not_an_end() -> None:
    with through(only("reset")) as (relay, client):
        client.sendall(DATA)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert relay.counts["reset"] == 1


def test_truncate_passes_on_a_part_and_closes() -> None:
    got: list[bytes] = []
    done = threading.Event()

    def keep(client: socket.socket) -> None:
        got.append(received(client, len(DATA)))
        done.set()

    with through(only("truncate"), keep) as (_, client):
        client.sendall(DATA)
        assert client.recv(1) == b""
        assert done.wait(30)
    assert len(got[0]) < len(DATA)
    assert DATA.startswith(got[0])


def test_half_close_ends_one_direction_and_leaves_the_other() -> None:
    def answer_at_the_end(client: socket.socket) -> None:
        data = received(client, len(DATA) + 1)  # to the end
        client.sendall(data[:1])

    with through(only("half_close"), answer_at_the_end) as (relay, client):
        client.sendall(DATA)
        assert client.recv(2) == DATA[:1]
    assert relay.counts["half_close"] == 2  # each direction had its own


@pytest.mark.parametrize("for_ever", [0.0, 1.0])
def test_stall_holds_bytes_back_until_it_is_over_or_calm(for_ever: float) -> None:
    with through(only("stall", for_ever=for_ever, stall_s=0.01)) as (relay, client):
        client.sendall(DATA)
        if for_ever:
            while not relay.counts["stall"]:
                pass
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                received(client, len(DATA))
            client.settimeout(30)
            relay.calm()
        assert received(client, len(DATA)) == DATA
    assert relay.counts["stall"] >= 1


def test_delay_loses_nothing() -> None:
    with through(only("delay", delay_s=0.001)) as (relay, client):
        client.sendall(DATA)
        assert received(client, len(DATA)) == DATA
    assert relay.counts["delay"] >= 2


def test_the_same_seed_fails_in_the_same_places() -> None:
    def run() -> dict[str, int]:
        plan = Plan(mean_bytes=3.0, refuse=0.3, half_close=0, stall=0, delay_s=0, seed=5)
        with listening(echo) as address, FaultyRelay(address, plan) as relay:
            for _ in range(10):
                with dial(relay) as client, suppress(ConnectionError):
                    for byte in DATA[:20]:
                        client.sendall(bytes([byte]))
                        if not client.recv(1):
                            break
            return dict(relay.counts)

    assert run() == run()


def test_calm_has_no_further_faults_and_retarget_goes_elsewhere() -> None:
    with (
        listening(echo) as first,
        listening(lambda client: client.sendall(b"second")) as second,
        FaultyRelay(first, only("reset", refuse=1.0)) as relay,
    ):
        relay.calm()
        with dial(relay) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        relay.retarget(second)
        with dial(relay) as client:
            assert received(client, 6) == b"second"
    assert not relay.counts


def test_nobody_there_closes_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        host, port = closed.getsockname()
    with FaultyRelay(f"{host}:{port}", NEVER) as relay, dial(relay) as client:
        assert client.recv(1) == b""
    assert relay.counts["nobody there"] == 1

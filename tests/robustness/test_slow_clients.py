"""Clients that do not read, stop writing, or speak another language hold nobody up."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from common import wire
from common.types import GenerateMode
from outrider.v1 import verifier_pb2 as pb
from tests.integration.processes import Server, serving
from tests.models import Pair
from tests.robustness.clients import by_batches, by_generate, by_session, connected
from tests.robustness.known import Known, openings, references
from tests.robustness.watching import wait_for_rest

FULL = 2**31  # to the context's end
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
"""Has a client take in little that it does not read, so that its server is soon stuck writing."""
PADDING = [1] * 2000
"""Makes requests large, so that the client of such a server is soon stuck writing, too."""


@pytest.fixture(scope="module")
def server(tiny_pair: Pair) -> Iterator[Server]:
    with serving(tiny_pair.target, "--draft-model", str(tiny_pair.draft)) as running:
        yield running


@pytest.fixture(scope="module")
def texts(server: Server) -> list[Known]:
    return references(server.address, openings(4, FULL))


async def all_served(address: str, texts: list[Known]) -> None:
    """Has other clients' texts made, in each way, and compares them."""
    chance = random.Random(1)
    async with connected(address) as stub:
        for known in texts:
            made = await asyncio.gather(
                by_session(stub, known, chance),
                by_batches(stub, known, chance),
                by_generate(stub, known, GenerateMode.OPTIMIZED),
            )
            assert [tuple(tokens) for tokens in made] == [known.tokens] * 3


def test_a_session_that_reads_no_answers_holds_nobody_up(
    server: Server, texts: list[Known]
) -> None:
    async def run() -> None:
        async with connected(server.address, *SMALL_WINDOW) as stub:
            slow: Any = stub.Session()
            opening = wire.open_to_proto(texts[0].opening)
            await slow.write(pb.SessionRequest(open=opening))
            request = pb.VerifyRequest(step_id=1, position=texts[0].prompt_length)
            written = 0

            async def pile_up() -> None:
                nonlocal written
                while True:  # the model works once; each repeat is answered from memory
                    await slow.write(pb.SessionRequest(verify=request))
                    request.confirmed_token_ids[:] = PADDING
                    written += 1

            writing = asyncio.ensure_future(pile_up())
            before = -1
            while written != before:  # else both ends are stuck
                before = written
                await all_served(server.address, texts[:1])
            await all_served(server.address, texts)
            assert not slow.done()
            assert not writing.done()
            writing.cancel()
            slow.cancel()

    asyncio.run(run())
    assert not wait_for_rest(server)


@pytest.mark.parametrize("mode", GenerateMode)
def test_a_generation_that_is_not_read_holds_nobody_up(
    server: Server, texts: list[Known], mode: GenerateMode
) -> None:
    async def run() -> None:
        async with connected(server.address) as stub:
            slow: Any = stub.Generate(wire.generate_to_proto(mode, texts[0].opening))
            await slow.read()
            await all_served(server.address, texts)
            assert not slow.done()
            slow.cancel()

    asyncio.run(run())
    assert not wait_for_rest(server)


def test_clients_that_stop_writing_hold_nobody_up(server: Server, texts: list[Known]) -> None:
    async def run() -> None:
        async with connected(server.address) as stub:
            silent: Any = stub.Session()
            opened: Any = stub.Session()
            await opened.write(pb.SessionRequest(open=wire.open_to_proto(texts[0].opening)))
            await opened.read()
            await all_served(server.address, texts)
            assert not silent.done()
            assert not opened.done()
            silent.cancel()
            opened.cancel()

    asyncio.run(run())
    assert not wait_for_rest(server)


@pytest.mark.parametrize(
    "words",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM", bytes(range(256)) * 40],
    ids=["nothing", "HTTP/1", "half a preface", "junk"],
)
def test_connections_that_speak_something_else_hold_nobody_up(
    server: Server, texts: list[Known], words: bytes
) -> None:
    host, _, port = server.address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(20):
            one = stack.enter_context(socket.create_connection((host, int(port))))
            with suppress(ConnectionError):  # the server may hang up on it
                one.sendall(words)
        asyncio.run(all_served(server.address, texts[:2]))

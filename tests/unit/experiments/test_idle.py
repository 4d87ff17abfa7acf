"""The idle link is timed at the sizes of real messages, by the client's clock."""

from __future__ import annotations

import pytest

from common.errors import UnavailableError
from common.types import FinishReason
from edge_client.experiments.columns import columns
from edge_client.experiments.idle import IdleLink, measure_idle_rtt, payload_bytes, quarters
from edge_client.steps import Step
from outrider.v1 import verifier_pb2 as pb
from tests.unit.experiments.fakes import FakeClock, committed, piece, streamed, verified

END = FinishReason.MAX_NEW_TOKENS


def test_it_is_the_client_clock_s_and_leaves_out_the_first() -> None:
    clock = FakeClock()
    calls: list[bytes] = []

    def echo(payload: bytes) -> None:
        calls.append(payload)
        clock.advance_ms(100 if len(calls) <= 3 else 2)

    assert measure_idle_rtt(echo, clock, count=5, payload=9) == {
        "count": 5,
        "min": 2.0,
        "p50": 2.0,
        "p95": 2.0,
        "p99": 2.0,
    }
    assert set(calls) == {bytes(9)}


def test_without_a_server_it_is_null() -> None:
    def echo(payload: bytes) -> None:
        raise UnavailableError("gone")

    assert measure_idle_rtt(echo, FakeClock()) is None


@pytest.mark.parametrize("size", [8, 30, 134, 136, 137, 5000, 16_396, 100_000])
def test_an_echo_is_as_large_as_the_message_it_stands_for(size: int) -> None:
    message = pb.EchoRequest(payload=bytes(payload_bytes(size)))
    assert message.ByteSize() + 5 == size


def test_no_payload_is_the_least() -> None:
    assert payload_bytes(0) == payload_bytes(6) == 0


def sizes_after(*generations: list[Step]) -> list[int]:
    link = IdleLink(lambda payload: None, FakeClock())
    for steps in generations:
        link.note(columns(steps, [0] * len(steps)))
    link.measure("before", 1)
    told = link.told()
    assert told is not None
    return [sample["message_bytes"] for sample in told["samples"]]


def test_sizes_are_those_of_rounds_where_there_are_rounds() -> None:
    rounds = [verified(1, drafted=1, accepted=0), verified(2, drafted=1, accepted=0, end=END)]
    pieces = [streamed(1), streamed(2, end=END)]
    assert sizes_after(pieces, rounds, pieces, pieces) == [30, 40]
    assert sizes_after(pieces) == [5, 20]


def test_a_first_round_that_holds_the_opening_is_left_out_unless_it_is_the_only_one() -> None:
    opening = Step((1,), "", None, bytes_up=900, bytes_down=700, asked=True)
    usual = verified(2, drafted=1, accepted=0)
    assert sizes_after([opening, usual]) == [30, 40]
    assert sizes_after([opening]) == [900, 700]


def test_what_asks_nobody_has_no_size() -> None:
    assert sizes_after([piece(1, end=END)], [committed(1, end=END)]) == [0, 0]


def test_quarters_are_never_the_end() -> None:
    assert quarters(16) == {4, 8, 12}
    assert quarters(2) == {1}
    assert quarters(1) == frozenset()

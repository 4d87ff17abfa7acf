"""The service itself, driven with the stubs: batches, limits, faults, and clients that leave."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from common import wire
from common.errors import InvalidRequestError, OutriderError
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub
from tests.integration.processes import Server, serving
from tests.models import Pair

PROMPT = [5, 6, 7]


def opening(max_new_tokens: int = 8, **fields: Any) -> pb.OpenSession:
    stop = pb.StopParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    return pb.OpenSession(**{"prompt_token_ids": PROMPT, "stop": stop, **fields})


def verify(step_id: int, position: int, drafts: list[int], **fields: Any) -> pb.VerifyRequest:
    return pb.VerifyRequest(step_id=step_id, position=position, draft_token_ids=drafts, **fields)


def generate(stub: VerifierStub, opened: pb.OpenSession, mode: str = "OPTIMIZED") -> list[int]:
    request = pb.GenerateRequest(mode=f"GENERATE_MODE_{mode}", open=opened)
    return [token for piece in stub.Generate(request, timeout=60) for token in piece.token_ids]


def refusal(error: grpc.RpcError) -> tuple[str, OutriderError | None]:
    trailers: Any = error.trailing_metadata() or ()
    details = dict(trailers).get("grpc-status-details-bin")
    return error.code().name, wire.error_from_details(details, error.details() or "")


@pytest.fixture
def stub(server: Server) -> Iterator[VerifierStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield VerifierStub(channel)


@pytest.fixture(scope="module")
def small_server(tiny_pair: Pair) -> Iterator[Server]:
    """Has room for two sessions of 64 tokens, and forgets idle ones after a moment."""
    with serving(
        tiny_pair.target,
        *("--set", "cloud.max_sessions=2", "--set", "cloud.cache_tokens=128"),
        *("--set", "cloud.idle_session_seconds=0.4"),
    ) as running:
        yield running


class Session:
    """Is a session stream used by hand."""

    def __init__(self, stub: VerifierStub) -> None:
        self._requests: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()
        self.call: Any = stub.Session(iter(self._requests.get, None), timeout=60)

    def send(self, **message: Any) -> None:
        self._requests.put(pb.SessionRequest(**message))

    def ask(self, **message: Any) -> pb.SessionResponse:
        self.send(**message)
        answer: pb.SessionResponse = next(self.call)
        return answer

    def verdict(self, request: pb.VerifyRequest) -> pb.Verdict:
        return self.ask(verify=request).verdict

    def half_close(self) -> None:
        self._requests.put(None)


def test_a_batch_verifies_several_sessions_side_by_side(stub: VerifierStub) -> None:
    truth = generate(stub, opening())
    entries = [
        pb.VerifyBatchEntry(open=opening(), verify=verify(1, 3, truth[:n])) for n in range(4)
    ]
    opened = stub.VerifyBatch(pb.VerifyBatchRequest(entries=entries), timeout=60).results
    assert [result.verdict.accepted_count for result in opened] == [0, 1, 2, 3]
    assert [result.verdict.next_token_id for result in opened] == truth[:4]
    assert max(result.verdict.timing.step_sessions for result in opened) > 1
    tokens = [result.session_token for result in opened]
    assert len(set(tokens)) == 4

    entries = [
        pb.VerifyBatchEntry(
            session_token=token, verify=verify(2, 4 + n, truth[n + 1 : n + 3]), close=True
        )
        for n, token in enumerate(tokens)
    ]
    closed = stub.VerifyBatch(pb.VerifyBatchRequest(entries=entries), timeout=60).results
    assert [result.verdict.accepted_count for result in closed] == [2, 2, 2, 2]
    assert all(not result.session_token for result in closed)


def test_one_bad_entry_fails_alone(stub: VerifierStub) -> None:
    entries = [
        pb.VerifyBatchEntry(open=opening(), verify=verify(1, 3, []), close=True),
        pb.VerifyBatchEntry(open=opening(), verify=verify(1, 3, [99999])),
        pb.VerifyBatchEntry(session_token=b"guessed", verify=verify(1, 3, [])),
        pb.VerifyBatchEntry(verify=verify(1, 3, [])),
    ]
    good, bad, unknown, nameless = stub.VerifyBatch(
        pb.VerifyBatchRequest(entries=entries), timeout=60
    ).results
    assert good.verdict.outcome == pb.OUTCOME_VERIFIED
    assert bad.error.reason == "INVALID_REQUEST"
    assert "99999" in bad.error.message
    assert unknown.error.reason == nameless.error.reason == "NOT_FOUND"


def test_a_session_closed_while_another_entry_waits_for_it_is_unknown_to_that_entry(
    stub: VerifierStub,
) -> None:
    def batch(*entries: pb.VerifyBatchEntry) -> list[pb.VerifyBatchResult]:
        return list(stub.VerifyBatch(pb.VerifyBatchRequest(entries=entries), timeout=60).results)

    (opened,) = batch(pb.VerifyBatchEntry(open=opening()))
    token = opened.session_token
    closing, waiting = batch(
        pb.VerifyBatchEntry(session_token=token, verify=verify(1, 3, []), close=True),
        pb.VerifyBatchEntry(session_token=token, verify=verify(2, 3, [])),
    )
    assert {closing.error.reason, waiting.error.reason} == {"", "NOT_FOUND"}
    assert len(generate(stub, opening())) == 8  # and the server goes on


def test_repeated_stale_and_mismatched_steps(stub: VerifierStub) -> None:
    truth = generate(stub, opening())
    session = Session(stub)
    assert session.ask(open=opening()).opened.position == 3
    first = session.verdict(verify(1, 3, truth[:2], epoch=1))
    assert first.accepted_count == 2
    assert session.verdict(verify(1, 3, truth[:2], epoch=1)) == first
    assert session.verdict(verify(2, 6, [], epoch=0)).outcome == pb.OUTCOME_STALE
    lost = session.verdict(verify(3, 8, [], epoch=1))
    assert (lost.outcome, lost.position) == (pb.OUTCOME_MISMATCH, 6)
    mended = session.verdict(verify(4, 4, [truth[4]], epoch=1, confirmed_token_ids=truth[1:4]))
    assert (mended.accepted_count, mended.next_token_id) == (1, truth[5])
    session.half_close()
    assert list(session.call) == []
    assert session.call.code() is grpc.StatusCode.OK


def test_a_resumed_session_goes_on_with_the_same_text(stub: VerifierStub) -> None:
    truth = generate(stub, opening())
    for mode in ("OPTIMIZED", "STOCK"):
        assert generate(stub, opening(generated_token_ids=truth[:3]), mode) == truth[3:]


@pytest.mark.parametrize(
    ("messages", "status", "reason"),
    [
        ([{"verify": verify(1, 3, [])}], "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ([], "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ([{"open": opening()}, {"open": opening()}], "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ([{"open": pb.OpenSession()}], "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ([{"open": opening(prompt_token_ids=[1] * 300)}], "INVALID_ARGUMENT", "PROMPT"),
        (
            [{"open": opening(peer=pb.Peer(protocol_version="2.0"))}],
            "FAILED_PRECONDITION",
            "HANDSHAKE",
        ),
        (
            [{"open": opening(peer=pb.Peer(dtype="float16"))}],
            "FAILED_PRECONDITION",
            "PRECISION",
        ),
        (
            [{"open": opening()}, {"verify": verify(1, 1, [])}],
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
        ),
        (
            [{"open": opening()}, {"verify": verify(1, 3, [1] * 33)}],
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
        ),
    ],
)
def test_a_stream_that_breaks_the_contract_is_told_how(
    stub: VerifierStub, messages: list[dict[str, Any]], status: str, reason: str
) -> None:
    session = Session(stub)
    for message in messages:
        session.send(**message)
    session.half_close()
    with pytest.raises(grpc.RpcError) as caught:
        list(session.call)
    code, error = refusal(caught.value)
    assert code == status
    assert error is not None
    assert error.reason == reason


def test_what_the_target_writes_alone_is_streamed_and_drafts_are_compared_with_it(
    stub: VerifierStub,
) -> None:
    truth = generate(stub, opening(12))
    session = Session(stub)
    session.send(open=opening(12, run_ahead=4))
    assert next(session.call).opened.position == 3
    alone = [next(session.call).ahead for _ in range(4)]  # and no more, till a request comes
    assert [(a.position, list(a.token_ids)) for a in alone] == [
        (3 + i, truth[i : i + 1]) for i in range(4)
    ]
    assert alone[0].timing.forward_passes >= 1
    within = session.verdict(verify(1, 4, [*truth[1:3], 0], assumed_bonus_token_id=truth[0]))
    assert (within.accepted_count, within.next_token_id) == (2, truth[3])
    assert (within.position, within.timing.forward_passes) == (7, 0)
    alone += [next(session.call).ahead for _ in range(4)]  # four more, for the request
    reaching = session.verdict(verify(2, 10, truth[7:9]))  # the first of these is held
    assert (reaching.accepted_count, reaching.next_token_id) == (2, truth[9])
    assert (reaching.position, reaching.timing.forward_passes) == (13, 1)
    alone += [next(session.call).ahead for _ in range(2)]
    assert alone[-1].finish_reason == pb.FINISH_REASON_MAX_NEW_TOKENS
    written = [token for a in alone for token in a.token_ids]
    assert written == truth[:8] + truth[10:]
    late = session.verdict(verify(3, 13, truth[10:]))
    assert (late.outcome, late.position) == (pb.OUTCOME_STALE, 15)
    session.half_close()
    assert list(session.call) == []
    assert session.call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (verify(1, 4, [], confirmed_token_ids=[0]), "rolls nothing back"),
        (verify(1, 4, [99999]), "99999"),
    ],
)
def test_a_fault_in_a_session_that_runs_ahead_ends_it_with_its_reason(
    stub: VerifierStub, request_: pb.VerifyRequest, message: str
) -> None:
    session = Session(stub)
    session.send(open=opening(8, run_ahead=4))
    assert next(session.call).HasField("opened")
    alone = [next(session.call).ahead.token_ids[0] for _ in range(4)]
    assert alone[1] != 0
    session.send(verify=request_)
    with pytest.raises(grpc.RpcError) as caught:
        list(session.call)
    code, error = refusal(caught.value)
    assert code == "INVALID_ARGUMENT"
    assert message in str(error)


def test_a_session_without_a_stream_cannot_run_ahead(stub: VerifierStub) -> None:
    entry = pb.VerifyBatchEntry(open=opening(run_ahead=4), verify=verify(1, 3, []))
    (result,) = stub.VerifyBatch(pb.VerifyBatchRequest(entries=[entry]), timeout=60).results
    assert result.error.reason == "INVALID_REQUEST"
    assert "run_ahead is 4" in result.error.message


SERVICE = "/outrider.v1.Verifier/"
JUNK: dict[str, Callable[[Any, dict[str, int]], object]] = {
    "Session": lambda c, t: list(c.stream_stream(f"{SERVICE}Session")(iter([b"\xff"]), **t)),
    "Generate": lambda c, t: list(c.unary_stream(f"{SERVICE}Generate")(b"\xff", **t)),
    "VerifyBatch": lambda c, t: c.unary_unary(f"{SERVICE}VerifyBatch")(b"\xff", **t),
}


@pytest.mark.parametrize("method", JUNK)
def test_bytes_that_are_no_message_are_the_clients_fault(server: Server, method: str) -> None:
    with (
        grpc.insecure_channel(server.address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        JUNK[method](channel, {"timeout": 60})
    code, error = refusal(caught.value)
    assert code == "INVALID_ARGUMENT"
    assert isinstance(error, InvalidRequestError)


def test_a_full_server_says_so_and_has_room_again_when_a_client_leaves(
    small_server: Server,
) -> None:
    with grpc.insecure_channel(small_server.address) as channel:
        stub = VerifierStub(channel)
        sessions = [Session(stub) for _ in range(2)]
        for session in sessions:
            session.ask(open=opening())
        with pytest.raises(grpc.RpcError) as caught:
            generate(stub, opening())
        code, error = refusal(caught.value)
        assert code == "RESOURCE_EXHAUSTED"
        assert "cloud.max_sessions" in str(error)
        sessions[0].call.cancel()
        wait_until_admitted(stub)
        sessions[1].call.cancel()


def test_a_full_cache_refuses_the_session_that_asks_and_no_other(small_server: Server) -> None:
    with grpc.insecure_channel(small_server.address) as channel:
        stub = VerifierStub(channel)
        wait_until_admitted(stub)
        held = Session(stub)
        held.ask(open=opening(max_new_tokens=60))
        with pytest.raises(grpc.RpcError) as caught:
            generate(stub, opening(max_new_tokens=100))
        code, error = refusal(caught.value)
        assert code == "RESOURCE_EXHAUSTED"
        assert "cache_tokens" in str(error)
        assert held.verdict(verify(1, 3, [])).outcome == pb.OUTCOME_VERIFIED
        held.call.cancel()


def test_an_idle_unary_session_is_ended(small_server: Server) -> None:
    with grpc.insecure_channel(small_server.address) as channel:
        stub = VerifierStub(channel)
        wait_until_admitted(stub)
        entry = pb.VerifyBatchEntry(open=opening(), verify=verify(1, 3, []))
        request = pb.VerifyBatchRequest(entries=[entry, entry])
        tokens = [r.session_token for r in stub.VerifyBatch(request, timeout=60).results]
        assert all(tokens)
        wait_until_admitted(stub)  # both places were taken: one must have been given up
        entry = pb.VerifyBatchEntry(session_token=tokens[0], verify=verify(1, 3, []))
        (result,) = stub.VerifyBatch(pb.VerifyBatchRequest(entries=[entry]), timeout=60).results
        assert result.error.reason == "NOT_FOUND"


def wait_until_admitted(stub: VerifierStub) -> None:
    """Asks until there is room; the server frees it when it notices that a client has left."""
    full = True
    while full:
        try:
            generate(stub, opening(max_new_tokens=1))
            full = False
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise

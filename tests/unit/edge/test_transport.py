"""The transport against a real gRPC server in this process that does as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import grpc
import pytest

from common import wire
from common.config import NetworkSection
from common.errors import (
    ConfigError,
    DeadlineError,
    HandshakeError,
    InternalError,
    InvalidRequestError,
    OutriderError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)
from common.types import (
    Draft,
    FinishReason,
    GeneratedTokens,
    GenerateMode,
    OpenSession,
    Outcome,
    StepTiming,
    StopParams,
    Verdict,
)
from edge_client.faults import BY_CODE
from edge_client.link import Answer
from edge_client.streams import FRAME_BYTES, Responses, read_piece, read_reply
from edge_client.transport import CloudConnection
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc
from tests.unit.edge.pair import GREEDY, PEER, TIMING, Clock, server_info

OPENING = OpenSession(PEER, (1, 2, 3), GREEDY, StopParams(8))
VERDICT = Verdict(1, 0, Outcome.VERIFIED, 6, 2, 9, timing=StepTiming(total_ns=4))
OPENED = pb.SessionResponse(opened=pb.SessionOpened(position=3, context_length=64))
ANSWER = pb.SessionResponse(verdict=wire.verdict_to_proto(VERDICT))


class Servicer(verifier_pb2_grpc.VerifierServicer):
    """Records what arrives and answers with what each test has put in."""

    def __init__(self) -> None:
        self.received: list[pb.SessionRequest] = []
        self.half_closed = threading.Event()
        self.ended = threading.Event()
        self.hold = threading.Event()
        self.session: Callable[[Iterator[pb.SessionRequest]], Iterator[pb.SessionResponse]] = (
            self.obedient
        )
        self.pieces: list[GeneratedTokens] = []
        self.fail: Callable[[grpc.ServicerContext], NoReturn] | None = None
        self.echoed: bytes | None = None
        self.logits = [1.5, -2.5]
        self.stop: Callable[[], object] = lambda: None

    def obedient(self, requests: Iterator[pb.SessionRequest]) -> Iterator[pb.SessionResponse]:
        for request in requests:
            self.received.append(request)
            yield OPENED if request.WhichOneof("message") == "open" else ANSWER
        self.half_closed.set()

    def Session(self, requests: Any, context: Any) -> Iterator[pb.SessionResponse]:
        context.add_callback(self.ended.set)
        if self.fail:
            self.fail(context)
        yield from self.session(requests)

    def Generate(self, request: Any, context: Any) -> Iterator[pb.GenerateResponse]:
        if self.fail:
            self.fail(context)
        for piece in self.pieces:
            yield wire.generated_to_proto(piece)

    def Echo(self, request: Any, context: Any) -> pb.EchoResponse:
        payload = request.payload if self.echoed is None else self.echoed
        return pb.EchoResponse(payload=payload, total_ns=2)

    def Score(self, request: Any, context: Any) -> pb.ScoreResponse:
        return pb.ScoreResponse(logits=self.logits)

    def VerifyBatch(self, request: Any, context: Any) -> NoReturn:
        raise NotImplementedError

    def GetServerInfo(self, request: Any, context: Any) -> pb.ServerInfo:
        if self.fail:
            self.fail(context)
        return wire.info_to_proto(server_info())


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@contextmanager
def serving(servicer: Servicer | None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    if servicer is not None:
        servicer.stop = lambda: server.stop(None).wait()
        verifier_pb2_grpc.add_VerifierServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        if servicer is not None:
            servicer.hold.set()
        server.stop(None).wait()


@pytest.fixture
def cloud(servicer: Servicer) -> Iterator[CloudConnection]:
    with serving(servicer) as address, connected(address) as connection:
        yield connection


def connected(address: str, network: NetworkSection | None = None) -> CloudConnection:
    return CloudConnection(address, network or NetworkSection(), 4096, Clock())


def refuse(code: grpc.StatusCode, details: str, trailer: bytes | None = None) -> Any:
    def fail(context: grpc.ServicerContext) -> NoReturn:
        if trailer is not None:
            context.set_trailing_metadata((("grpc-status-details-bin", trailer),))
        context.abort(code, details)

    return fail


def test_a_round_trip_and_what_it_measured(cloud: CloudConnection, servicer: Servicer) -> None:
    draft = Draft(1, 3, 0, (7, 8))
    with cloud.open(OPENING) as stream:
        stream.send(draft)
        first = stream.receive()
        stream.send(draft)
        second = stream.receive()
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert first.verdict == second.verdict == VERDICT
    # The clock moves on by one each time it is read: before and after a message is made, and
    # before and after one is read; reading the first, of the opening, may lie anywhere between.
    assert first.elapsed_ns in (3, 4, 5)
    assert first.serialization_ns in (2, 3, 4)
    assert (second.elapsed_ns, second.serialization_ns) == (3, 2)
    assert second.received_ns == first.received_ns + 4
    opening, verify, again = (message.ByteSize() + FRAME_BYTES for message in servicer.received)
    assert (first.bytes_up, second.bytes_up) == (opening + verify, again)
    down = ANSWER.ByteSize() + FRAME_BYTES
    assert (first.bytes_down, second.bytes_down) == (OPENED.ByteSize() + FRAME_BYTES + down, down)
    assert wire.draft_from_proto(servicer.received[1].verify, wire.WireLimits(300, 8)) == draft


def test_a_session_left_in_peace_is_half_closed(cloud: CloudConnection, servicer: Servicer) -> None:
    with cloud.open(OPENING) as stream:
        stream.send(Draft(1, 3, 0))
        stream.receive()
    assert servicer.half_closed.wait(30)


def test_a_session_left_by_an_error_is_cancelled(
    cloud: CloudConnection, servicer: Servicer
) -> None:
    def patient(requests: Iterator[pb.SessionRequest]) -> Iterator[pb.SessionResponse]:
        yield from servicer.obedient(requests)
        servicer.hold.wait()  # so that a half-closed call would not end

    def interrupted() -> None:
        with cloud.open(OPENING) as stream:
            stream.send(Draft(1, 3, 0))
            stream.receive()
            raise KeyboardInterrupt

    servicer.session = patient
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert servicer.ended.wait(30)


def test_no_answer_within_the_round_timeout(servicer: Servicer) -> None:
    def silent(requests: Iterator[pb.SessionRequest]) -> Iterator[pb.SessionResponse]:
        yield OPENED
        servicer.hold.wait()

    servicer.session = silent
    with (
        serving(servicer) as address,
        connected(address, NetworkSection(round_timeout_s=0.05)) as cloud,
        pytest.raises(DeadlineError, match=r"no answer within 0.05 s.*network.round_timeout_s"),
    ):
        first_verdict(cloud)


def test_a_server_that_ends_the_session_early(cloud: CloudConnection, servicer: Servicer) -> None:
    servicer.session = lambda requests: iter([OPENED])
    with pytest.raises(UnavailableError, match="ended the session early"):
        first_verdict(cloud)


@pytest.mark.parametrize("answers", [[ANSWER], [OPENED, OPENED], [pb.SessionResponse()]])
def test_answers_in_the_wrong_order(
    cloud: CloudConnection, servicer: Servicer, answers: list[pb.SessionResponse]
) -> None:
    servicer.session = lambda requests: iter(answers)
    with pytest.raises(InternalError, match="broke the protocol"):
        first_verdict(cloud)


def test_a_refusal_has_arrived_before_anybody_waits_for_it(
    cloud: CloudConnection, servicer: Servicer
) -> None:
    servicer.fail = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    with suppress(OverloadedError), cloud.open(OPENING) as stream:
        assert stream.arrived(within_s=30.0)
        with pytest.raises(OverloadedError):
            stream.receive()


def test_what_was_waited_for_is_received_afterwards_and_in_order(
    cloud: CloudConnection, servicer: Servicer
) -> None:
    with cloud.open(OPENING) as stream:
        assert not stream.arrived(within_s=0.05)  # it may be open, and that is no verdict
        stream.send(Draft(1, 3, 0, (4, 5)))
        assert stream.arrived(within_s=30.0)
        assert stream.arrived()
        stream.send(Draft(2, 6, 0))
        for _ in range(2):
            answer = stream.receive()
            assert isinstance(answer, Answer)
            assert answer.verdict == VERDICT
        assert not stream.arrived()


def test_a_silent_server_is_listened_to_for_so_long(
    cloud: CloudConnection, servicer: Servicer
) -> None:
    def silent(requests: Iterator[pb.SessionRequest]) -> Iterator[pb.SessionResponse]:
        servicer.hold.wait()
        return iter(())

    servicer.session = silent
    with suppress(OutriderError), cloud.open(OPENING) as stream:
        assert not stream.arrived(within_s=0.01)
        servicer.hold.set()


class UnreadableCall:
    """Answers with what is no message."""

    is_cancelled = False

    def __iter__(self) -> Iterator[bytes]:
        yield b"\xff"

    def cancel(self) -> None:
        self.is_cancelled = True


@pytest.mark.parametrize("read", [read_reply, read_piece])
def test_an_answer_that_cannot_be_read_is_the_server_s_fault(
    read: Callable[[bytes], object],
) -> None:
    call = UnreadableCall()
    with (
        pytest.raises(InternalError, match=r"server h:1 broke the protocol: .* cannot be read"),
        Responses(call, read, 30.0, "h:1", Clock()) as responses,
    ):
        responses.next()
    assert call.is_cancelled


def first_verdict(cloud: CloudConnection) -> None:
    with cloud.open(OPENING) as stream:
        stream.send(Draft(1, 3, 0))
        stream.receive()


def test_a_cloud_arm_is_streamed(cloud: CloudConnection, servicer: Servicer) -> None:
    servicer.pieces = [
        GeneratedTokens((5,), None, TIMING),
        GeneratedTokens((6, 7), FinishReason.MAX_NEW_TOKENS, TIMING),
    ]
    pieces = list(cloud.generate(GenerateMode.STOCK, OPENING))
    assert [piece.tokens for piece in pieces] == servicer.pieces
    asked = wire.generate_to_proto(GenerateMode.STOCK, OPENING).ByteSize() + FRAME_BYTES
    assert [piece.bytes_up for piece in pieces] == [asked, 0]
    assert [piece.elapsed_ns for piece in pieces] == [3, 2]
    assert [piece.serialization_ns for piece in pieces] == [2, 1]
    assert pieces[1].received_ns == (pieces[0].received_ns or 0) + 2


def test_info_and_echo(cloud: CloudConnection) -> None:
    assert cloud.info() == server_info()
    assert cloud.echo(b"hello") == (1, 2)


def test_a_score_is_one_logit_a_token(cloud: CloudConnection, servicer: Servicer) -> None:
    assert cloud.score((1, 2, 3), (7, 8)) == (1.5, -2.5)
    with pytest.raises(InternalError, match="scored 2 tokens of 1"):
        cloud.score((1, 2, 3), (7,))


def test_an_echo_of_something_else(cloud: CloudConnection, servicer: Servicer) -> None:
    servicer.echoed = b"other"
    with pytest.raises(InternalError, match="another payload"):
        cloud.echo(b"hello")


def test_every_status_code_has_its_place() -> None:
    assert set(BY_CODE) == set(grpc.StatusCode)


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_a_status_without_our_details_becomes_an_error_of_ours(
    cloud: CloudConnection, servicer: Servicer, code: grpc.StatusCode
) -> None:
    servicer.fail = refuse(code, "because")
    for call in (
        cloud.info,
        lambda: first_verdict(cloud),
        lambda: list(cloud.generate(GenerateMode.STOCK, OPENING)),
    ):
        with pytest.raises(OutriderError) as caught:
            call()
        kind, advice = BY_CODE[code]
        assert type(caught.value) is kind
        assert str(caught.value) == f"server {cloud.address}: {code.name}: {advice} (because)"


def test_a_reason_of_ours_is_raised_as_the_server_raised_it(
    cloud: CloudConnection, servicer: Servicer
) -> None:
    for error in (HandshakeError("they differ"), OverloadedError("64 of 64 sessions")):
        code = grpc.StatusCode[error.status]
        servicer.fail = refuse(code, str(error), wire.error_details(error))
        with pytest.raises(type(error)) as caught:
            cloud.info()
        assert str(caught.value) == f"server {cloud.address}: {error}"


@pytest.mark.parametrize("ours", [True, False])
def test_what_a_server_says_is_one_line_that_no_terminal_obeys(
    cloud: CloudConnection, servicer: Servicer, ours: bool
) -> None:
    said = "a\x1b[2J\x1b]0;title\x07 b\r\nc \x9b31m\u202ed"
    details = wire.error_details(HandshakeError(said)) if ours else None
    servicer.fail = refuse(grpc.StatusCode.FAILED_PRECONDITION, said, details)
    for call in (cloud.info, lambda: first_verdict(cloud)):
        with pytest.raises(HandshakeError) as caught:
            call()
        message = str(caught.value)
        assert message.isprintable()
        assert r"a\x1b[2J\x1b]0;title\x07 b c \x9b31m\u202ed" in message


@pytest.mark.parametrize("trailer", [b"", b"\xff\xff\xff"])
def test_details_of_others_are_passed_over(
    cloud: CloudConnection, servicer: Servicer, trailer: bytes
) -> None:
    servicer.fail = refuse(grpc.StatusCode.UNAVAILABLE, "later", trailer)
    with pytest.raises(UnavailableError, match="UNAVAILABLE: is it running"):
        cloud.info()


def test_nobody_there_is_one_clear_line() -> None:
    with serving(None) as address:
        pass
    with connected(address) as cloud, pytest.raises(UnavailableError) as caught:
        cloud.info()
    message = str(caught.value)
    assert message.startswith(f"server {address}: UNAVAILABLE: is it running? start it with")
    assert "\n" not in message


def test_a_message_larger_than_an_end_takes_is_no_overload(servicer: Servicer) -> None:
    with (
        serving(servicer) as address,
        connected(address) as cloud,
        pytest.raises(InvalidRequestError, match=r"cloud\.max_message_bytes"),
    ):
        cloud.echo(bytes(5000))


def test_another_server_there_is_said_so() -> None:
    with (
        serving(None) as address,
        connected(address) as cloud,
        pytest.raises(RefusedError, match="no Outrider server; check the address"),
    ):
        cloud.info()


def test_a_server_that_goes_away_in_the_middle(cloud: CloudConnection, servicer: Servicer) -> None:
    with cloud.open(OPENING) as stream:
        stream.send(Draft(1, 3, 0))
        stream.receive()
        servicer.stop()
        stream.send(Draft(2, 6, 0))
        with pytest.raises(UnavailableError, match=f"server {cloud.address}"):
            stream.receive()


def test_a_stream_that_a_proxy_resets_is_a_server_lost_behind_it(
    cloud: CloudConnection, servicer: Servicer
) -> None:
    reset = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"
    servicer.fail = refuse(grpc.StatusCode.INTERNAL, reset)
    with pytest.raises(UnavailableError, match="went away in the middle"):
        first_verdict(cloud)


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", ":1", "h:0", "h:70000", "h:x"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="write it as HOST:PORT"):
        connected(address)

"""The way to a server over gRPC: the one place that knows channels, calls and stubs.

Bytes are those of the serialized messages and the 5-byte frame header gRPC puts
before each; HTTP/2's own headers are left out. Times are the client's monotonic
clock, in nanoseconds.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import grpc

from common import wire
from common.config import NetworkSection, SecuritySection
from common.errors import ConfigError, DeadlineError, InternalError, UnavailableError
from common.types import Draft, GenerateMode, OpenSession, ServerInfo
from edge_client.credentials import ClientCredentials, read_credentials
from edge_client.faults import error_from_call
from edge_client.link import Ahead, Answer, Clock, Opened, Piece
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub

FRAME_BYTES = 5
"""Length of the header gRPC puts before each message: one flag byte and the size."""

CLOSE_SECONDS = 2.0

KEEPALIVE_MS = 10_000
"""How long a link with a call on it may be silent before it is asked, and then fail to answer."""

_NO_SECURITY = SecuritySection()

Response = TypeVar("Response")


class _Call(Protocol):
    """Is what the stubs' calls can do; the published type stubs leave it out."""

    def __iter__(self) -> Iterator[Any]: ...

    def cancel(self) -> object: ...


class CloudConnection:
    """Is a channel to one server; what it raises is a ServiceError or what the server refused."""

    def __init__(
        self,
        address: str,
        network: NetworkSection,
        max_message_bytes: int,
        clock: Clock = time.monotonic_ns,
        security: SecuritySection = _NO_SECURITY,
    ) -> None:
        """Connects when first used.

        Raises ConfigError when `address` is not HOST:PORT, and as `read_credentials` does.
        """
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise ConfigError(f"server address {address!r}: write it as HOST:PORT")
        self.address = address
        self._network = network
        self._clock = clock
        credentials = read_credentials(security, host)
        self._metadata = credentials.metadata
        self._channel = _channel(address, credentials, network, max_message_bytes)
        self._stub = VerifierStub(self._channel)

    def __enter__(self) -> CloudConnection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; calls still running are cancelled.

        Ctrl-C may have left a call half started, and gRPC waits for such a one for
        ever; after CLOSE_SECONDS it is left to the end of the process.
        """
        closing = threading.Thread(target=self._channel.close, name="close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def info(self) -> ServerInfo:
        """Asks what the server is; the first call, and so the one that finds nobody there."""
        try:
            answer = self._stub.GetServerInfo(
                pb.GetServerInfoRequest(),
                timeout=self._network.connect_timeout_s,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            raise error_from_call(error, self.address) from error
        return wire.info_from_proto(answer)

    def echo(self, payload: bytes) -> tuple[int, int]:
        """Sends a payload and has it back: elapsed here, and of that at the server, both in ns."""
        request = pb.EchoRequest(payload=payload)
        started = self._clock()
        try:
            answer = self._stub.Echo(
                request, timeout=self._network.round_timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise error_from_call(error, self.address) from error
        elapsed = self._clock() - started
        if answer.payload != payload:
            raise InternalError(f"server {self.address} echoed another payload than it was sent")
        return elapsed, answer.total_ns

    def score(self, context: Sequence[int], token_ids: Sequence[int]) -> tuple[float, ...]:
        """Asks for the target's logits of `token_ids` after `context`, outside any session."""
        answer = self._score(wire.score_to_proto(context, token_ids=token_ids))
        return self._as_many("tokens", answer.logits, token_ids)

    def text_logprobs(self, context: Sequence[int], text: Sequence[int]) -> tuple[float, ...]:
        """Asks for the log-probability, in nats, of each token of a text after `context`.

        At temperature 1 and untruncated, outside any session.
        """
        answer = self._score(wire.score_to_proto(context, text=text))
        return self._as_many("tokens of a text", answer.text_logprobs, text)

    def _score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        try:
            return self._stub.Score(
                request, timeout=self._network.round_timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise error_from_call(error, self.address) from error

    def _as_many(
        self, what: str, scores: Sequence[float], asked: Sequence[int]
    ) -> tuple[float, ...]:
        if len(scores) != len(asked):
            raise InternalError(
                f"server {self.address} scored {len(scores)} {what} of {len(asked)}"
            )
        return tuple(scores)

    @contextmanager
    def open(self, opening: OpenSession, timeout_s: float | None = None) -> Iterator[SessionStream]:
        """Opens a session and does not wait; whatever is wrong shows at the first verdict.

        After `timeout_s` it ends on both ends.
        """
        requests: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()
        call: Any = self._stub.Session(
            iter(requests.get, None), timeout=timeout_s, metadata=self._metadata
        )
        try:
            with _Responses[pb.SessionResponse](
                call, self._network, self.address, self._clock
            ) as responses:
                yield SessionStream(opening, requests, responses, self._clock)
        finally:
            requests.put(None)  # half-closes the stream, unless it is cancelled by now

    def generate(
        self, mode: GenerateMode, opening: OpenSession, timeout_s: float | None = None
    ) -> Generator[Piece, None, None]:
        """Streams the output of a cloud arm; after `timeout_s` it ends on both ends."""
        request = wire.generate_to_proto(mode, opening)
        bytes_up = _size(request)
        started = self._clock()
        call: Any = self._stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
        with _Responses[pb.GenerateResponse](
            call, self._network, self.address, self._clock
        ) as responses:
            while True:
                message, arrived = responses.next()
                if message is None:
                    return
                tokens = wire.generated_from_proto(message)
                yield Piece(tokens, arrived - started, bytes_up, _size(message))
                started, bytes_up = arrived, 0


def _channel(
    address: str, credentials: ClientCredentials, network: NetworkSection, max_message_bytes: int
) -> grpc.Channel:
    options = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A call fails once and is seen; a proxy from the environment is not asked for;
        # a channel of its own does not wait out another one's failures.
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.min_reconnect_backoff_ms", round(network.connect_timeout_s * 1000)),
        # A link that was cut without a word is noticed before the round's own timeout.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ]
    if not credentials.is_tls:
        return grpc.insecure_channel(address, options)
    identity = credentials.identity
    tls = grpc.ssl_channel_credentials(
        credentials.authorities,
        identity.key if identity else None,
        identity.chain if identity else None,
    )
    return grpc.secure_channel(address, tls, options)


@dataclass(frozen=True, slots=True)
class _Sent:
    """Is a draft in flight: when it was sent, its bytes, and of those the probabilities'."""

    at_ns: int
    size: int
    probabilities: int | None


class SessionStream:
    """Is one open session."""

    def __init__(
        self,
        opening: OpenSession,
        requests: queue.SimpleQueue[pb.SessionRequest | None],
        responses: _Responses[pb.SessionResponse],
        clock: Clock,
    ) -> None:
        """Sends the opening."""
        self._requests = requests
        self._responses = responses
        self._clock = clock
        self._sent: deque[_Sent] = deque()  # drafts in flight
        self._is_opened = False
        message = pb.SessionRequest(open=wire.open_to_proto(opening))
        self._opening_bytes = _size(message)
        requests.put(message)

    def send(self, draft: Draft) -> None:
        """Sends a draft and does not wait."""
        message = pb.SessionRequest(verify=wire.draft_to_proto(draft))
        probabilities = None
        if draft.distributions:
            probabilities = wire.distributions_bytes(draft.distributions)
        self._sent.append(_Sent(self._clock(), _size(message), probabilities))
        self._requests.put(message)

    def opened(self) -> Opened:
        """Waits until the server has the session; the bytes are counted once."""
        if self._is_opened:
            return Opened(0, 0)
        answer, _ = self._next(("opened",))
        self._is_opened = True
        return Opened(self._opening_bytes, _size(answer))

    def arrived(self) -> bool:
        """Whether `receive` would not wait long."""
        return self._responses.waiting() > (0 if self._is_opened else 1)

    def receive(self) -> Answer | Ahead:
        """Waits for the verdict on the oldest draft in flight, or tokens before it."""
        opened = self.opened()
        message, arrived = self._next(("verdict", "ahead"))
        if message.HasField("ahead"):
            return Ahead(
                tokens=wire.ahead_from_proto(message.ahead),
                bytes_up=opened.bytes_up,
                bytes_down=opened.bytes_down + _size(message),
                received_ns=arrived,
            )
        if not self._sent:
            raise self._broken("nothing", message)
        sent = self._sent.popleft()
        return Answer(
            verdict=wire.verdict_from_proto(message.verdict),
            elapsed_ns=arrived - sent.at_ns,
            bytes_up=opened.bytes_up + sent.size,
            bytes_down=opened.bytes_down + _size(message),
            draft_probabilities_bytes=sent.probabilities,
            received_ns=arrived,
        )

    def _next(self, kinds: Sequence[str]) -> tuple[pb.SessionResponse, int]:
        message, arrived = self._responses.next()
        if message is None:
            raise UnavailableError(
                f"server {self._responses.address} ended the session early; ask again"
            )
        if message.WhichOneof("message") not in kinds:
            raise self._broken(repr(kinds[0]), message)
        return message, arrived

    def _broken(self, due: str, message: pb.SessionResponse) -> InternalError:
        return InternalError(
            f"server {self._responses.address} broke the protocol: {due} was due, "
            f"and it sent {message.WhichOneof('message')!r}"
        )


class _Responses(Generic[Response]):
    """Takes a call's responses one by one, each within the round timeout.

    A thread of its own notes when each arrives, whatever the caller is busy with.
    gRPC's own timeout counts the whole call; a generation may take as long as it
    makes progress. Left by an error, the call is cancelled; otherwise it runs out.
    """

    def __init__(self, call: _Call, network: NetworkSection, address: str, clock: Clock) -> None:
        self.address = address
        self._call = call
        self._timeout_s = network.round_timeout_s
        self._clock = clock
        self._arrivals: queue.SimpleQueue[_Arrival[Response]] = queue.SimpleQueue()
        self._begun = False
        threading.Thread(target=self._read, name="responses", daemon=True).start()

    def __enter__(self) -> _Responses[Response]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._call.cancel()

    def waiting(self) -> int:
        """Returns how many have arrived and were not taken; the end of the call is one, too."""
        return self._arrivals.qsize()

    def next(self) -> tuple[Response | None, int]:
        """Waits for the next response and when it came; None when the call has ended with OK."""
        try:
            arrival = self._arrivals.get(timeout=self._timeout_s)
        except queue.Empty:
            self._call.cancel()
            raise DeadlineError(
                f"server {self.address} gave no answer within {self._timeout_s:g} s; "
                "is it overloaded? network.round_timeout_s says how long to wait"
            ) from None
        if arrival.error is not None:
            raise error_from_call(arrival.error, self.address, begun=self._begun) from arrival.error
        self._begun = True
        return arrival.response, arrival.at_ns

    def _read(self) -> None:
        ended: grpc.RpcError | None = None
        try:
            for response in self._call:
                self._arrivals.put(_Arrival(self._clock(), response))
        except grpc.RpcError as error:
            ended = error
        self._arrivals.put(_Arrival(self._clock(), error=ended))


@dataclass(frozen=True, slots=True)
class _Arrival(Generic[Response]):
    """Is a response and when it came, or how the call ended: None and None is with OK."""

    at_ns: int
    response: Response | None = None
    error: grpc.RpcError | None = None


def _size(
    message: pb.SessionRequest | pb.SessionResponse | pb.GenerateRequest | pb.GenerateResponse,
) -> int:
    return message.ByteSize() + FRAME_BYTES

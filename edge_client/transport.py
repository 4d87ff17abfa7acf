"""The way to a server over gRPC: the one place that knows channels, calls and stubs.

What passes on a call, and what it took, is `streams.py`. Times are the client's
monotonic clock, in nanoseconds.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import grpc

from common import wire
from common.config import NetworkSection, SecuritySection
from common.errors import ConfigError, InternalError
from common.types import GenerateMode, OpenSession, Opinion, ServerInfo
from edge_client.credentials import ClientCredentials, read_credentials
from edge_client.faults import error_from_call
from edge_client.link import Clock, Piece
from edge_client.streams import Encoded, Responses, SessionStream, read_piece, read_reply
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub

CLOSE_SECONDS = 2.0

KEEPALIVE_MS = 10_000
"""How long a link with a call on it may be silent before it is asked, and then fail to answer."""

_NO_SECURITY = SecuritySection()

_SERVICE = pb.DESCRIPTOR.services_by_name["Verifier"].full_name


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
        # Without serializers these carry bytes, so that making and reading them can be timed.
        self._session: Any = self._channel.stream_stream(f"/{_SERVICE}/Session", None, None)
        self._generate: Any = self._channel.unary_stream(f"/{_SERVICE}/Generate", None, None)

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

    def opinion(self, context: Sequence[int], text: Sequence[int]) -> Opinion:
        """Asks what the target thinks of each token of a text after `context`, in no session."""
        answer = self._score(wire.score_to_proto(context, text=text))
        logprobs = self._as_many("tokens of a text", answer.text_logprobs, text)
        return Opinion(logprobs, tuple(answer.text_ranks))

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
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = self._session(iter(requests.get, None), timeout=timeout_s, metadata=self._metadata)
        try:
            with Responses(
                call, read_reply, self._network.round_timeout_s, self.address, self._clock
            ) as responses:
                yield SessionStream(opening, requests, responses, self._clock)
        finally:
            requests.put(None)  # half-closes the stream, unless it is cancelled by now

    def generate(
        self, mode: GenerateMode, opening: OpenSession, timeout_s: float | None = None
    ) -> Generator[Piece, None, None]:
        """Streams the output of a cloud arm; after `timeout_s` it ends on both ends."""
        request = Encoded.of(lambda: wire.generate_to_proto(mode, opening), self._clock)
        started, bytes_up, making_ns = request.begun_ns, request.size, request.making_ns
        call = self._generate(request.data, timeout=timeout_s, metadata=self._metadata)
        with Responses(
            call, read_piece, self._network.round_timeout_s, self.address, self._clock
        ) as responses:
            while (arrival := responses.next()) is not None:
                yield Piece(
                    tokens=arrival.value,
                    elapsed_ns=arrival.at_ns - started,
                    bytes_up=bytes_up,
                    bytes_down=arrival.size,
                    received_ns=arrival.at_ns,
                    serialization_ns=making_ns + arrival.reading_ns,
                )
                started, bytes_up, making_ns = arrival.at_ns, 0, 0


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
        # A name with several addresses is several replicas: each stream goes to the next one.
        ("grpc.lb_policy_name", "round_robin"),
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

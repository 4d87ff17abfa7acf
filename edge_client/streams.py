"""What passes on one call: values to bytes and back, each counted and timed.

Bytes are those of the serialized messages and the 5-byte header gRPC puts before each; what
HTTP/2 adds is left out (docs/methods.md says how much that is).
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from common import wire
from common.errors import DeadlineError, InternalError, UnavailableError
from common.types import AheadTokens, Draft, GeneratedTokens, OpenSession, Verdict
from edge_client.faults import error_from_call
from edge_client.link import Ahead, Answer, Clock, Opened
from outrider.v1 import verifier_pb2 as pb

FRAME_BYTES = 5
"""Length of the header gRPC puts before each message: one flag byte and the size."""

Value = TypeVar("Value")


class Call(Protocol):
    """Is what calls without serializers can do; the published type stubs leave it out."""

    def __iter__(self) -> Iterator[bytes]: ...

    def cancel(self) -> object: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Encoded:
    """Is a message as bytes: when somebody began to make them, and how long that took."""

    data: bytes
    begun_ns: int
    making_ns: int

    @classmethod
    def of(cls, make: Callable[[], Message], clock: Clock) -> Encoded:
        """Makes the message, and bytes of it."""
        begun = clock()
        data = make().SerializeToString()
        return cls(data, begun, clock() - begun)

    @property
    def size(self) -> int:
        """How many bytes it is on the wire, gRPC's own header included."""
        return len(self.data) + FRAME_BYTES


@dataclass(frozen=True, slots=True)
class Reply:
    """Is what came on a session: `kind` as the contract names it, and what it holds."""

    kind: str | None
    verdict: Verdict | None = None
    ahead: AheadTokens | None = None


def read_reply(data: bytes) -> Reply:
    """Reads what a session's server says; raises as `wire` and protobuf do."""
    message = pb.SessionResponse.FromString(data)
    kind = message.WhichOneof("message")
    if kind == "verdict":
        return Reply(kind, verdict=wire.verdict_from_proto(message.verdict))
    if kind == "ahead":
        return Reply(kind, ahead=wire.ahead_from_proto(message.ahead))
    return Reply(kind)


def read_piece(data: bytes) -> GeneratedTokens:
    """Reads a piece of a cloud arm's output; raises as `wire` and protobuf do."""
    return wire.generated_from_proto(pb.GenerateResponse.FromString(data))


@dataclass(frozen=True, slots=True)
class _Sent:
    """Is a draft in flight; `probabilities` are those of its bytes that say what it is from."""

    message: Encoded
    probabilities: int | None


class SessionStream:
    """Is one open session."""

    def __init__(
        self,
        opening: OpenSession,
        requests: queue.SimpleQueue[bytes | None],
        responses: Responses[Reply],
        clock: Clock,
    ) -> None:
        """Sends the opening."""
        self._requests = requests
        self._responses = responses
        self._clock = clock
        self._sent: deque[_Sent] = deque()  # drafts in flight
        self._is_opened = False
        message = Encoded.of(lambda: pb.SessionRequest(open=wire.open_to_proto(opening)), clock)
        self._opening_bytes = message.size
        requests.put(message.data)

    def send(self, draft: Draft) -> None:
        """Sends a draft and does not wait."""
        message = Encoded.of(
            lambda: pb.SessionRequest(verify=wire.draft_to_proto(draft)), self._clock
        )
        self._requests.put(message.data)
        probabilities = None
        if draft.distributions:
            probabilities = wire.distributions_bytes(draft.distributions)
        self._sent.append(_Sent(message, probabilities))

    def opened(self) -> Opened:
        """Waits until the server has the session; the bytes are counted once."""
        if self._is_opened:
            return Opened(0, 0)
        arrival = self._next("opened")
        self._is_opened = True
        return Opened(self._opening_bytes, arrival.size)

    def arrived(self, within_s: float = 0.0) -> bool:
        """Whether `receive` would not wait longer: a verdict comes, or whatever ends the call."""
        needed = 1 if self._is_opened else 2
        waiting = self._responses.waiting(needed, within_s)
        return waiting >= needed or (waiting > 0 and self._responses.ended)

    def receive(self) -> Answer | Ahead:
        """Waits for the verdict on the oldest draft in flight, or tokens before it."""
        opened = self.opened()
        arrival = self._next("verdict", "ahead")
        if arrival.value.ahead is not None:
            return Ahead(
                tokens=arrival.value.ahead,
                bytes_up=opened.bytes_up,
                bytes_down=opened.bytes_down + arrival.size,
                received_ns=arrival.at_ns,
            )
        assert arrival.value.verdict is not None
        if not self._sent:
            raise self._broken("nothing", arrival.value)
        sent = self._sent.popleft()
        return Answer(
            verdict=arrival.value.verdict,
            elapsed_ns=arrival.at_ns - sent.message.begun_ns,
            bytes_up=opened.bytes_up + sent.message.size,
            bytes_down=opened.bytes_down + arrival.size,
            draft_probabilities_bytes=sent.probabilities,
            received_ns=arrival.at_ns,
            serialization_ns=sent.message.making_ns + arrival.reading_ns,
        )

    def _next(self, *kinds: str) -> Arrival[Reply]:
        arrival = self._responses.next()
        if arrival is None:
            raise UnavailableError(
                f"server {self._responses.address} ended the session early; ask again"
            )
        if arrival.value.kind not in kinds:
            raise self._broken(repr(kinds[0]), arrival.value)
        return arrival

    def _broken(self, due: str, reply: Reply) -> InternalError:
        return InternalError(
            f"server {self._responses.address} broke the protocol: {due} was due, "
            f"and it sent {reply.kind!r}"
        )


@dataclass(frozen=True, slots=True)
class Arrival(Generic[Value]):
    """Is a response: when it had come and been read, its bytes, and how long reading took."""

    value: Value
    at_ns: int
    size: int
    reading_ns: int


class Responses(Generic[Value]):
    """Takes a call's responses one by one, each within the round timeout.

    A thread of its own reads each as it arrives, whatever the caller is busy with.
    gRPC's own timeout counts the whole call; a generation may take as long as it
    makes progress. Left by an error, the call is cancelled; otherwise it runs out.
    """

    def __init__(
        self,
        call: Call,
        read: Callable[[bytes], Value],
        timeout_s: float,
        address: str,
        clock: Clock,
    ) -> None:
        self.address = address
        self._call = call
        self._read = read
        self._timeout_s = timeout_s
        self._clock = clock
        self._arrivals: queue.SimpleQueue[Arrival[Value] | Exception | None] = queue.SimpleQueue()
        self._seen: deque[Arrival[Value] | Exception | None] = deque()  # and not taken
        self._begun = False
        self.ended = False
        """Whether the last of them has arrived."""
        threading.Thread(target=self._take, name="responses", daemon=True).start()

    def __enter__(self) -> Responses[Value]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._call.cancel()

    def waiting(self, needed: int, within_s: float) -> int:
        """Returns how many have arrived and were not taken; the end of the call is one, too.

        Waits at most so long for each that lacks.
        """
        with suppress(queue.Empty):
            while within_s and not self.ended and len(self._seen) < needed:
                self._seen.append(self._arrivals.get(timeout=within_s))
        return len(self._seen) + self._arrivals.qsize()

    def next(self) -> Arrival[Value] | None:
        """Waits for the next response; None when the call has ended with OK."""
        try:
            if not self._seen:
                self._seen.append(self._arrivals.get(timeout=self._timeout_s))
        except queue.Empty:
            self._call.cancel()
            raise DeadlineError(
                f"server {self.address} gave no answer within {self._timeout_s:g} s; "
                "is it overloaded? network.round_timeout_s says how long to wait"
            ) from None
        arrival = self._seen.popleft()
        if isinstance(arrival, grpc.RpcError):
            raise error_from_call(arrival, self.address, begun=self._begun) from arrival
        if isinstance(arrival, DecodeError):
            raise InternalError(
                f"server {self.address} broke the protocol: its answer cannot be read ({arrival})"
            ) from arrival
        if isinstance(arrival, Exception):
            raise arrival
        self._begun = True
        return arrival

    def _take(self) -> None:
        try:
            for data in self._call:
                begun = self._clock()
                value = self._read(data)
                now = self._clock()
                self._arrivals.put(Arrival(value, now, len(data) + FRAME_BYTES, now - begun))
        except Exception as error:  # whatever it is, it is the caller's
            last: Exception | None = error
        else:
            last = None
        self.ended = True
        self._arrivals.put(last)

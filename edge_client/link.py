"""What passes between the edge and a cloud, with what it measured: values and two protocols.

`transport.py` fulfils the protocols over gRPC; tests fulfil them without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from common.types import (
    AheadTokens,
    Draft,
    GeneratedTokens,
    GenerateMode,
    OpenSession,
    Opinion,
    ServerInfo,
    Verdict,
)

Clock = Callable[[], int]
"""Gives nanoseconds of one monotonic clock; passed in, so that tests have their own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Is a verdict as it arrived.

    `elapsed_ns` runs on the client's clock from when the draft was given to be sent to
    `received_ns`, when its verdict had come and been read, on the stream that answered; before
    it, and after the answer before, lie `lost_ns` in which lost streams were waited for and
    `reconnects` times replaced.
    `serialization_ns` of it went into making bytes of the draft and a verdict of bytes.
    `bytes_up` and `bytes_down` belong to this
    round, the opening of the session to the first. `draft_probabilities_bytes` is the
    part of `bytes_up` that says what guesses were drawn from, None where nothing does.
    """

    verdict: Verdict
    elapsed_ns: int
    bytes_up: int
    bytes_down: int
    draft_probabilities_bytes: int | None = None
    reconnects: int = 0
    lost_ns: int = 0
    received_ns: int = 0
    serialization_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Ahead:
    """Is what the target wrote alone as it arrived; bytes, `reconnects` and times as in Answer."""

    tokens: AheadTokens
    bytes_up: int
    bytes_down: int
    reconnects: int = 0
    lost_ns: int = 0
    received_ns: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Is a piece of a cloud arm's output as it arrived.

    `elapsed_ns` runs from the request for the first piece, and from the previous
    piece for each later one; the request's `bytes_up` belong to the first. After a
    loss the request is made again; `reconnects` and `lost_ns` are as in Answer, as are
    `received_ns` and `serialization_ns`, the request's in that of the first piece.
    """

    tokens: GeneratedTokens
    elapsed_ns: int
    bytes_up: int
    bytes_down: int
    reconnects: int = 0
    lost_ns: int = 0
    received_ns: int | None = None
    serialization_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """Says that the server has the session, with the bytes of asking; 0 where a round had them.

    `reconnects` and `lost_ns` are what happened while it was waited for, with nothing in
    flight; losses while a draft is in flight belong to its Answer.
    """

    bytes_up: int
    bytes_down: int
    reconnects: int = 0
    lost_ns: int = 0


class VerifyStream(Protocol):
    """Is one open session: drafts go up, verdicts come back in the same order.

    Where the target runs ahead, what it writes alone comes between them.
    """

    def opened(self) -> Opened:
        """Waits until the server has the session; raises its refusal."""
        ...

    def send(self, draft: Draft) -> None:
        """Sends a draft and does not wait."""
        ...

    def arrived(self, within_s: float = 0.0) -> bool:
        """Whether what `receive` waits for, or the error instead, is here or comes soon enough."""
        ...

    def receive(self) -> Answer | Ahead:
        """Waits for the next verdict, or tokens before it; raises a ServiceError for none."""
        ...


class Server(Protocol):
    """Is one server: whatever fails there fails (see CloudConnection)."""

    def info(self) -> ServerInfo: ...  # noqa: D102

    def echo(self, payload: bytes) -> tuple[int, int]: ...  # noqa: D102

    def score(  # noqa: D102
        self, context: Sequence[int], token_ids: Sequence[int]
    ) -> tuple[float, ...]: ...

    def opinion(self, context: Sequence[int], text: Sequence[int]) -> Opinion: ...  # noqa: D102

    def open(  # noqa: D102
        self, opening: OpenSession, timeout_s: float | None
    ) -> AbstractContextManager[VerifyStream]: ...

    def generate(  # noqa: D102
        self, mode: GenerateMode, opening: OpenSession, timeout_s: float | None
    ) -> Generator[Piece, None, None]: ...

    def close(self) -> None: ...  # noqa: D102


class Cloud(Protocol):
    """Is a server to the arms."""

    def info(self) -> ServerInfo:
        """Asks what the server is."""
        ...

    def open(self, opening: OpenSession) -> AbstractContextManager[VerifyStream]:
        """Opens a session without waiting; whatever is wrong shows at the first verdict."""
        ...

    def generate(self, mode: GenerateMode, opening: OpenSession) -> Iterator[Piece]:
        """Streams the output of a cloud arm."""
        ...

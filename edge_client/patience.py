"""How long a client that lost its server waits before it tries again, and when it gives up."""

from __future__ import annotations

from collections.abc import Callable

from common.config import NetworkSection
from common.errors import (
    DeadlineError,
    HandshakeError,
    InternalError,
    InvalidRequestError,
    OutriderError,
    OverloadedError,
    PrecisionError,
    PromptError,
    RefusedError,
    ServiceError,
)
from edge_client.link import Clock

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 5.0

_MISFITS = (
    HandshakeError,
    InvalidRequestError,
    PrecisionError,
    PromptError,
    RefusedError,
)
"""What makes one server of several no use, though another may be."""


class Patience:
    """Counts the attempts of one outage: exponential backoff with jitter, within what is allowed.

    An outage begins with the first failure and ends with the first answer, whatever
    generations it touches: one that follows a given-up one tries once and no more.

    A step that fails inside a server (InternalError) may be that server's own trouble, or a
    fault of ours that every server has: it is asked again as often as there are other servers,
    each of which has its turn, and then told as it is.
    """

    def __init__(
        self, network: NetworkSection, servers: int, clock: Clock, dice: Callable[[], float]
    ) -> None:
        """`dice` gives numbers in [0, 1): clients that lost one server do not return as one."""
        self._network = network
        self._servers = servers
        self._clock = clock
        self._dice = dice
        self._lost_ns: int | None = None
        self._failures = 0
        self._faults = 0  # of them, steps that failed inside a server

    def answered(self) -> None:
        """Ends the outage."""
        self._lost_ns = None
        self._failures = 0
        self._faults = 0

    def wait_s(self, error: OutriderError, deadline_ns: int | None) -> float:
        """Returns the seconds to wait before the next attempt.

        Raises `error` when another attempt cannot help or the outage has outlasted
        network.reconnect_s, and DeadlineError from `deadline_ns` on.
        """
        now = self._clock()
        if deadline_ns is not None and now >= deadline_ns:
            raise self.late() from error
        self._faults += isinstance(error, InternalError)
        if not self._may_pass(error):
            self.answered()  # the outage is over: somebody said no
            raise error
        if self._lost_ns is None:
            self._lost_ns = now
        # Every server has its turn before the wait doubles.
        doublings = min(self._failures // self._servers, 16)
        longest = min(FIRST_WAIT_S * 2.0**doublings, LONGEST_WAIT_S)
        wait = longest * (1 + self._dice()) / 2
        if isinstance(error, OverloadedError) and error.retry_after_s is not None:
            wait = max(wait, error.retry_after_s * (1 + self._dice() / 4))
        over_ns = self._lost_ns + self._network.reconnect_s * 1e9
        tried_all = self._failures >= self._servers - 1
        if now + wait * 1e9 > over_ns and (tried_all or not self._network.reconnect_s):
            raise self._given_up(error, (now - self._lost_ns) / 1e9)
        self._failures += 1
        return wait if deadline_ns is None else min(wait, (deadline_ns - now) / 1e9)

    def late(self) -> DeadlineError:
        """Returns the error of a generation that outlasted what its user allowed."""
        return DeadlineError(
            f"the text was not whole within network.deadline_s = {self._network.deadline_s:g} s; "
            "what was confirmed stands: allow more, or ask for fewer tokens"
        )

    def _may_pass(self, error: OutriderError) -> bool:
        if isinstance(error, ServiceError) and error.passing:
            return True
        if isinstance(error, InternalError):
            return self._faults < self._servers
        return self._lost_ns is not None and self._servers > 1 and isinstance(error, _MISFITS)

    def _given_up(self, error: OutriderError, lost_s: float) -> OutriderError:
        if not self._failures:
            return error
        return type(error)(
            f"{error}; given up after {self._failures} attempts in {lost_s:.1f} s "
            "(network.reconnect_s)"
        )

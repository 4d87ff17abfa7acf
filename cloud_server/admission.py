"""Who may come in: how many sessions and tokens at once, of all clients and of each."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from common.config import CloudSection
from common.errors import (
    InvalidRequestError,
    OverloadedError,
    PromptError,
    UnavailableError,
)
from common.types import OpenSession

_SHORTEST_WAIT_S, _FIRST_GUESS_S, _LONGEST_WAIT_S = 0.05, 1.0, 5.0


@dataclass(slots=True, eq=False)
class Guest:
    """Is a session, a generation or a score that has been let in.

    `in_flight` counts its tokens that wait for the target or are in it; `name`, and `slot`
    in the cache, are for logs and reach nothing.
    """

    client: str
    came_ns: int
    in_flight: int = 0
    slot: int | None = None
    name: str = field(default_factory=lambda: secrets.token_hex(4))

    @contextmanager
    def waiting(self, tokens: int) -> Iterator[None]:
        """Counts tokens as in flight for the length of a `with` block."""
        self.in_flight += tokens
        try:
            yield
        finally:
            self.in_flight -= tokens


class Admission:
    """Keeps the books of who is in. Pure: the clock's nanoseconds are passed in."""

    def __init__(self, limits: CloudSection) -> None:
        self._limits = limits
        self.guests: set[Guest] = set()
        self.closed: str | None = None  # why nobody is let in any more
        self._stay_s: float | None = None  # how long guests stay, the latest weighing most

    @property
    def in_flight(self) -> int:
        """Tokens of all guests that wait for the target or are in it."""
        return sum(guest.in_flight for guest in self.guests)

    def check_opening(self, opening: OpenSession) -> None:
        """Raises PromptError or InvalidRequestError for more than any client may ask."""
        self.check_prompt(len(opening.prompt_token_ids))
        asked, most = opening.stop.max_new_tokens, self._limits.max_new_tokens
        if most is not None and asked > most:
            raise InvalidRequestError(
                f"stop.max_new_tokens is {asked} and this server makes at most {most} "
                "(cloud.max_new_tokens); ask for fewer"
            )

    def check_prompt(self, asked: int) -> None:
        """Raises PromptError for a longer text than any client may have read."""
        most = self._limits.max_prompt_tokens
        if most is not None and asked > most:
            raise PromptError(
                f"the prompt has {asked} tokens and this server takes at most {most} "
                "(cloud.max_prompt_tokens); shorten it"
            )

    def check_tokens(self, client: str, tokens: int) -> None:
        """Raises OverloadedError where so many more tokens may not wait for the target now."""
        limits = self._limits
        own = sum(guest.in_flight for guest in self.guests if guest.client == client)
        self._refuse(
            own, tokens, limits.max_client_tokens, "waiting tokens of this client",
            "max_client_tokens",
        )  # fmt: skip
        self._refuse(
            self.in_flight, tokens, limits.max_waiting_tokens, "waiting tokens",
            "max_waiting_tokens",
        )  # fmt: skip

    @contextmanager
    def guest(self, client: str, tokens: int, now_ns: int) -> Iterator[Guest]:
        """Lets a client in that has so many tokens to run, for the length of a `with` block.

        Raises UnavailableError once closed, and OverloadedError, saying when to ask again, where
        there is no room now.
        """
        if self.closed is not None:
            raise UnavailableError(self.closed, self._limits.redirect)
        own = [guest for guest in self.guests if guest.client == client]
        limits = self._limits
        self._refuse(len(self.guests), 1, limits.max_sessions, "sessions", "max_sessions")
        self._refuse(
            len(own), 1, limits.max_client_sessions, "sessions of this client",
            "max_client_sessions",
        )  # fmt: skip
        self.check_tokens(client, tokens)
        guest = Guest(client, now_ns, tokens)
        self.guests.add(guest)
        try:
            yield guest
        finally:
            self.guests.remove(guest)

    def stayed(self, seconds: float) -> None:
        """Learns from a guest that leaves how soon another one may."""
        self._stay_s = seconds if self._stay_s is None else 0.8 * self._stay_s + 0.2 * seconds

    @property
    def retry_after_s(self) -> float:
        """When a guest is likely to have left: how long they stay, over how many there are."""
        if self._stay_s is None:
            return _FIRST_GUESS_S
        soon = self._stay_s / max(1, len(self.guests))
        return min(max(soon, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)

    def _refuse(self, held: int, more: int, most: int | None, what: str, key: str) -> None:
        # What is too much by itself has its turn when nothing else is there.
        if most is None or held + more <= most or (held == 0 and more > most):
            return
        raise OverloadedError(
            f"this server already holds {held} {what} of at most {most}; retry later or raise "
            f"cloud.{key}",
            self.retry_after_s,
        )

"""One tree of errors, shared by both processes.

    OutriderError
    ├── UsageError                  asked for something that cannot be done   (exit 2)
    │   ├── ConfigError             a configuration key or value              INVALID_ARGUMENT
    │   ├── PromptError             a prompt file, or a prompt too long       INVALID_ARGUMENT
    │   ├── ModelError              a model missing, or not servable          FAILED_PRECONDITION
    │   ├── PrecisionError          a tensor or a peer of another precision   FAILED_PRECONDITION
    │   ├── HandshakeError          two ends that do not fit together         FAILED_PRECONDITION
    │   └── InvalidRequestError     a message that breaks the protocol        INVALID_ARGUMENT
    ├── ServiceError                the other end, or the way to it           (exit 3)
    │   ├── UnavailableError        not there, gone, loading or draining      UNAVAILABLE
    │   ├── EvictedError            the session was ended to make room        ABORTED
    │   ├── OverloadedError         no room for another session or request    RESOURCE_EXHAUSTED
    │   ├── DeadlineError           longer than the caller allowed            DEADLINE_EXCEEDED
    │   └── RefusedError            no credentials, or wrong ones             UNAUTHENTICATED
    └── InternalError               our own fault: a broken invariant         INTERNAL (exit 1)

Each class names its gRPC status, its machine-readable reason (sent in the error
details), the exit code of the commands, and its remedy: what a user does, in one
sentence. A message says what was wrong, the value, and what to do. docs/errors.md
lists them all.
"""

from __future__ import annotations

from typing import ClassVar


class OutriderError(Exception):
    """Is the root of every error this project raises on purpose."""

    status: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1
    remedy: ClassVar[str] = "Run it again with --debug and report what it prints."


class UsageError(OutriderError):
    """Says that the caller can mend this by asking differently."""

    status = "INVALID_ARGUMENT"
    reason = "USAGE"
    exit_code = 2
    remedy = "Correct what the message names; --help lists what can be asked."


class ConfigError(UsageError):
    """Names a configuration key or value that cannot be used."""

    reason = "CONFIG"
    remedy = "Correct the key, the flag or the file that the message names."


class PromptError(UsageError):
    """Names a prompt, or a line of a prompt file, that cannot be used."""

    reason = "PROMPT"
    remedy = "Correct the line that the message names, or shorten the prompt."


class ModelError(UsageError):
    """Names a model that is missing or that this engine cannot serve exactly."""

    status = "FAILED_PRECONDITION"
    reason = "MODEL"
    remedy = "Name another model, or complete its directory as the message says."


class PrecisionError(UsageError):
    """Names a tensor, a setting or a peer whose precision is not the configured one."""

    status = "FAILED_PRECONDITION"
    reason = "PRECISION"
    remedy = "Give both ends the same dtype, or leave it out: the default is float32."


class HandshakeError(UsageError):
    """Names the two values in which client and server do not fit together."""

    status = "FAILED_PRECONDITION"
    reason = "HANDSHAKE"
    remedy = "Serve and draft with models, tokenizers and versions that belong together."


class InvalidRequestError(UsageError):
    """Names the field of a message that breaks the protocol."""

    reason = "INVALID_REQUEST"
    remedy = "Ask for what the message allows; another client than ours mends its message."


class ServiceError(OutriderError):
    """Says that the other end, or the way to it, failed.

    `passing` says whether asking again, here or elsewhere, may help: a client that holds
    all tokens then opens its session anew.
    """

    status = "UNAVAILABLE"
    reason = "SERVICE"
    exit_code = 3
    passing: ClassVar[bool] = True


class UnavailableError(ServiceError):
    """Says that the server is not there, went away, is loading or draining.

    `redirect` is the server that takes over, where the one that said this knows it.
    """

    reason = "UNAVAILABLE"
    remedy = "Start the server, wait until it is ready, or name another with --server."

    def __init__(self, message: str, redirect: str | None = None) -> None:
        super().__init__(message)
        self.redirect = redirect


class EvictedError(ServiceError):
    """Says that the server ended an idle session; its client, which holds all tokens, reopens."""

    status = "ABORTED"
    reason = "EVICTED"
    remedy = "Ask again, or raise cloud.idle_session_seconds of the server."


class OverloadedError(ServiceError):
    """Says that the server has no room for another session or request now.

    `retry_after_s` is when it expects to, None where it cannot tell.
    """

    status = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"
    remedy = "Ask again later, or raise the limit of the server that the message names."

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(ServiceError):
    """Says that an answer took longer than the caller allowed."""

    status = "DEADLINE_EXCEEDED"
    reason = "DEADLINE"
    remedy = "Allow more time, ask for fewer tokens, or use a server that is less busy."


class RefusedError(ServiceError):
    """Says that the server does not know this client, or that what listens there is another."""

    status = "UNAUTHENTICATED"
    reason = "REFUSED"
    passing = False
    remedy = "Check the address, the token and the certificates of both ends."


class InternalError(OutriderError):
    """Says that an invariant of ours is broken; no caller can cause it."""

    remedy = "Run it again with --debug and report what it prints, and the server's log."


def leaves(root: type[OutriderError]) -> list[type[OutriderError]]:
    """Returns the errors that are raised: those with no others below them."""
    below = [leaf for child in root.__subclasses__() for leaf in leaves(child)]
    return below or [root]

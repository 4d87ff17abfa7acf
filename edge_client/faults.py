"""From what gRPC raises to our own errors: every status code has its place."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from common import wire
from common.errors import (
    DeadlineError,
    HandshakeError,
    InternalError,
    InvalidRequestError,
    OutriderError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)

_NO_CONNECTION = ("failed to connect", "connections to all backends failing")
_RESET = "RST_STREAM"  # what a proxy says when the server behind it is lost
_DETAILS_TRAILER = "grpc-status-details-bin"

_NO_OUTRIDER = "what listens there is no Outrider server; check the address"
_NO_ENTRY = "the server does not know this client; security.token_file names its token"
_SERVER_FAULT = "a fault of the server; its log says more"

TLS_FAULTS: Mapping[str, tuple[type[OutriderError], str]] = {
    "WRONG_VERSION_NUMBER": (
        RefusedError,
        "it speaks no TLS, and security.tls_ca (--tls-ca) asks for it; give the server "
        "security.tls_cert and security.tls_key, or leave security.tls_ca out",
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        RefusedError,
        "its certificate is not one that security.tls_ca (--tls-ca) vouches for; "
        "name the PEM file of the authority that signed it",
    ),
    "Hostname Verification Check failed": (
        RefusedError,
        "its certificate is for another name; ask for the server by a name in it "
        "(`openssl x509 -noout -ext subjectAltName -in FILE` lists them)",
    ),
    "Socket closed": (
        UnavailableError,
        "it hung up at once; if it speaks TLS, set security.tls_ca (--tls-ca); if it asks for a "
        "client's certificate, set security.tls_cert and security.tls_key to one it accepts",
    ),
}
"""What gRPC says of a connection that never came about, and what the user may do."""

BY_CODE: Mapping[grpc.StatusCode, tuple[type[OutriderError], str]] = {
    grpc.StatusCode.OK: (InternalError, _SERVER_FAULT),  # an error that says OK
    grpc.StatusCode.CANCELLED: (UnavailableError, "the server ended the call; ask again"),
    grpc.StatusCode.UNKNOWN: (InternalError, _SERVER_FAULT),
    grpc.StatusCode.INVALID_ARGUMENT: (InvalidRequestError, "the server refuses the request"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        DeadlineError,
        "no answer in time; is it overloaded or out of reach? "
        "network.connect_timeout_s and network.round_timeout_s say how long to wait",
    ),
    grpc.StatusCode.NOT_FOUND: (RefusedError, _NO_OUTRIDER),
    grpc.StatusCode.ALREADY_EXISTS: (InternalError, _SERVER_FAULT),
    grpc.StatusCode.PERMISSION_DENIED: (RefusedError, _NO_ENTRY),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (OverloadedError, "no room now; try again later"),
    grpc.StatusCode.FAILED_PRECONDITION: (HandshakeError, "the two ends do not fit together"),
    grpc.StatusCode.ABORTED: (UnavailableError, "the server gave up; ask again"),
    grpc.StatusCode.OUT_OF_RANGE: (InvalidRequestError, "the server refuses the request"),
    grpc.StatusCode.UNIMPLEMENTED: (RefusedError, _NO_OUTRIDER),
    grpc.StatusCode.INTERNAL: (InternalError, _SERVER_FAULT),
    grpc.StatusCode.UNAVAILABLE: (
        UnavailableError,
        "is it running? start it with `outrider-cloud serve`",
    ),
    grpc.StatusCode.DATA_LOSS: (InternalError, _SERVER_FAULT),
    grpc.StatusCode.UNAUTHENTICATED: (RefusedError, _NO_ENTRY),
}
"""Used when the status carries no reason of ours: the class, and what the user may do."""


def error_from_call(error: grpc.RpcError, address: str, *, begun: bool = False) -> OutriderError:
    """Returns the error of ours for a failed call; the server's own reason comes first.

    `begun` says that answers had come already. What the server says is made one printable line.
    """
    if not isinstance(error, grpc.Call):
        return UnavailableError(f"server {address}: {error}")
    details = wire.printable(" ".join((error.details() or "").split()))
    trailers = dict(error.trailing_metadata() or ())
    packed = trailers.get(_DETAILS_TRAILER)
    message = f"server {address}: {details}"
    ours = wire.error_from_details(packed if isinstance(packed, bytes) else None, message)
    if ours is not None:
        return ours
    if "larger than max" in details:  # gRPC's own words, at either end, before ours are asked
        return InvalidRequestError(
            f"server {address}: a message is larger than it takes ({details}); "
            "shorten the prompt, or raise cloud.max_message_bytes at both ends"
        )
    if _RESET in details or (begun and error.code() is grpc.StatusCode.UNAVAILABLE):
        return UnavailableError(
            f"server {address} went away in the middle; what it confirmed stands. "
            f"Start it again with `outrider-cloud serve` and ask again ({details})"
        )
    kind, advice = BY_CODE[error.code()]
    if error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith(_NO_CONNECTION):
        told = (fault for sign, fault in TLS_FAULTS.items() if sign in details)
        kind, advice = next(told, (kind, advice))
    return kind(f"server {address}: {error.code().name}: {advice} ({details or 'no details'})")

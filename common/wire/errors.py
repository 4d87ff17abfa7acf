"""Errors to the details of a status, and back."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from common.errors import (
    ConfigError,
    DeadlineError,
    EvictedError,
    HandshakeError,
    InternalError,
    InvalidRequestError,
    ModelError,
    OutriderError,
    OverloadedError,
    PrecisionError,
    PromptError,
    RefusedError,
    UnavailableError,
)
from outrider.v1 import verifier_pb2 as pb

ERROR_DOMAIN = "outrider"

_BY_REASON: dict[str, type[OutriderError]] = {
    error.reason: error
    for error in (
        ConfigError,
        PromptError,
        ModelError,
        PrecisionError,
        HandshakeError,
        InvalidRequestError,
        UnavailableError,
        EvictedError,
        OverloadedError,
        DeadlineError,
        RefusedError,
        InternalError,
    )
}


def status_code(error: OutriderError) -> int:
    """Returns the canonical gRPC status code of an error."""
    return int(code_pb2.Code.Value(error.status))


def error_to_proto(error: OutriderError) -> pb.EntryError:
    """Converts the error of one entry of a batch."""
    return pb.EntryError(code=status_code(error), reason=error.reason, message=str(error))


def error_details(error: OutriderError) -> bytes:
    """Returns the google.rpc.Status, serialized, for the `grpc-status-details-bin` trailer."""
    info = any_pb2.Any()
    where = {"redirect": redirect} if (redirect := getattr(error, "redirect", None)) else {}
    info.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=where))
    status = status_pb2.Status(code=status_code(error), message=str(error), details=[info])
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        status.details.add().Pack(retry)
    return bytes(status.SerializeToString())


def error_from_details(details: bytes | None, message: str) -> OutriderError | None:
    """Rebuilds the error a server sent, or returns None when the details are not ours."""
    try:
        status = status_pb2.Status.FromString(details or b"")
    except DecodeError:
        return None
    found: OutriderError | None = None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for packed in status.details:
        if packed.Unpack(info) and info.domain == ERROR_DOMAIN and info.reason in _BY_REASON:
            found = _BY_REASON[info.reason](message)
            if isinstance(found, UnavailableError):
                found.redirect = info.metadata.get("redirect")
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    if isinstance(found, OverloadedError):
        found.retry_after_s = retry_after_s
    return found

"""Every error has its own reason, a canonical status, an exit code, and survives the wire."""

from __future__ import annotations

import grpc
import pytest

from common import errors, wire


def tree(root: type[errors.OutriderError]) -> list[type[errors.OutriderError]]:
    return [root, *(error for child in root.__subclasses__() for error in tree(child))]


LEAVES = [error for error in tree(errors.OutriderError) if not error.__subclasses__()]
STATUSES = {code.name: code.value[0] for code in grpc.StatusCode}


@pytest.mark.parametrize("error", LEAVES)
def test_the_wire_carries_it_both_ways(error: type[errors.OutriderError]) -> None:
    details = wire.error_details(error("what, value, way out"))
    back = wire.error_from_details(details, "what, value, way out")
    assert type(back) is error
    assert str(back) == "what, value, way out"
    assert wire.status_code(error("x")) == STATUSES[error.status]
    entry = wire.error_to_proto(error("x"))
    assert (entry.code, entry.reason, entry.message) == (STATUSES[error.status], error.reason, "x")


def test_reasons_are_unique_and_listed_in_the_contract() -> None:
    reasons = [error.reason for error in LEAVES]
    assert len(set(reasons)) == len(reasons)
    with open("proto/outrider/v1/verifier.proto", encoding="utf-8") as proto:
        head = proto.read().split("syntax =")[0]
    assert all(reason in head for reason in reasons)


def test_client_faults_are_never_internal() -> None:
    assert all(e.status != "INTERNAL" and e.exit_code == 2 for e in tree(errors.UsageError))
    assert all(e.status != "INTERNAL" and e.exit_code == 3 for e in tree(errors.ServiceError))
    assert errors.InternalError.exit_code == 1


def test_the_tree_is_printed_in_the_docstring() -> None:
    assert errors.__doc__ is not None
    for error in LEAVES:
        assert error.__name__ in errors.__doc__
        assert error.status in errors.__doc__


@pytest.mark.parametrize("details", [None, b"", b"\xffgarbage"])
def test_details_of_others_are_left_alone(details: bytes | None) -> None:
    assert wire.error_from_details(details, "x") is None


@pytest.mark.parametrize("redirect", [None, "host:1"])
def test_who_takes_over_travels_with_a_refusal(redirect: str | None) -> None:
    details = wire.error_details(errors.UnavailableError("draining", redirect))
    back = wire.error_from_details(details, "x")
    assert isinstance(back, errors.UnavailableError)
    assert back.redirect == redirect


@pytest.mark.parametrize("after", [None, 0.0, 1.25])
def test_when_to_ask_again_travels_with_an_overload(after: float | None) -> None:
    back = wire.error_from_details(wire.error_details(errors.OverloadedError("full", after)), "x")
    assert isinstance(back, errors.OverloadedError)
    assert back.retry_after_s == after

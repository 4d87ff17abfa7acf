"""What a server says of itself and of its addresses."""

from __future__ import annotations

import os

import pytest

from cloud_server.cli import main
from cloud_server.description import describe
from cloud_server.listening import check_redirect, joined, split
from common.config import CloudSection
from common.lm.precision import PrecisionReport
from tests.models import language_model


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:50051", "localhost:1"])
def test_an_address_comes_out_as_it_went_in(address: str) -> None:
    assert joined(*split(address, "listen")) == address


@pytest.mark.parametrize("address", ["heir", "heir:", ":1", "heir:port", "heir:70000", "heir:0"])
def test_a_redirect_that_is_no_address_is_refused_before_anything_is_loaded(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", "nowhere", "--set", f"cloud.redirect={address!r}"]) == 2
    said = capsys.readouterr().err
    assert f"cloud.redirect = {address!r}: write it as HOST:PORT" in said
    assert "or leave it out" in said


@pytest.mark.parametrize("address", ["heir:1", "10.0.0.7:50051", "[::1]:50051"])
def test_a_redirect_that_is_an_address_is_taken(address: str) -> None:
    check_redirect(address)


def test_a_system_that_does_not_tell_a_processes_cores_is_served_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    info = describe(language_model(), CloudSection(), PrecisionReport({}, exact=True))
    assert info.environment["cores"] == str(os.cpu_count())

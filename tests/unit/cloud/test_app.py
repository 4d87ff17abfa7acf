"""What a server says of itself and of its addresses."""

from __future__ import annotations

import os

import pytest

from cloud_server.description import describe
from cloud_server.listening import joined, split
from common.config import CloudSection
from common.lm.precision import PrecisionReport
from tests.models import language_model


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:50051", "localhost:1"])
def test_an_address_comes_out_as_it_went_in(address: str) -> None:
    assert joined(*split(address, "listen")) == address


def test_a_system_that_does_not_tell_a_processes_cores_is_served_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    info = describe(language_model(), CloudSection(), PrecisionReport({}, exact=True))
    assert info.environment["cores"] == str(os.cpu_count())

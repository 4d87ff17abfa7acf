"""`outrider-cloud` in this process: what its last line says."""

from __future__ import annotations

import sys

import pytest

import cloud_server
from cloud_server.cli import main
from tests.models import Pair


def test_a_failed_check_says_so_in_its_last_line(
    tiny_pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    # Rotary positions stay float32, so the audit of a bfloat16 run finds offenders.
    model = str(tiny_pair.target)
    assert main(["check", "--model", model, "--set", "cloud.dtype=bfloat16"]) == 2
    found = capsys.readouterr()
    assert "OFFENDER" in found.out
    last = found.err.splitlines()[-1]
    assert last.startswith(f"outrider-cloud: {model} does not run in bfloat16 throughout")


def test_where_the_server_s_packages_are_not_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(cloud_server, "app", raising=False)
    monkeypatch.setitem(sys.modules, "cloud_server.app", None)
    assert main(["serve", "--model", "none"]) == 2
    assert "pip install 'outrider[cloud]'" in capsys.readouterr().err

"""The server's log: of an error its kind and its place, and nothing a client sent."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from cloud_server.logs import log_to_stderr


def stumble() -> None:
    try:
        raise KeyError("the prompt inside")
    except KeyError as error:
        raise ValueError("the prompt outside") from error


def test_an_exception_is_logged_without_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_stderr()
    try:
        stumble()
    except ValueError:
        logging.getLogger("test").exception("a request failed")
    log = written.getvalue()
    assert "ERROR a request failed" in log
    assert "in stumble" in log
    assert log.index("KeyError (its message is left out)") < log.index("ValueError (its message")
    assert "the prompt" not in log.replace('raise KeyError("the prompt inside")', "").replace(
        'raise ValueError("the prompt outside")', ""
    )

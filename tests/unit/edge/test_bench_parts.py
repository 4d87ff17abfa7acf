"""What bench does when a model cannot answer, or somebody wants it to end."""

from __future__ import annotations

import os
import signal
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.errors import UnavailableError
from common.types import Opinion
from edge_client.app import Assembly
from edge_client.bench import _heed_ends, _opinions


def raising(error: Exception) -> Any:
    def opinion(*_: object) -> Opinion:
        raise error

    return SimpleNamespace(opinion=opinion)


def asked(drafter: Any, cloud: Any) -> list[str]:
    parts = SimpleNamespace(drafter=drafter, cloud=cloud, context_length=8)
    return sorted(_opinions(cast(Assembly, parts), (1, 2), (3,)))


def test_a_model_that_cannot_say_is_left_out() -> None:
    says = SimpleNamespace(opinion=lambda *_: Opinion((-1.0,)))
    refused = raising(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    gone = raising(UnavailableError("gone"))
    assert asked(says, says) == ["draft model", "target"]
    assert asked(refused, says) == ["target"]
    assert asked(says, gone) == ["draft model"]
    assert asked(says, None) == ["draft model"]
    with pytest.raises(RuntimeError, match="a fault"):
        asked(raising(RuntimeError("a fault")), says)


class Finalized:
    """Is ended by somebody in the middle of its finalizer, which cannot raise."""

    def __init__(self, how: int) -> None:
        self.how = how

    def __del__(self) -> None:
        os.kill(os.getpid(), self.how)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_end_that_comes_in_a_finalizer_is_noted_and_makes_no_noise(
    how: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended = _heed_ends()
        assert not ended()
        Finalized(how)
        assert ended()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == ""

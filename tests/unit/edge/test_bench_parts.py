"""What bench asks of the models for the report, when one of them cannot answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.errors import UnavailableError
from common.types import Opinion
from edge_client.app import Assembly
from edge_client.bench import _opinions


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

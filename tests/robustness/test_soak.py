"""Twenty seconds of the soak (`make soak` for ten minutes)."""

from __future__ import annotations

import pytest

from tests.integration.processes import serving
from tests.models import Pair
from tests.robustness.soak import FLAGS, soak


@pytest.mark.timeout(180)
def test_clients_that_come_and_go_leave_nothing_behind(tiny_pair: Pair) -> None:
    with serving(tiny_pair.target, *FLAGS) as server:
        report = soak(server, seconds=20, clients=32, seed=1)
    assert not report.faults, report.faults[0]
    assert report.outcomes["left in the middle"] > 10

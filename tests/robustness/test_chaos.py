"""The short form of the chaos (`make chaos` for the long one)."""

from __future__ import annotations

from tests.models import Pair
from tests.robustness.chaos import chaos
from tests.robustness.faulty_relay import FAULTS, Plan
from tests.robustness.resuming import generate


def test_texts_come_out_identical_through_a_failing_link_and_a_killed_server(
    tiny_pair: Pair,
) -> None:
    plan = Plan(mean_bytes=2048.0, seed=1)
    report = chaos(tiny_pair.target, generate, total=20, kill_every=10, plan=plan)
    assert not report.faults, report.faults[0]
    assert report.identical == 20
    assert report.kills == 1
    assert all(report.link[fault] for fault in FAULTS), report.link

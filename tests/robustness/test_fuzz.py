"""The short form of the fuzzing: one seed, or as many as try everything (`make fuzz` is long)."""

from __future__ import annotations

from tests.integration.processes import serving
from tests.models import Pair
from tests.robustness.fuzz import FLAGS, fuzz


def test_abuse_neither_breaks_a_server_nor_reaches_another_sessions_text(tiny_pair: Pair) -> None:
    with serving(tiny_pair.target, "--draft-model", str(tiny_pair.draft), *FLAGS) as server:
        report = fuzz(server, total=2500, number=2)
    assert not report.tally.faults, report.tally.faults[0]
    assert report.tally.sequences >= 2500
    assert report.growth < 0.1  # 2,000 sequences more; `make fuzz` has the narrow bound
    assert report.witnessed > 0
    assert report.tally.outcomes["OUTCOME_VERIFIED"] > 500  # sequences reach deep

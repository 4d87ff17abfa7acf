"""What the counters say of rules and gates."""

from __future__ import annotations

from cloud_server.metrics import Metrics
from common.types import Draft, Outcome, Verdict, VerificationMode, VerificationParams


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_sessions_are_counted_by_their_rule() -> None:
    metrics = Metrics()
    metrics.observe_opening(VerificationParams())
    for _ in range(2):
        metrics.observe_opening(VerificationParams(VerificationMode.RANK, gated=True))
    opened = "outrider_sessions_opened_total"
    assert value(metrics, opened, verification="coupled", gated="false") == 1
    assert value(metrics, opened, verification="rank", gated="true") == 2
    assert value(metrics, opened, verification="typical", gated="false") == 0


def test_what_nobody_judged_is_counted_for_gated_clients_alone() -> None:
    metrics = Metrics()
    draft = Draft(1, 3, 0, (7, 8), confirmed_token_ids=(4, 5, 6))
    verdict = Verdict(1, 0, Outcome.VERIFIED, 8, 2, 9)
    metrics.observe_verdict(draft, verdict, gated=False)
    assert value(metrics, "outrider_unverified_tokens_total") == 0
    metrics.observe_verdict(draft, verdict, gated=True)
    assert value(metrics, "outrider_unverified_tokens_total") == 3
    stale = Verdict(1, 0, Outcome.STALE, 8)
    metrics.observe_verdict(draft, stale, gated=True)
    assert value(metrics, "outrider_unverified_tokens_total") == 3

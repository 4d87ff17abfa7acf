"""What each rule promises of a text, and the words it is labelled with."""

from __future__ import annotations

import pytest

from common.config import load
from edge_client.rule import EXACT, Promise, Rule, rule_of


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        ([], EXACT),
        (["verification.mode=rejection"], Rule("rejection", candidates=32)),
        (["verification.mode=rank", "verification.rank_threshold=3"],
         Rule("rank", rank_threshold=3)),
        (["verification.mode=typical"],
         Rule("typical", typical_threshold=0.09, typical_alpha=0.3)),
        (["gate.kind=margin", "gate.threshold=0.5"], Rule(gate="margin", gate_threshold=0.5)),
    ],
)  # fmt: skip
def test_a_rule_holds_what_it_uses_and_nothing_else(overrides: list[str], rule: Rule) -> None:
    assert rule_of(load(None, overrides)) == rule


@pytest.mark.parametrize(
    ("rule", "greedy", "sampled"),
    [
        (EXACT, Promise.TOKENS, Promise.TOKENS),
        (Rule("rejection"), Promise.TOKENS, Promise.DISTRIBUTION),
        (Rule("rank", rank_threshold=1), None, None),
        (Rule("typical", typical_threshold=0.1, typical_alpha=0.3), None, None),
        (Rule(gate="entropy", gate_threshold=0.1), None, None),
        (Rule("rejection", gate="entropy", gate_threshold=0.1), None, None),
    ],
)
def test_promises(rule: Rule, greedy: Promise | None, sampled: Promise | None) -> None:
    assert (rule.promise(0.0), rule.promise(0.7)) == (greedy, sampled)
    assert rule.promise(1e-9) == greedy  # as cold as greedy
    assert rule.lossless == (greedy is not None)
    assert bool(rule.losses) == (greedy is None)


def test_losses_name_their_numbers() -> None:
    rule = Rule("rank", rank_threshold=20, gate="logprob", gate_threshold=-0.25)
    assert rule.losses == (
        "verified by rank <= 20: its text is not the target's own",
        "commits tokens without asking (logprob >= -0.25 nats)",
    )
    typical = Rule("typical", typical_threshold=0.09, typical_alpha=0.3)
    assert "typical acceptance (threshold 0.09, alpha 0.3)" in typical.losses[0]

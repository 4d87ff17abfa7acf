"""The `stats` of `generate --json`."""

from __future__ import annotations

from common.types import FinishReason, SamplingParams, StepTiming
from edge_client.stats import Conditions, one_line, summarise
from edge_client.steps import Step

MS = 1_000_000


def a_round(num_tokens: int, drafted: int, accepted: int, sessions: int) -> Step:
    return Step(
        tuple(range(num_tokens)),
        "",
        FinishReason.MAX_NEW_TOKENS,
        elapsed_ns=10 * MS,
        draft_ns=2 * MS,
        num_draft_tokens=drafted,
        num_accepted_tokens=accepted,
        timing=StepTiming(total_ns=4 * MS, step_sessions=sessions, forward_passes=1),
        bytes_up=20,
        bytes_down=30,
        asked=True,
    )


def conditions(arm: str) -> Conditions:
    return Conditions(arm, SamplingParams(seed=11), "float32", "float32")


def test_rounds_are_pooled() -> None:
    steps = [a_round(5, 4, 4, 1), a_round(2, 4, 1, 3)]
    stats = summarise(conditions("speculative"), (1, 2), steps, [20 * MS, 40 * MS])
    assert (stats["arm"], stats["seed"], stats["draft_dtype"]) == ("speculative", 11, "float32")
    assert (stats["rounds"], stats["num_draft_tokens"], stats["num_accepted_tokens"]) == (2, 8, 5)
    assert (stats["acceptance_rate"], stats["mean_accepted_length"]) == (5 / 8, 3.5)
    assert stats["accepted_per_position"] == (2, 1, 1, 1)
    assert stats["drafted_per_position"] == (2, 2, 2, 2)
    assert (stats["rtt_ms"]["p50"], stats["network_ms"]["p50"]) == (10, 6)
    assert (stats["step_sessions"], stats["shared_forwards"]) == ({"max": 3, "mean": 2.0}, 1)
    assert (stats["ttft_s"], stats["e2e_s"], stats["tokens_per_s"]) == (0.02, 0.04, 7 / 0.04)
    assert (stats["bytes_up"], stats["bytes_down"]) == (40, 60)
    assert "text" not in stats
    assert one_line(stats) == (
        "7 tokens, 175.0 tokens/s, 62% of drafts accepted, 3.50 tokens a round, "
        "round trip p50 10.0 ms"
    )


def test_what_does_not_apply_is_none() -> None:
    steps = [Step((1,), "a", None), Step((2,), "b", FinishReason.EOS)]
    stats = summarise(conditions("edge"), (1, 2), steps, [10 * MS, 20 * MS])
    for name in ("rounds", "acceptance_rate", "rtt_ms", "step_sessions", "shared_forwards"):
        assert stats[name] is None
    assert one_line(stats) == "2 tokens, 100.0 tokens/s"

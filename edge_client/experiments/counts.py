"""What was drafted, asked and thrown away in one generation: fields of its record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edge_client.steps import Step


def asking(rounds: Sequence[Step], unasked: Sequence[Step]) -> dict[str, Any]:
    """Counts what the cloud was asked, what it corrected, and what it never saw judged.

    A draft model on the server asks nobody over the link: then only what was corrected is counted.
    """
    if not unasked and not any(step.asked for step in rounds):
        return _corrections(rounds, sum(len(step.token_ids) for step in rounds))
    unverified = sum(len(step.token_ids) for step in unasked)
    tokens = unverified + sum(len(step.token_ids) for step in rounds)
    return {
        "unasked_blocks": len(unasked),
        "cloud_call_rate": len(rounds) / (len(rounds) + len(unasked)),
        "num_unverified_tokens": unverified,
        "verified_share": (tokens - unverified) / tokens if tokens else None,
        **_corrections(rounds, tokens),
    }


def waste(steps: Sequence[Step], rounds: Sequence[Step]) -> dict[str, Any]:
    """Counts drafts sent ahead, and guesses that the draft model or the target made in vain."""
    is_sent = any(step.asked is not None for step in steps)  # a draft goes over the link
    return {
        "drafts_ahead": sum(step.ahead is True for step in rounds) if is_sent else None,
        "overtaken_drafts": sum(step.overtaken is True for step in steps) if is_sent else None,
        "num_guessed_tokens": total(step.num_guessed_tokens for step in steps),
        "num_wasted_tokens": total(step.num_wasted_tokens for step in steps),
        "num_wasted_target_tokens": sum(
            (step.num_draft_tokens or 0) - (step.num_accepted_tokens or 0) for step in rounds
        ),
    }


def total(values: Iterable[int | None]) -> int | None:
    """Returns the sum of the known values, None when none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _corrections(rounds: Sequence[Step], tokens: int) -> dict[str, Any]:
    recovered = sum(_recovered(step) for step in rounds)
    return {
        "num_recovered_tokens": recovered,
        "corrected_share": recovered / tokens if tokens else None,
    }


def _recovered(step: Step) -> int:
    """Returns 1 when the round rejected a guess and put a token of the target's own there."""
    drafted, accepted = step.num_draft_tokens or 0, step.num_accepted_tokens or 0
    return int(accepted < drafted and len(step.token_ids) > accepted)

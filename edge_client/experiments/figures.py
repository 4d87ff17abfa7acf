"""What a person reads first: whether splitting pays, and whose text it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_client.experiments.summary import REFERENCES, identical_to
from edge_client.rule import Promise

Summary = Mapping[str, Any]

SPLIT = "speculative"
ASSISTED = "cloud_assisted"
BASELINES = tuple(reversed(REFERENCES))  # what splitting is judged against, best first
FEWEST_PROMPTS = 6  # fewer cannot be significant at 5 %: 2 * 0.5**n, the sign test, is above it


@dataclass(frozen=True, slots=True)
class Answer:
    """Says whether splitting pays: `verdict` is pays, loses, undecided or unknown."""

    verdict: str
    ratio: str | None
    against: str | None
    sentence: str
    work: str | None


def answer(summary: Summary) -> Answer:
    """Says in a sentence, with its interval, what splitting did for speed on this link."""
    arms = summary["arms"]
    against = next((arm for arm in BASELINES if arm in arms), None)
    if SPLIT not in arms or against is None:
        return Answer(
            "unknown", None, None, "This run does not compare splitting with a cloud arm.", None
        )
    compared = summary["ratios"][SPLIT][against]
    if compared["tokens_per_s"] is None:
        sentence = f"No prompt has both {SPLIT} and {against} whole, so this run cannot say."
        return Answer("unknown", None, against, sentence, None)
    median = compared["tokens_per_s"]["median"]
    ratio = f"{median['value']:.2f}×"
    who = f"LOSSY {SPLIT}" if summary["lossy"] else SPLIT
    said = f"{who} wrote {ratio} the tokens a second of {against}"
    prompts = compared["prompts"]
    if prompts < FEWEST_PROMPTS:
        sentence = (
            f"Too few prompts to say whether splitting pays: {said} "
            f"(median of {prompts}; at least {FEWEST_PROMPTS} are needed)."
        )
        return Answer("undecided", ratio, against, sentence, _work(summary, against))
    low, high = median["ci95"]
    basis = f"(median of {prompts} paired prompts, 95 % interval {low:.2f} to {high:.2f})"
    if low > 1:
        verdict, sentence = "pays", f"Splitting pays on this link: {said} {basis}."
    elif high < 1:
        verdict = "loses"
        sentence = (
            f"Splitting does not pay on this link: {said} {basis}, so the cloud alone "
            f"answers faster."
        )
    else:
        verdict = "undecided"
        sentence = f"This run cannot tell whether splitting pays: {said} {basis}."
    return Answer(verdict, ratio, against, sentence, _work(summary, against))


def idle_line(summary: Summary) -> str | None:
    """Says how long the idle link took at first and at last, and how far it drifted."""
    idle = summary["environment"].get("idle_rtt_ms") or {}
    parts = []
    for of, drift in (idle.get("drift") or {}).items():
        samples = [sample for sample in idle["samples"] if sample["of"] == of]
        if drift is not None:
            first, last = samples[0], samples[-1]
            parts.append(
                f"{first['p50']:.2f} → {last['p50']:.2f} ms (×{drift:.2f}) "
                f"at a {of}'s {last['message_bytes']} bytes"
            )
    return f"idle round trip, first → last median: {', '.join(parts)}" if parts else None


def self_check_line(check: Summary) -> str:
    """Says whether an arm that ran under two names came out alike."""
    median = check["tokens_per_s"]
    said = (
        f"self-check: {check['again']} wrote {median['value']:.3f}× the tokens/s of {check['arm']}"
    )
    if check["covers_1"] is None:
        return f"{said} (median of {check['prompts']} prompts: too few for an interval)"
    low, high = median["ci95"]
    basis = f"(median of {check['prompts']} prompts, 95 % interval {low:.3f} to {high:.3f})"
    if check["covers_1"]:
        return f"{said} {basis}: no difference, as it must be"
    return (
        f"{said} {basis}: a difference where there is none. That happens once in 20 runs; if it "
        f"happens again, something else than the arms decides here"
    )


def identity_line(summary: Summary) -> str | None:
    """Returns the exact-match line of the headline: "identical to cloud: 48/48".

    An arm that promises other tokens is left out of the count, and that is said.
    """
    found = identity(summary)
    parts = []
    if found:
        told = {f"{equal}/{compared}" for equal, compared in found.values()}
        each = ", ".join(f"{arm} {equal}/{compared}" for arm, (equal, compared) in found.items())
        everyone = len(told) == 1 and (SPLIT in found or SPLIT not in summary["arms"])
        parts.append(f"identical to {summary['reference']}: {told.pop() if everyone else each}")
    if promise_of(summary, SPLIT) is Promise.DISTRIBUTION:
        parts.append(f"{SPLIT}: same distribution, not the same tokens")
    return "; ".join(parts) or None


def identity(summary: Summary) -> dict[str, tuple[int, int]]:
    """Returns equal and compared prompts of the arms that promise the reference's own text."""
    everyone = (*REFERENCES, SPLIT, ASSISTED)
    promising = [arm for arm in everyone if promise_of(summary, arm) is Promise.TOKENS]
    return {arm: pair for arm in promising if (pair := identical_to(summary, arm)) is not None}


def promise_of(summary: Summary, arm: str) -> Promise | None:
    """Returns what an arm promises of its text, None also where it did not run."""
    promise = summary["arms"].get(arm, {}).get("promise")
    return None if promise is None else Promise(promise)


def all_identical(summary: Summary) -> bool:
    """Whether prompts were compared and every promise of equal text was kept."""
    pairs = identity(summary).values()
    return any(compared for _, compared in pairs) and all(e == c for e, c in pairs)


def number(value: float) -> str:
    """Returns three significant digits, more where the whole part has more."""
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.0995 else 3
    return f"{value:,.{digits}f}"


def _work(summary: Summary, against: str) -> str | None:
    ours, theirs = (summary["arms"][a]["target_busy_ms_per_token"] for a in (SPLIT, against))
    if ours is None or theirs is None:
        return None
    cost = (
        f"What a token cost the cloud: {number(ours['value'])} ms of the target's time with "
        f"{SPLIT}, {number(theirs['value'])} ms with {against}."
    )
    if ours["value"] < theirs["value"]:
        return f"{cost} That saving is what counts where many clients share a cloud."
    return f"{cost} So splitting did not relieve the cloud either."

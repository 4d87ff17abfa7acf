"""The figures a person reads, in words and cells; the terminal and the page show the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_client.experiments.summary import REFERENCES, identical_to

Summary = Mapping[str, Any]
Numbers = Mapping[str, Any]

NONE = "–"
SPLIT = "speculative"
BASELINES = tuple(reversed(REFERENCES))  # what splitting is judged against, best first
FEWEST_PROMPTS = 6  # fewer cannot be significant at 5 %: 2 * 0.5**n, the sign test, is above it


@dataclass(frozen=True, slots=True)
class Row:
    """Is one line of the arm table."""

    label: str
    unit: str
    meaning: str
    cells: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """Says whether splitting pays: `verdict` is pays, loses, undecided or unknown."""

    verdict: str
    ratio: str | None
    against: str | None
    sentence: str
    work: str | None


def arm_rows(summary: Summary) -> list[Row]:
    """Returns the rows that at least one arm has a figure for."""
    rows = [
        Row(label, unit, meaning, {arm: cell(n) for arm, n in summary["arms"].items()})
        for label, unit, meaning, cell in _ROWS
    ]
    if summary["reference"] is not None and len(summary["arms"]) > 1:
        rows.append(
            Row(
                f"identical to {summary['reference']}",
                "",
                "prompts of which every output token is equal",
                {arm: _identical(summary, arm) for arm in summary["arms"]},
            )
        )
    if any(numbers["errors"] for numbers in summary["arms"].values()):
        rows.append(
            Row(
                "failed",
                "",
                "generations that ended in an error",
                {a: f"{n['errors']}/{n['records']}" for a, n in summary["arms"].items()},
            )
        )
    return [row for row in rows if any(cell != NONE for cell in row.cells.values())]


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
    said = f"{SPLIT} wrote {ratio} the tokens a second of {against}"
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


def identity_line(summary: Summary) -> str | None:
    """Returns the exact-match line of the headline: "identical to cloud: 48/48"."""
    found = identity(summary)
    if not found:
        return None
    told = {f"{equal}/{compared}" for equal, compared in found.values()}
    if len(told) == 1:
        return f"identical to {summary['reference']}: {told.pop()}"
    each = ", ".join(f"{arm} {equal}/{compared}" for arm, (equal, compared) in found.items())
    return f"identical to {summary['reference']}: {each}"


def identity(summary: Summary) -> dict[str, tuple[int, int]]:
    """Returns equal and compared prompts of the arms that promise the reference's own text."""
    promising = [arm for arm in (*REFERENCES, SPLIT) if arm in summary["arms"]]
    return {arm: pair for arm in promising if (pair := identical_to(summary, arm)) is not None}


def all_identical(summary: Summary) -> bool:
    """Whether prompts were compared and every promise of equal text was kept."""
    pairs = identity(summary).values()
    return any(compared for _, compared in pairs) and all(e == c for e, c in pairs)


def number(value: float) -> str:
    """Returns three significant digits, more where the whole part has more."""
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.0995 else 3
    return f"{value:,.{digits}f}"


def _estimate(value: Numbers | None, scale: float = 1.0) -> str:
    return NONE if value is None else number(value["value"] * scale)


def _interval(value: Numbers | None) -> str:
    if value is None or value["ci95"] is None:
        return _estimate(value)
    low, high = value["ci95"]
    return f"{number(value['value'])} [{number(low)}, {number(high)}]"


def _of(key: str, part: str | None = None, scale: float = 1.0) -> Callable[[Numbers], str]:
    def cell(numbers: Numbers) -> str:
        value = numbers[key]
        return _estimate(value if part is None or value is None else value[part], scale)

    return cell


def _round_trip(numbers: Numbers) -> str:
    rtt = numbers["rtt_ms"]
    return NONE if rtt is None else f"{_estimate(rtt['p50'])} / {_estimate(rtt['p95'])}"


def _network(numbers: Numbers) -> str:
    return _estimate(numbers["ms_per_token"]["network"])


def _identical(summary: Summary, arm: str) -> str:
    if arm == summary["reference"]:
        return "reference"
    found = identical_to(summary, arm)
    return NONE if found is None else f"{found[0]}/{found[1]}"


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


_ROWS: tuple[tuple[str, str, str, Callable[[Numbers], str]], ...] = (
    (
        "tokens/s",
        "",
        "output tokens ÷ seconds, pooled, 95 % interval",
        lambda n: _interval(n["tokens_per_s"]),
    ),
    ("TTFT", "ms", "time to first token, median", _of("ttft_s", "p50", 1e3)),
    ("TPOT", "ms", "time per output token after the first, median", _of("tpot_s", "p50", 1e3)),
    ("acceptance", "", "accepted ÷ drafted, pooled", _of("acceptance_rate")),
    (
        "mean accepted length",
        "",
        "tokens a round, the target's own included",
        _of("mean_accepted_length"),
    ),
    (
        "round trip p50 / p95",
        "ms",
        "draft sent to verdict received, verification included",
        _round_trip,
    ),
    ("network", "ms a token", "client elapsed - server total", _network),
    ("bytes a token", "", "up and down, as serialized", _of("bytes_per_token")),
    (
        "target forwards a token",
        "",
        "forward passes of the target, prompt included",
        _of("target_forward_passes_per_token"),
    ),
)

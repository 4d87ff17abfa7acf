"""The rows of the arm table; the terminal and the page show the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_client.experiments.figures import number
from edge_client.experiments.summary import identical_to

Summary = Mapping[str, Any]
Numbers = Mapping[str, Any]

NONE = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """Is one line of the arm table."""

    label: str
    unit: str
    meaning: str
    cells: Mapping[str, str]


def arm_rows(summary: Summary) -> list[Row]:
    """Returns the rows that at least one arm has a figure for."""
    arms = summary["arms"]
    rows = [
        Row(label, unit, meaning, {arm: cell(n) for arm, n in arms.items()})
        for label, unit, meaning, cell in _ROWS
    ]
    if summary["reference"] is not None and len(arms) > 1:
        rows += _reference_rows(summary)
    rows += [
        Row(label, unit, meaning, {arm: cell(n) for arm, n in arms.items()})
        for label, unit, meaning, cell in _TEXT_ROWS
    ]
    if any(numbers["errors"] for numbers in arms.values()):
        rows.append(
            Row(
                "failed",
                "",
                "generations that ended in an error",
                {a: f"{n['errors']}/{n['records']}" for a, n in arms.items()},
            )
        )
    return [row for row in rows if any(cell != NONE for cell in row.cells.values())]


def _reference_rows(summary: Summary) -> list[Row]:
    """Returns which texts are the exact one, and how near those come that need not be."""
    reference, arms = summary["reference"], summary["arms"]
    rows = [
        Row(
            f"identical to {reference}",
            "",
            "prompts of which every output token is equal",
            {arm: _identical(summary, arm) for arm in arms},
        )
    ]
    if any(n["lossless"] is not None and n["promise"] != "tokens" for n in arms.values()):
        rows += [
            Row(
                f"{what} with {reference}",
                "",
                meaning,
                {arm: _agreement(summary, arm, key) for arm in arms},
            )
            for what, key, meaning in (
                ("token match", "token_match", "positions with the same token, pooled"),
                ("chrF", "chrf", "of the text against the exact one, 0 to 100"),
                ("ROUGE-L", "rouge_l", "of the text against the exact one, 0 to 100"),
            )
        ]
    return rows


def _agreement(summary: Summary, arm: str, key: str) -> str:
    if arm == summary["reference"]:
        return "reference"
    return _estimate(summary["agreement"][arm][key])


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


def _middles(key: str) -> Callable[[Numbers], str]:
    """Shows median and mean of a spread in seconds, as milliseconds."""

    def cell(numbers: Numbers) -> str:
        spread = numbers[key]
        if spread is None:
            return NONE
        return f"{_estimate(spread['p50'], 1e3)} / {_estimate(spread['mean'], 1e3)}"

    return cell


def _energy(numbers: Numbers) -> str:
    parts = [numbers[f"{part}_energy_j_per_token"] for part in ("edge", "cloud", "gpu")]
    if not any(parts):
        return NONE
    edge, cloud, gpu = parts
    both = [part["value"] for part in (cloud, gpu) if part is not None]
    return f"{_estimate(edge)} / {number(sum(both)) if both else NONE}"


def _acceptance(numbers: Numbers) -> str:
    pooled, by_prompt = numbers["acceptance_rate"], numbers["acceptance_rate_mean_of_prompts"]
    return NONE if pooled is None else f"{_estimate(pooled)} / {_estimate(by_prompt)}"


def _below_one(key: str) -> Callable[[Numbers], str]:
    """Shows a share only where it says something: where it is not whole."""
    return lambda n: NONE if n[key] is None or n[key]["value"] == 1 else _estimate(n[key])


def _corrected(numbers: Numbers) -> str:
    return NONE if numbers["lossless"] else _estimate(numbers["corrected_share"])


def _round_trip(numbers: Numbers) -> str:
    rtt = numbers["rtt_ms"]
    return NONE if rtt is None else f"{_estimate(rtt['p50'])} / {_estimate(rtt['p95'])}"


def _of_all(overtaken: int | None, rounds: int | None) -> str:
    """Says how many of all drafts sent were overtaken, where any was."""
    return f"{overtaken:,}/{overtaken + (rounds or 0):,}" if overtaken else NONE


def _network(numbers: Numbers) -> str:
    return _estimate(numbers["ms_per_token"]["network"])


def _identical(summary: Summary, arm: str) -> str:
    if arm == summary["reference"]:
        return "reference"
    found = identical_to(summary, arm)
    return NONE if found is None else f"{found[0]}/{found[1]}"


_ROWS: tuple[tuple[str, str, str, Callable[[Numbers], str]], ...] = (
    (
        "tokens/s",
        "",
        "output tokens ÷ seconds, pooled, 95 % interval",
        lambda n: _interval(n["tokens_per_s"]),
    ),
    ("TTFT median / mean", "ms", "time to first token", _middles("ttft_s")),
    ("TPOT median / mean", "ms", "time per output token after the first", _middles("tpot_s")),
    ("e2e median / mean", "ms", "time of a whole output", _middles("e2e_s")),
    (
        "acceptance pooled / by prompt",
        "",
        "accepted ÷ drafted: of all drafts, and the mean of each prompt's own",
        _acceptance,
    ),
    ("cloud calls a block", "", "blocks the cloud was asked about", _below_one("cloud_call_rate")),
    ("verified", "", "share of tokens the cloud judged", _below_one("verified_share")),
    ("corrected", "", "share of tokens put right by the cloud", _corrected),
    (
        "draft probabilities",
        "bytes a guess",
        "sent up to be verified against",
        _of("draft_probabilities_bytes_per_draft_token"),
    ),
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
    (
        "overtaken drafts",
        "",
        "sent ahead and dropped unseen, of all drafts sent",
        lambda n: _of_all(n["overtaken_drafts"], n["rounds"]),
    ),
    (
        "wasted guesses",
        "",
        "share of the draft model's tokens that were thrown away",
        _of("wasted_share"),
    ),
    (
        "wasted target tokens",
        "a token",
        "rejected guesses that the target ran",
        _of("wasted_target_tokens_per_token"),
    ),
    ("network", "ms a token", "client elapsed - server total", _network),
    (
        "serialization",
        "ms",
        "the client's own, of a round or piece, median; part of network",
        _of("serialization_ms", "p50"),
    ),
    ("bytes a token", "", "up and down, without HTTP/2", _of("bytes_per_token")),
    (
        "target forwards a token",
        "",
        "forward passes of the target, prompt included",
        _of("target_forward_passes_per_token"),
    ),
    (
        "edge CPU",
        "ms a token",
        "processor time of the edge's process",
        _of("edge_cpu_ms_per_token"),
    ),
    (
        "cloud CPU",
        "ms a token",
        "processor time of the cloud's process",
        _of("cloud_cpu_ms_per_token"),
    ),
    (
        "energy",
        "J a token",
        "of the packages and GPU, edge / cloud; whoever used them",
        _energy,
    ),
)

_TEXT_ROWS: tuple[tuple[str, str, str, Callable[[Numbers], str]], ...] = (
    ("target NLL", "nats a token", "of the text under the target", _of("target_nll")),
    ("chrF to reference", "", "of the text against the prompt's reference, 0 to 100", _of("chrf")),
    ("BLEU to reference", "", "of the text against the prompt's reference, 0 to 100", _of("bleu")),
    (
        "ROUGE-L to reference",
        "",
        "of the text against the prompt's reference, 0 to 100",
        _of("rouge_l"),
    ),
)

"""A forecast on the terminal and as JSON; every number is defined in docs/methods.md."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from edge_client.expectation import Situation
from edge_client.experiments.calibration import Calibration
from edge_client.experiments.figures import number
from edge_client.experiments.rows import NONE
from edge_client.forecast import Forecast, Offer, Outlook

_WIDTH = 98
_HEADINGS = ("RTT ms", "arm", "γ", "ahead", "tokens/s", "× cloud_optimized",
             "forwards", "target ms", "clients")  # fmt: skip
_ASSUMED = (
    "forwards, target ms: what a token costs the target, prompts not counted. clients: how many "
    "such clients keep one target busy, each request in a forward of its own. Forwards that "
    "several share serve more; by how much is not known here."
)


def render(forecasts: Sequence[Forecast], text: int | None, measured: Calibration) -> str:
    """Returns, for each acceptance, the arms, the draft lengths, and what follows from them."""
    blocks = []
    for one in forecasts:
        blocks += [
            "\n".join(textwrap.wrap(_premises(one.situation, text), _WIDTH)),
            _aligned([_HEADINGS, *_arm_rows(one)]),
            "× cloud_optimized by draft length γ, sent ahead or not, whichever is faster\n"
            + _aligned(list(_length_rows(one))),
            "\n".join(["\n".join(textwrap.wrap(one.sentence, _WIDTH)), *_settings(one)]),
        ]
    notes = [f"Note: {note}." for note in measured.notes]
    closing = [line for said in (*notes, _ASSUMED) for line in textwrap.wrap(said, _WIDTH)]
    closing.append(f"{NONE} does not apply; what each number means: docs/methods.md")
    return "\n\n".join([*blocks, "\n".join(closing)])


def as_json(
    forecasts: Sequence[Forecast], text: int | None, measured: Calibration
) -> dict[str, Any]:
    """Returns the same as values; what does not apply is None."""
    measured_rtt = measured.network_s
    return {
        "text_tokens": text,
        "measured_rtt_ms": None if measured_rtt is None else measured_rtt * 1e3,
        "notes": list(measured.notes),
        "forecasts": [_forecast_json(one) for one in forecasts],
    }


def flags(offer: Offer) -> list[str]:
    """Returns the settings that make the speculative arm do this."""
    return [f"drafting.length={offer.length}", f"network.pipeline={offer.ahead}"]


def _premises(situation: Situation, text: int | None) -> str:
    shares = [f"{share:.2f}" for share in situation.acceptance]
    length = "without an end" if text is None else f"of {text} tokens"
    return (
        f"acceptance {', '.join(shares)} {'by position' if len(shares) > 1 else 'everywhere'}; "
        f"draft {number(situation.draft_s * 1e3)} ms a token; "
        f"target {number(situation.target_s * 1e3)} ms "
        f"+ {number(situation.target_token_s * 1e3)} ms a token; "
        f"edge {number(situation.edge_round_s * 1e3)} ms and "
        f"server {number(situation.server_round_s * 1e3)} ms a round beside these; "
        f"texts {length}"
    )


def _arms(outlook: Outlook) -> list[tuple[str, Offer]]:
    return [
        ("edge", outlook.edge),
        ("cloud_optimized", outlook.cloud),
        ("speculative, waiting", outlook.waiting),
        ("speculative, ahead", outlook.ahead),
    ]


def _arm_rows(one: Forecast) -> Iterator[Sequence[str]]:
    for outlook in one.outlooks:
        for place, (name, offer) in enumerate(_arms(outlook)):
            cost = offer.target_s_per_token
            yield (
                "" if place else f"{outlook.rtt_s * 1e3:.4g}",
                name,
                _said(offer.length, "d"),
                _said(offer.ahead, "d"),
                number(offer.tokens_per_s),
                f"{outlook.ratio(offer):.2f}",
                _said(offer.forwards_per_token, ".2f"),
                NONE if cost is None else number(cost * 1e3),
                _said(offer.clients, ".1f"),
            )


def _length_rows(one: Forecast) -> Iterator[Sequence[str]]:
    lengths = one.outlooks[0].lengths
    yield ("RTT ms", *(f"γ {by.length}" for by in lengths))
    for outlook in one.outlooks:
        ratios = (f"{outlook.ratio(by.best):.2f}" for by in outlook.lengths)
        yield (f"{outlook.rtt_s * 1e3:.4g}", *ratios)


def _settings(one: Forecast) -> Iterator[str]:
    for outlook in one.outlooks:
        said = " ".join(f"--set {flag}" for flag in flags(outlook.best))
        who = "" if outlook.pays else "cloud_optimized; of speculative "
        yield f"best at {outlook.rtt_s * 1e3:.4g} ms: {who}{said}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns the rows in columns, words to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if heading == "arm" else cell.rjust(width)
            for cell, width, heading in zip(row, widths, rows[0], strict=True)
        ).rstrip()
        for row in rows
    )


def _said(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _forecast_json(one: Forecast) -> dict[str, Any]:
    situation, even = one.situation, one.break_even_s
    found = even is not None and math.isfinite(even)
    return {
        "acceptance_by_position": list(situation.acceptance),
        "draft_ms": situation.draft_s * 1e3,
        "target_ms": situation.target_s * 1e3,
        "target_token_ms": situation.target_token_s * 1e3,
        "edge_round_ms": situation.edge_round_s * 1e3,
        "server_round_ms": situation.server_round_s * 1e3,
        "opening_ms": situation.opening_s * 1e3,
        "break_even": "never" if even is None else "at" if found else "always",
        "break_even_rtt_ms": even * 1e3 if even is not None and found else None,
        "sentence": one.sentence,
        "rtts": [_outlook_json(outlook) for outlook in one.outlooks],
    }


def _outlook_json(outlook: Outlook) -> dict[str, Any]:
    names = ("edge", "cloud_optimized", "speculative_waiting", "speculative_ahead")
    return {
        "rtt_ms": outlook.rtt_s * 1e3,
        "arms": {
            name: _offer_json(outlook, offer)
            for name, (_, offer) in zip(names, _arms(outlook), strict=True)
        },
        "pays": outlook.pays,
        "best_set": flags(outlook.best),
        "lengths": [
            {
                "waiting": _offer_json(outlook, by.waiting),
                "ahead": _offer_json(outlook, by.ahead),
            }
            for by in outlook.lengths
        ],
    }


def _offer_json(outlook: Outlook, offer: Offer) -> dict[str, Any]:
    cost = offer.target_s_per_token
    return {
        "draft_length": offer.length,
        "drafts_ahead": offer.ahead,
        "tokens_per_s": offer.tokens_per_s,
        "ratio": outlook.ratio(offer),
        "target_forwards_per_token": offer.forwards_per_token,
        "target_ms_per_token": None if cost is None else cost * 1e3,
        "clients": offer.clients,
    }

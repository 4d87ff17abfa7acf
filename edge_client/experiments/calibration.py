"""What the records of a bench say about models, link and text: the terms of expectation.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.errors import UsageError
from edge_client.experiments.run_directory import RECORDS

POOLED_WEIGHT = 20.0
"""For how many guesses at a position those at all others count."""
_NS = 1e9
_NEEDED = ("arrival_ns", "elapsed_ns", "draft_ns", "num_draft_tokens", "num_accepted_tokens")
_TIMES = ("computed_ns", "total_ns")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Holds what was measured, in seconds; what the records do not tell is None.

    `acceptance` is by position. `notes` are sentences on what they tell badly.
    """

    draft_s: float | None = None
    network_s: float | None = None
    target_s: float | None = None
    target_token_s: float | None = None
    acceptance: tuple[float, ...] | None = None
    edge_round_s: float = 0.0
    server_round_s: float = 0.0
    opening_s: float = 0.0
    alone_s: float | None = None
    text_tokens: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Round:
    first: bool
    since_s: float  # since the arrival before it
    elapsed_s: float
    draft_s: float
    guessed: int
    drafted: int
    accepted: int
    computed_s: float
    total_s: float


def read_calibration(path: Path) -> Calibration:
    """Reads the records of a bench, a directory or its records.jsonl.

    Raises UsageError naming file and line where it holds something else, or nothing whole.
    """
    file = path / RECORDS if path.is_dir() else path
    records = list(_read(file))
    whole = [record for record in records if record.get("error") is None and record.get("steps")]
    if not whole:
        raise UsageError(
            f"--records {file}: none of {len(records)} generations is whole; "
            f"name the records of a bench that succeeded"
        )
    try:
        return calibrate(whole)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError(
            f"--records {file}: not the records of a bench ({type(error).__name__}: {error}); "
            f"name the directory that outrider-edge bench wrote"
        ) from None


def calibrate(records: Sequence[Mapping[str, Any]]) -> Calibration:
    """Works out means over all rounds but the first of each text, which waits for its prompt.

    Where the arm `edge` ran, a token's draft time is that arm's, and what drafts take beyond
    it counts for the round: going back and catching up, which longer drafts do not do oftener.
    """
    if any(record.get("unasked_blocks") for record in records):
        raise UsageError(
            "--records: a gate committed blocks without asking, which no plan covers; "
            "name the records of a bench with gate.kind=none"
        )
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        arms.setdefault(record["arm"], []).append(record)
    texts = [list(_rounds(record["steps"])) for record in arms.get("speculative", ())]
    rounds = [one for text in texts for one in text if not one.first]
    pieces = [one for record in arms.get("cloud_optimized", ()) for one in _pieces(record["steps"])]
    tokens = [int(record["num_output_tokens"]) for record in records]
    line, notes = _line(
        [*((one.drafted + 1, one.computed_s) for one in rounds), *((1, one[1]) for one in pieces)]
    )
    server = [one.total_s - one.computed_s for one in rounds] or [one[2] for one in pieces]
    found: dict[str, Any] = {
        "target_s": line and line[0],
        "target_token_s": line and line[1],
        "server_round_s": max(0.0, _mean(server)) if server else 0.0,
        "alone_s": _mean([one[0] for one in pieces]) if pieces else None,
        "text_tokens": round(_mean(tokens)),
    }
    if rounds:
        found |= _of_rounds(texts, rounds, arms.get("edge", ()))
    elif "edge" in arms:
        found["draft_s"] = _edge_token_s(arms["edge"])
    overlap = any(one.since_s < 0.99 * (one.draft_s + one.elapsed_s) for one in rounds)
    if overlap:
        notes += (
            "drafts were sent ahead in these records, so that a round's own time is not known; "
            "take them with --set network.pipeline=0",
        )
    return Calibration(**found, notes=notes)


def _of_rounds(
    texts: Sequence[Sequence[_Round]], rounds: Sequence[_Round], edge: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    guessed = sum(one.guessed for one in rounds)
    drafting = sum(one.draft_s for one in rounds)
    draft_s = drafting / guessed if guessed else None
    if edge and draft_s is not None:
        draft_s = min(draft_s, _edge_token_s(edge))
    own = _mean([one.since_s - one.elapsed_s for one in rounds])
    first = [text[0].since_s for text in texts if text and text[0].first]
    return {
        "draft_s": draft_s,
        "network_s": max(0.0, _mean([one.elapsed_s - one.total_s for one in rounds])),
        "edge_round_s": max(0.0, own - (draft_s or 0.0) * guessed / len(rounds)),
        "opening_s": (
            max(0.0, _mean(first) - _mean([one.since_s for one in rounds])) if first else 0.0
        ),
        "acceptance": _acceptance([one for text in texts for one in text]),
    }


def _read(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--records {file}: {getattr(error, 'strerror', None) or 'not text'}; "
            f"name a directory that outrider-edge bench wrote, or its {RECORDS}"
        ) from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "arm" not in record:
            raise UsageError(
                f"--records {file}:{number}: not a record of a bench; "
                f"name a directory that outrider-edge bench wrote, or its {RECORDS}"
            )
        yield record


def _rounds(steps: Mapping[str, Any]) -> Iterator[_Round]:
    """Yields the answered rounds; a draft that was overtaken, or mended a mismatch, is none."""
    columns = [_column(steps, name) for name in (*_NEEDED, *_TIMES)]
    guesses = _column(steps, "num_guessed_tokens")
    if all(guess is None for guess in guesses):  # records of before that column
        guesses = columns[3]
    before = 0
    for index, (row, guessed) in enumerate(zip(zip(*columns, strict=True), guesses, strict=True)):
        arrival, elapsed, draft, drafted, accepted, computed, total = row
        if None not in row:
            yield _Round(
                first=index == 0,
                since_s=(arrival - before) / _NS,
                elapsed_s=elapsed / _NS,
                draft_s=draft / _NS,
                guessed=drafted if guessed is None else guessed,
                drafted=drafted,
                accepted=accepted,
                computed_s=computed / _NS,
                total_s=total / _NS,
            )
        before = arrival


def _pieces(steps: Mapping[str, Any]) -> Iterator[tuple[float, float, float]]:
    """Yields each later token's gap, the target's time for it, and the server's beside that."""
    rows = list(
        zip(*(_column(steps, name) for name in ("arrival_ns", "num_tokens", *_TIMES)), strict=True)
    )
    for (before, *_), (arrival, tokens, computed, total) in pairwise(rows):
        if tokens == 1 and computed is not None:
            yield (arrival - before) / _NS, computed / _NS, (total - computed) / _NS


def _column(steps: Mapping[str, Any], name: str) -> Sequence[Any]:
    column: Sequence[Any] | None = steps.get(name)
    return [None] * len(steps["arrival_ns"]) if column is None else column


def _edge_token_s(edge: Iterable[Mapping[str, Any]]) -> float:
    records = list(edge)
    spent = sum(record["e2e_s"] - record["ttft_s"] for record in records)
    return float(spent / max(1, sum(record["num_output_tokens"] - 1 for record in records)))


def _acceptance(rounds: Sequence[_Round]) -> tuple[float, ...] | None:
    """Returns by position how often a guess stood once those before it did."""
    width = max(one.drafted for one in rounds)
    judged = [sum(one.drafted > i and one.accepted >= i for one in rounds) for i in range(width)]
    stood = [sum(one.accepted > i for one in rounds) for i in range(width)]
    if not width:
        return None
    pooled = sum(stood) / sum(judged)
    return tuple(
        (good + pooled * POOLED_WEIGHT) / (asked + POOLED_WEIGHT)
        for good, asked in zip(stood, judged, strict=True)
    )


def _line(
    points: Sequence[tuple[int, float]],
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Fits seconds over tokens by least squares, neither part below 0; flat where lengths agree."""
    if not points:
        return None, ()
    mean_x, mean_y = _mean([x for x, _ in points]), _mean([y for _, y in points])
    spread = _mean([(x - mean_x) ** 2 for x, _ in points])
    if spread <= 0.25:
        return (mean_y, 0.0), (
            f"all requests had about {mean_x:.0f} tokens, so that the target's time is taken to be "
            "the same for any number; run cloud_optimized beside speculative, or give "
            "--target-token-ms",
        )
    slope = _mean([(x - mean_x) * (y - mean_y) for x, y in points]) / spread
    slope = min(max(slope, 0.0), mean_y / mean_x)
    return (mean_y - slope * mean_x, slope), ()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

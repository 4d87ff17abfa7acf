"""`outrider-edge plan`: what each arm can be expected to give, before anything is run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from common.config import Config
from common.errors import UsageError
from edge_client.expectation import Situation
from edge_client.experiments.calibration import Calibration, read_calibration
from edge_client.experiments.forecast_table import as_json, render
from edge_client.experiments.heatmap import KINDS, page
from edge_client.experiments.run_directory import write_whole
from edge_client.forecast import forecast

RTTS_MS = (0.0, 10.0, 20.0, 50.0, 100.0, 200.0)
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Is what the command line asks for, numbers still as they were typed; None: not given."""

    records: Path | None
    draft_ms: str | None
    target_ms: str | None
    target_token_ms: str | None
    acceptance: str | None
    rtt_ms: str | None
    lengths: str | None
    tokens: str | None
    as_json: bool
    out: Path | None


def plan(options: PlanOptions, config: Config) -> int:
    """Prints the forecast, and draws it where asked; what is given wins over what was measured."""
    _check_out(options.out)
    measured = Calibration() if options.records is None else read_calibration(options.records)
    lengths = _lengths(options.lengths, config.cloud.max_draft_tokens)
    rtts_s = _rtts(options.rtt_ms, measured.network_s)
    text = _text(options.tokens, measured.text_tokens)
    forecasts = [
        forecast(situation, rtts_s, lengths, text) for situation in _situations(options, measured)
    ]
    if options.out is not None:
        _write(options.out, page(options.out.suffix, forecasts))
    if options.as_json:
        print(json.dumps(as_json(forecasts, text, measured), allow_nan=False))
    else:
        print(render(forecasts, text, measured))
        if options.out is not None:
            print(options.out)
    return 0


def _situations(options: PlanOptions, measured: Calibration) -> list[Situation]:
    """Makes one situation for each acceptance asked about."""
    draft_s = _seconds("--draft-ms", options.draft_ms, measured.draft_s)
    target_s = _seconds("--target-ms", options.target_ms, measured.target_s)
    each_s = _seconds("--target-token-ms", options.target_token_ms, measured.target_token_s) or 0.0
    acceptances = _acceptances(options.acceptance, measured.acceptance)
    if draft_s is None or target_s is None or not acceptances:
        parts = {"--draft-ms": draft_s, "--target-ms": target_s, "--acceptance": acceptances}
        lacking = ", ".join(flag for flag, value in parts.items() if value is None or value == [])
        raise UsageError(
            f"nothing says {lacking}; give it, or --records of a bench that ran speculative"
        )
    if not draft_s:
        raise UsageError("--draft-ms 0: a draft takes time; write milliseconds above 0")
    if not target_s + each_s:
        raise UsageError("--target-ms 0: a target takes time; write milliseconds above 0")
    own_target = options.target_ms is None and options.target_token_ms is None
    return [
        Situation(
            draft_s=draft_s,
            network_s=0.0,
            target_s=target_s,
            target_token_s=each_s,
            acceptance=acceptance,
            edge_round_s=measured.edge_round_s,
            server_round_s=measured.server_round_s,
            opening_s=measured.opening_s,
            alone_s=measured.alone_s if own_target else None,
        )
        for acceptance in acceptances
    ]


def _seconds(flag: str, given: str | None, measured: float | None) -> float | None:
    if given is None:
        return measured
    return _numbers(flag, given, one=True)[0] / 1e3


def _acceptances(given: str | None, measured: tuple[float, ...] | None) -> list[tuple[float, ...]]:
    if given is None:
        return [] if measured is None else [measured]
    shares = _numbers("--acceptance", given)
    for share in shares:
        if share > 1:
            raise UsageError(
                f"--acceptance {share:g}: no more than all guesses stand; "
                f"write shares from 0 to 1, for example 0.6,0.8"
            )
    return [(share,) for share in shares]


def _rtts(given: str | None, measured: float | None) -> list[float]:
    """Returns the round trips of the grid, in seconds and without repeats."""
    if given is not None:
        return sorted({ms / 1e3 for ms in _numbers("--rtt-ms", given)})
    return sorted({ms / 1e3 for ms in RTTS_MS} | ({measured} if measured is not None else set()))


def _lengths(given: str | None, most: int) -> list[int]:
    if given is None:
        return [length for length in LENGTHS if length <= most] or [0]
    lengths = set()
    for word in given.split(","):
        if not word.strip().isdecimal() or int(word) > most:
            raise UsageError(
                f"--lengths {word!r}: a draft has 0 to {most} tokens (cloud.max_draft_tokens); "
                f"write whole numbers, for example 1,2,4"
            )
        lengths.add(int(word))
    return sorted(lengths)


def _text(given: str | None, measured: int | None) -> int | None:
    if given is None:
        return measured
    if not given.isdecimal() or not int(given):
        raise UsageError(f"--tokens {given!r} is not a whole number of at least 1")
    return int(given)


def _numbers(flag: str, given: str, *, one: bool = False) -> list[float]:
    """Reads numbers of at least 0 with commas between them."""
    words = [given] if one else given.split(",")
    found = []
    for word in words:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise UsageError(
                f"{flag} {word!r} is not a number of at least 0; write for example "
                f"{'1.5' if one else '0.5,1'}"
            )
        found.append(value)
    return found


def _check_out(out: Path | None) -> None:
    if out is not None and out.suffix not in KINDS:
        raise UsageError(f"--out {out}: the heat map is an .html or an .svg; name such a file")


def _write(out: Path, text: str) -> None:
    try:
        write_whole(out, text)
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written: {error.strerror}; name another file"
        ) from None

"""Runs side by side: what each measured, how the others compare with the first, what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UsageError
from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.comparison import paired, ratios
from edge_client.experiments.differences import ABSENT, flatten
from edge_client.experiments.records import Record
from edge_client.experiments.run_directory import RECORDS, SUMMARY
from edge_client.experiments.stored import read_records

METRICS = ("tokens_per_s", "ttft_s", "tpot_s", "e2e_s")
_SHOWN = (
    *METRICS,
    *("acceptance_rate", "mean_accepted_length", "target_busy_ms_per_token", "bytes_per_token"),
)
_OF_THE_MOMENT = ("started_at", "resumed_at", "idle_rtt_ms", "machine")


@dataclass(frozen=True, slots=True)
class Run:
    """Is what one bench left."""

    name: str
    summary: Mapping[str, Any]
    records: Sequence[Record]


def read_run(directory: Path) -> Run:
    """Reads a run's directory; raises UsageError where it holds no run that was summarised."""
    file = directory / SUMMARY
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        summary["arms"], summary["environment"], summary["bootstrap"]["seed"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{file} is not the summary of a bench ({type(error).__name__}: {error}); name a "
            f"directory that outrider-edge bench wrote, or finish the run with --resume"
        ) from None
    return Run(directory.name or str(directory), summary, list(read_records(directory / RECORDS)))


def side_by_side(runs: Sequence[Run]) -> dict[str, Any]:
    """Compares runs, the first being the base; see docs/methods.md for every field."""
    base = runs[0]
    bootstrap = Bootstrap(int(base.summary["bootstrap"]["seed"]))
    arms = list(dict.fromkeys(arm for run in runs for arm in run.summary["arms"]))
    return {
        "runs": [_told(run) for run in runs],
        "arms": {arm: [_numbers(run, arm) for run in runs] for arm in arms},
        "against_first": {
            arm: [_against(base, run, arm, bootstrap) for run in runs[1:]] for arm in arms
        },
        "changed": _changed(runs),
    }


def _told(run: Run) -> dict[str, Any]:
    idle = (run.summary["environment"].get("idle_rtt_ms") or {}).get("before") or {}
    machine = run.summary["environment"].get("machine") or {}
    return {
        "name": run.name,
        "run_id": run.summary["run_id"],
        "records": run.summary["records"],
        "interrupted": run.summary["interrupted"],
        "idle_rtt_p50_ms": idle.get("p50"),
        "noticed": machine.get("noticed", []),
    }


def _numbers(run: Run, arm: str) -> dict[str, Any] | None:
    numbers = run.summary["arms"].get(arm)
    return None if numbers is None else {name: numbers.get(name) for name in _SHOWN}


def _against(base: Run, run: Run, arm: str, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """Pairs the arm's records of two runs by prompts that are the same token for token."""
    before, now = _same_prompts(*([r for r in x.records if r.arm == arm] for x in (base, run)))
    pairs = paired(now, before)
    if not pairs:
        return None
    compared = ratios({"now": now, "before": before}, bootstrap)["now"]["before"]
    same = [all(a.output_token_ids == b.output_token_ids for a, b in p) for p in pairs.values()]
    return {**compared, "prompts_equal": sum(same)}


def _same_prompts(
    before: Sequence[Record], now: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    firsts = [{r.prompt_id: r.prompt_token_ids for r in x if r.turn == 0} for x in (before, now)]
    same = {name for name, tokens in firsts[0].items() if firsts[1].get(name, ()) == tokens}
    return [r for r in before if r.prompt_id in same], [r for r in now if r.prompt_id in same]


def _changed(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns the settings of the environments that are not the same in all runs."""
    described = [dict(flatten(_lasting(run.summary["environment"]))) for run in runs]
    names = dict.fromkeys(name for one in described for name in one)
    values = {name: [one.get(name, ABSENT) for one in described] for name in names}
    return [{"setting": n, "values": v} for n, v in values.items() if len(set(v)) > 1]


def _lasting(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {n: value for n, value in environment.items() if n not in _OF_THE_MOMENT}

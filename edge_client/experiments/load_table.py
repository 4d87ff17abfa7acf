"""What a server did under load, as JSON and on the terminal. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.figures import number
from edge_client.experiments.load import Load
from edge_client.experiments.measure import Measure
from edge_client.experiments.records import Record
from edge_client.experiments.statistics import summarize_arm


def load_summary(
    load: Load,
    records: Sequence[Record],
    duration_ns: int,
    *,
    run_id: str,
    planned: int,
    rate: float | None,
    seed: int,
    interrupted: bool,
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Builds load.json; see docs/methods.md for every field."""
    bootstrap = Bootstrap(seed)
    whole = [record for record in records if record.error is None]
    seconds = duration_ns / 1e9
    tokens = sum(record.num_output_tokens or 0 for record in whole)
    failed = {(r.prompt_id, r.repeat) for r in records if r.error is not None}
    conversations = {(r.prompt_id, r.repeat) for r in records} - failed
    waited = Measure(whole, bootstrap).spread(lambda r: () if r.waited_s is None else (r.waited_s,))
    return {
        "run_id": run_id,
        "arm": load.arm,
        "clients": len(load.clients),
        "rate_per_s": rate,
        "seed": seed,
        "requests": load.started,
        "planned_requests": planned,
        "interrupted": interrupted,
        "errors": len(records) - len(whole),
        "duration_s": seconds,
        "requests_per_s": len(conversations) / seconds if seconds else None,
        "output_tokens_per_s": tokens / seconds if seconds else None,
        "most_at_once": load.most_at_once,
        "waited_s": waited,
        "numbers": summarize_arm(records, bootstrap),
        "environment": dict(environment),
    }


def render_load(summary: Mapping[str, Any]) -> str:
    """Returns the few lines that a person wants to see."""
    loop = (
        f"open loop, {summary['rate_per_s']:g} conversations a second offered"
        if summary["rate_per_s"] is not None
        else "closed loop"
    )
    lines = [
        f"{summary['arm']}, {summary['clients']} clients, {loop}",
        f"{summary['requests']} conversations in {number(summary['duration_s'])} s, "
        f"{summary['most_at_once']} at once at most, {summary['errors']} generations failed",
    ]
    if summary["requests"] < summary["planned_requests"] or summary["interrupted"]:
        lines.append(f"INTERRUPTED: {summary['planned_requests']} conversations were planned")
    for label, key in (
        ("conversations/s", "requests_per_s"),
        ("output tokens/s of all", "output_tokens_per_s"),
    ):
        if summary[key] is not None:
            lines.append(f"{label:<26}{number(summary[key])}")
    lines.append(f"{'ms':<26}{'p50':>9}{'p95':>9}{'p99':>9}{'mean':>9}")
    numbers = summary["numbers"]
    spreads = (
        ("waited for a client", summary["waited_s"]),
        *((name, numbers[key]) for name, key in _TIMES),
    )
    for label, spread in spreads:
        if spread is not None:
            cells = (number(1e3 * spread[part]["value"]) for part in ("p50", "p95", "p99", "mean"))
            lines.append(f"{label:<26}" + "".join(f"{cell:>9}" for cell in cells))
    if numbers["mean_step_sessions"] is not None:
        shared = number(numbers["mean_step_sessions"]["value"])
        lines.append(f"{'sessions in a forward':<26}{shared:>9}")
    lines.append("what each number means: docs/methods.md")
    return "\n".join(lines)


_TIMES = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("e2e", "e2e_s"))

"""What a bench tells besides its numbers: its exit code, and what went wrong in lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UnavailableError
from edge_client.experiments.execution import NOT_RUN
from edge_client.experiments.records import Record

EXIT_SERVER = 3
EXIT_INTERRUPTED = 130


def problems_of(records: Sequence[Record], summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what went wrong, a line each."""
    problems = []
    if summary["interrupted"]:
        problems.append(
            f"interrupted after {summary['records']} of {summary['planned_records']} generations; "
            f"those are whole and summarised"
        )
    for arm, numbers in summary["arms"].items():
        failed = [record for record in records if record.arm == arm and record.error]
        if failed:
            # What was not run says nothing of why; the first turn always was.
            asked = [r for r in records if r.arm == arm and not _is(r, NOT_RUN)]
            last = next(record for record in reversed(asked) if record.error)
            problems.append(
                f"arm {arm}: {len(failed)} of {numbers['records']} generations failed; "
                f"the last with {last.error}"
            )
    if _out_of_reach(records):
        problems.append(
            "the server was still out of reach when the run ended; "
            "start it again and take the run up with --resume"
        )
    return tuple(problems)


def _out_of_reach(records: Sequence[Record]) -> bool:
    """Whether the last generation of some arm, of those that were run, found no server."""
    last = {record.arm: record for record in records if not _is(record, NOT_RUN)}
    return any(_is(record, UnavailableError.reason) for record in last.values())


def _is(record: Record, reason: str) -> bool:
    return (record.error or "").startswith(f"{reason}:")


def exit_code_of(records: Sequence[Record], summary: Mapping[str, Any]) -> int:
    """Returns 0, 3 when an arm or the server was lost, or 130 after Ctrl-C."""
    if summary["interrupted"]:
        return EXIT_INTERRUPTED
    arms = summary["arms"].values()
    lost = any(a["records"] and a["errors"] == a["records"] for a in arms)
    return EXIT_SERVER if lost or _out_of_reach(records) else 0

"""A run in Chrome's trace event format, which Perfetto opens: what edge and cloud did, and when.

Pure: made of records alone. All times are the client's clock; where the server's durations lie
in a flight is an assumption, stated in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge_client.experiments.columns import StepColumns
from edge_client.experiments.records import Record
from edge_client.experiments.trace_rows import TraceRows
from edge_client.steps import Spans

GENERATIONS = 200
"""How many are traced at most: a few megabytes, which a browser still likes."""

EDGE, CLOUD = "edge", "cloud"
_SERVER_PARTS = (
    ("queue", "queued_ns"),
    ("drafting", "draft_ns"),
    ("batch wait", "batched_ns"),
    ("compute", "computed_ns"),
)


def traced(records: Sequence[Record]) -> list[Record]:
    """Returns what a trace shows: whole generations of the first repeat, the first of them."""
    shown = [r for r in records if r.repeat == 0 and r.started_s is not None and r.steps]
    return shown[:GENERATIONS]


def trace_events(records: Sequence[Record]) -> dict[str, Any]:
    """Returns the trace as an object to be written as JSON; times in it are microseconds."""
    rows = TraceRows(
        {EDGE: ("generations", "drafting"), CLOUD: tuple(name for name, _ in _SERVER_PARTS)}
    )
    shown = traced(records)
    for record in shown:
        _Generation(record, rows).draw()
    return {
        "displayTimeUnit": "ms",
        "otherData": {
            "run_id": records[0].run_id if records else None,
            "generations": len(shown),
            "of_generations": len(records),
        },
        "traceEvents": rows.events(),
    }


@dataclass(frozen=True, slots=True)
class _Flight:
    """Is a draft or a request under way; times are since the generation's start."""

    begin_ns: int
    end_ns: int
    words: str


class _Generation:
    """Draws one record."""

    def __init__(self, record: Record, rows: TraceRows) -> None:
        assert record.steps is not None
        assert record.steps.arrival_ns is not None
        assert record.started_s is not None
        self._record = record
        self._rows = rows
        self._steps: StepColumns = record.steps
        self._arrivals = [at or 0 for at in record.steps.arrival_ns]
        self._origin_ns = round(record.started_s * 1e9)
        self._cloud_ns: int | None = None  # where the server's last piece of a stream ended

    def draw(self) -> None:
        """Draws the generation, and each of its steps."""
        record = self._record
        self._span(
            EDGE,
            "generations",
            f"{record.arm} {record.prompt_id}",
            (0, self._arrivals[-1]),
            turn=record.turn,
            tokens=record.num_output_tokens,
            finish_reason=record.finish_reason,
        )
        for step in range(len(self._arrivals)):
            self._drafting(step)
            flight = self._flight(step)
            if flight is not None:
                self._fly(step, flight)

    def _drafting(self, step: int) -> None:
        spans: Spans = (self._steps.drafting_ns or {step: None})[step] or ()
        if self._steps.drafting_ns is None and self._of(step, "elapsed_ns") is None:
            spans = ((self._arrivals[step - 1] if step else 0, self._arrivals[step]),)
        what = {None: "token", False: "block, not asked about", True: "draft"}[self._asked(step)]
        guessed = self._of(step, "num_guessed_tokens")
        for span in spans:
            self._span(EDGE, "drafting", f"{what} {step}", span, guessed=guessed)

    def _flight(self, step: int) -> _Flight | None:
        """Returns the flight of this step; None where nothing was sent."""
        elapsed, received = self._of(step, "elapsed_ns"), self._of(step, "received_ns")
        if self._of(step, "overtaken"):
            begin = self._sent(step)
            if received is None:  # nobody waited for the answer
                return _Flight(begin, max(begin, self._arrivals[-1]), "overtaken by the end")
            return _Flight(begin, received, "overtaken")
        if elapsed is None:
            return None
        end = self._arrivals[step] if received is None else received
        return _Flight(end - elapsed, end, "piece" if self._asked(step) is None else "round")

    def _fly(self, step: int, flight: _Flight) -> None:
        self._rows.flight(
            EDGE,
            f"{flight.words} {step}",
            f"{self._record.order}.{step}",
            (self._origin_ns + flight.begin_ns, self._origin_ns + flight.end_ns),
            **{name: self._of(step, name) for name in _FLIGHT_FACTS},
        )
        total = self._of(step, "total_ns")
        if total is None:
            return
        at = self._cloud_begin(step, flight, total)
        self._cloud_ns = at + total
        for row, column in _SERVER_PARTS:
            spent = self._of(step, column) or 0
            if column == "draft_ns" and self._asked(step) is not None:
                continue  # that draft was made on the edge
            if spent:
                name = f"{flight.words} {step}"
                self._span(CLOUD, row, name, (at, at + spent), sessions=self._sessions(step))
            at += spent

    def _cloud_begin(self, step: int, flight: _Flight, total_ns: int) -> int:
        """Returns where the server's time lies: in the middle, or behind the piece before it."""
        if self._asked(step) is None and self._cloud_ns is not None:
            return self._cloud_ns
        network = max(0, flight.end_ns - flight.begin_ns - total_ns)
        return flight.begin_ns + network // 2

    def _sent(self, step: int) -> int:
        """Returns when an overtaken draft was sent: as soon as it was made."""
        spans: Spans = (self._steps.drafting_ns or {step: None})[step] or ()
        return spans[-1][1] if spans else self._arrivals[step]

    def _asked(self, step: int) -> bool | None:
        asked = self._of(step, "asked")
        return None if asked is None else bool(asked)

    def _sessions(self, step: int) -> int | None:
        return self._of(step, "step_sessions")

    def _of(self, step: int, column: str) -> int | None:
        values: Sequence[int | None] | None = getattr(self._steps, column)
        return None if values is None else values[step]

    def _span(self, process: str, row: str, name: str, span: tuple[int, int], **facts: Any) -> None:
        begin, end = (self._origin_ns + at for at in span)
        self._rows.span(process, row, name, (begin, end), arm=self._record.arm, **facts)


_FLIGHT_FACTS = (
    *("num_draft_tokens", "num_accepted_tokens", "num_tokens", "num_wasted_tokens", "ahead"),
    *("bytes_up", "bytes_down", "elapsed_ns", "total_ns", "serialization_ns"),
)

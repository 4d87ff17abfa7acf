"""Rows of spans and flights as Chrome trace events.

Spans of one row that overlap are laid into rows of the same name beside it, for events of one
thread must nest; flights are asynchronous events, which may overlap. The format:
"Trace Event Format", Google, 2016, as Perfetto reads it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LANES = 100  # thread ids between two rows: more than drafts can ever be in flight


@dataclass(frozen=True, slots=True, order=True)
class _Span:
    begin_ns: int
    end_ns: int
    name: str
    facts: Mapping[str, Any]


class TraceRows:
    """Collects what happened; processes and their rows stand in the order given."""

    def __init__(self, rows: Mapping[str, Sequence[str]]) -> None:
        self._pids = {process: pid for pid, process in enumerate(rows, 1)}
        self._rows = {
            (process, row): place * _LANES
            for process, names in rows.items()
            for place, row in enumerate(names, 1)
        }
        self._spans: dict[tuple[str, str], list[_Span]] = defaultdict(list)
        self._flights: list[dict[str, Any]] = []

    def span(
        self, process: str, row: str, name: str, span: tuple[int, int], **facts: object
    ) -> None:
        """Notes what one row did from one nanosecond to another."""
        self._spans[process, row].append(_Span(*span, name, _known(facts)))

    def flight(
        self, process: str, name: str, ident: str, span: tuple[int, int], **facts: object
    ) -> None:
        """Notes what was under way, whatever else was; `ident` is its own."""
        event = {"cat": "flight", "id": ident, "name": name, "pid": self._pids[process], "tid": 0}
        begin, end = span
        self._flights += [
            event | {"ph": "b", "ts": _us(begin), "args": _known(facts)},
            event | {"ph": "e", "ts": _us(end), "args": {}},
        ]

    def events(self) -> list[dict[str, Any]]:
        """Returns all events: names first, then by time."""
        names: list[dict[str, Any]] = []
        for process, pid in self._pids.items():
            names += _named(pid, 0, "process", process, pid)
        timed = list(self._flights)
        for (process, row), tid in self._rows.items():
            pid = self._pids[process]
            for lane, spans in enumerate(_lanes(self._spans[process, row]) or [[]]):
                words = row if not lane else f"{row} ({lane + 1})"
                names += _named(pid, tid + lane, "thread", words, tid + lane)
                timed += [_complete(pid, tid + lane, span) for span in spans]
        return names + sorted(timed, key=lambda event: event["ts"])


def _lanes(spans: Sequence[_Span]) -> list[list[_Span]]:
    """Lays spans into as few lanes as it takes for none to overlap."""
    lanes: list[list[_Span]] = []
    for span in sorted(spans, key=lambda span: (span.begin_ns, span.end_ns)):
        free = next((lane for lane in lanes if lane[-1].end_ns <= span.begin_ns), None)
        if free is None:
            lanes.append([span])
        else:
            free.append(span)
    return lanes


def _complete(pid: int, tid: int, span: _Span) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": "span",
        "name": span.name,
        "pid": pid,
        "tid": tid,
        "ts": _us(span.begin_ns),
        "dur": _us(span.end_ns) - _us(span.begin_ns),
        "args": span.facts,
    }


def _named(pid: int, tid: int, kind: str, name: str, order: int) -> list[dict[str, Any]]:
    common = {"ph": "M", "pid": pid, "tid": tid}
    return [
        common | {"name": f"{kind}_name", "args": {"name": name}},
        common | {"name": f"{kind}_sort_index", "args": {"sort_index": order}},
    ]


def _us(ns: int) -> int:
    return ns // 1000  # whole ones: fractions could overlap by rounding when they are read


def _known(facts: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in facts.items() if value is not None}

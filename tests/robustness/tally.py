"""What a fuzzed server may answer, and the count of what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.robustness.sequences import Sequence

STATUSES = frozenset(
    {
        "OK",
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "ABORTED",
        "DEADLINE_EXCEEDED",
        "CANCELLED",
        "UNAUTHENTICATED",
    }
)
CROSSED = "written as the call ended"
IN_ENTRY = "entry of a batch: "
ALLOWED = STATUSES | {CROSSED} | {IN_ENTRY + name for name in STATUSES | {"NOT_FOUND"}}


@dataclass
class Tally:
    """Counts what was played, and keeps what must not happen."""

    sequences: int = 0
    messages: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def untried(self, labels: Iterable[str]) -> list[str]:
        return [label for label in labels if not self.labels[label]]

    def status(self, name: str, details: str, sequence: Sequence) -> None:
        self.statuses[name] += 1
        if name not in ALLOWED:
            self.faults.append(f"{name}: {details}: {sequence}")

"""What both processes used in a generation: processor time, memory and energy, read after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from common.machine.usage import Usage
from edge_client.experiments.records import Record

ReadUsage = Callable[[], tuple[Usage, Usage | None]]
"""Returns what this process and the server have used so far; None without an answer."""

_MIB = 1024**2


@dataclass(slots=True)
class Meter:
    """Holds the last reading, and tells of what was used since."""

    read: ReadUsage | None
    last: tuple[Usage, Usage | None] | None = None

    def start(self) -> None:
        """Takes the reading from which the next generation counts."""
        self.last = None if self.read is None else self.read()

    def used(self) -> dict[str, Any]:
        """Returns the fields of a record; empty where nothing is read."""
        if self.read is None or self.last is None:
            return {}
        before, self.last = self.last, self.read()
        (edge, cloud), (edge_now, cloud_now) = before, self.last
        return _fields("edge", edge, edge_now) | _fields("cloud", cloud, cloud_now)


def _fields(side: str, before: Usage | None, now: Usage | None) -> dict[str, Any]:
    if before is None or now is None:
        return {}
    found = {
        f"{side}_cpu_s": _grown(before.cpu_s, now.cpu_s),
        f"{side}_peak_rss_mib": _mib(now.peak_rss_bytes),
        f"{side}_energy_j": _grown(before.energy_j, now.energy_j),
    }
    if side == "cloud":
        found |= {
            "gpu_peak_memory_mib": _mib(now.gpu_memory_bytes),
            "gpu_utilization": now.gpu_utilization,
            "gpu_energy_j": _grown(before.gpu_energy_j, now.gpu_energy_j),
        }
    return found


def resources(records: Sequence[Record]) -> dict[str, Any]:
    """Returns the totals of a run: what was used for its generations, and the peaks."""
    return {
        "edge_cpu_s": _total(r.edge_cpu_s for r in records),
        "cloud_cpu_s": _total(r.cloud_cpu_s for r in records),
        "edge_peak_rss_mib": _most(r.edge_peak_rss_mib for r in records),
        "cloud_peak_rss_mib": _most(r.cloud_peak_rss_mib for r in records),
        "edge_energy_j": _total(r.edge_energy_j for r in records),
        "cloud_energy_j": _total(r.cloud_energy_j for r in records),
        "gpu_peak_memory_mib": _most(r.gpu_peak_memory_mib for r in records),
        "gpu_utilization": _mean(r.gpu_utilization for r in records),
        "gpu_energy_j": _total(r.gpu_energy_j for r in records),
    }


def _grown(before: float | None, now: float | None) -> float | None:
    """Returns by how much a counter grew; None where it wrapped, or began anew."""
    return None if before is None or now is None or now < before else now - before


def _mib(size: float | None) -> float | None:
    return None if size is None else size / _MIB


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _total(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return sum(known) if known else None


def _most(values: Iterable[float | None]) -> float | None:
    return max(_known(values), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None

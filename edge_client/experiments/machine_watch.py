"""Whether the machine was busy with other things, throttled or robbed while a run went on."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
BUSY_LOAD = 0.75  # load average per core, before anything of ours runs
BUSY_CORES = 0.25  # cores that other programs use while we run
STOLEN = 0.01  # share of all time that the hypervisor gave to others
SLOWED = 0.85  # of the first clock


@dataclass(frozen=True, slots=True)
class Reading:
    """Is the state of the machine; what it does not tell is None. Seconds are totals so far.

    `load` is the load average of the last minute; `busy_s` and `all_s` count all cores;
    `ours_s` is the processor time of this process and of a server on this machine; `throttled_s`
    is how long a quota held this process back; `heat_events` how often a core was too hot.
    """

    cores: int
    load: float | None = None
    all_s: float | None = None
    busy_s: float | None = None
    stolen_s: float | None = None
    ours_s: float | None = None
    throttled_s: float | None = None
    heat_events: int | None = None
    clock_mhz: float | None = None


class MachineWatch:
    """Reads the machine now and then; `clock` returns nanoseconds of one monotonic clock."""

    def __init__(self, read: Callable[[], Reading], clock: Callable[[], int]) -> None:
        self._read = read
        self._clock = clock
        self._started_ns = clock()
        self._samples: list[tuple[str, float, Reading]] = []

    def sample(self, when: str) -> None:
        """Takes a reading."""
        at_s = (self._clock() - self._started_ns) / 1e9
        self._samples.append((when, at_s, self._read()))

    def told(self) -> dict[str, Any]:
        """Returns all readings and, in sentences, what was noticed; none when all was quiet."""
        samples = [{"when": when, "at_s": at} | asdict(r) for when, at, r in self._samples]
        return {"samples": samples, "noticed": self._noticed()}

    def _noticed(self) -> list[str]:
        if not self._samples:
            return []
        first = self._samples[0][2]
        found = []
        if first.load is not None and first.load > BUSY_LOAD * first.cores:
            found.append(
                f"busy before the run began: load average {first.load:.1f} on {first.cores} cores"
            )
        lasting: list[_Trouble] = []
        for (_, since, before), (_, until, now) in pairwise(self._samples):
            for words, size in _between(first, before, now, until - since):
                same = (t for t in lasting if (t.words, t.until_s) == (words, since))
                trouble = next(same, None)
                if trouble is None:
                    lasting.append(_Trouble(words, since, until, [size]))
                else:
                    trouble.until_s = until
                    trouble.sizes.append(size)
        return found + [trouble.told() for trouble in lasting]


@dataclass(slots=True)
class _Trouble:
    """Is what went on from one reading to the next, or longer; `sizes` has one for each span."""

    words: str  # with a place for the size
    since_s: float
    until_s: float
    sizes: list[str]

    def told(self) -> str:
        least, most = min(self.sizes, key=_size), max(self.sizes, key=_size)
        size = least if least == most else f"{least} to {most}"
        return f"{self.words.format(size)} between {self.since_s:.0f} and {self.until_s:.0f} s"


def _size(told: str) -> float:
    return float(told.rstrip("%") or 0)


def _between(
    first: Reading, before: Reading, now: Reading, seconds: float
) -> Iterator[tuple[str, str]]:
    """Yields what was amiss between two readings, and how much."""
    everything = _grown(before.all_s, now.all_s)
    stolen, busy = _grown(before.stolen_s, now.stolen_s), _grown(before.busy_s, now.busy_s)
    ours = _grown(before.ours_s, now.ours_s)
    if stolen is not None and everything and stolen / everything > STOLEN:
        yield "the hypervisor took {} of the processor", f"{stolen / everything:.0%}"
    if busy is not None and ours is not None and seconds > 0:
        others = (busy - ours) / seconds
        if others > BUSY_CORES:
            yield "other programs used {} cores", f"{others:.1f}"
    held = _grown(before.throttled_s, now.throttled_s)
    if held and seconds > 0:
        share = f"{held / seconds:.0%}"
        yield "the processor quota held this process back for {} of the time", share
    if _grown(before.heat_events, now.heat_events):
        yield "a core was throttled for its heat", ""
    if first.clock_mhz and now.clock_mhz and now.clock_mhz < SLOWED * first.clock_mhz:
        yield (
            f"the clock fell from {first.clock_mhz:.0f} to {{}} MHz",
            f"{now.clock_mhz:.0f}",
        )


def _grown(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else now - before


def read_machine(
    server_cpu_s: Callable[[], float | None] = lambda: None,
    *,
    proc: Path = Path("/proc"),
    sys: Path = Path("/sys"),
) -> Reading:
    """Reads the machine; `server_cpu_s` is the processor time of a server on it, 0 without one.

    None of it means that a server's time cannot be told from that of others.
    """
    line = _words(proc / "stat")
    ticks = [int(word) / _TICKS_PER_S for word in line[1:9]] if line[:1] == ["cpu"] else []
    load = _words(proc / "loadavg")
    served = server_cpu_s()
    cpus = sys / "devices/system/cpu"
    clocks = [int(w[0]) / 1000 for w in _all(cpus, "cpu*/cpufreq/scaling_cur_freq")]
    heat = [int(w[0]) for w in _all(cpus, "cpu*/thermal_throttle/core_throttle_count")]
    return Reading(
        cores=os.cpu_count() or 1,
        load=float(load[0]) if load else None,
        all_s=sum(ticks) if ticks else None,
        busy_s=sum(ticks) - ticks[3] - ticks[4] - ticks[7] if ticks else None,
        stolen_s=ticks[7] if ticks else None,
        ours_s=None if served is None else served + own_cpu_s(),
        throttled_s=_throttled_s(proc / "self/cgroup", sys / "fs/cgroup"),
        heat_events=sum(heat) if heat else None,
        clock_mhz=mean(clocks) if clocks else None,
    )


def own_cpu_s() -> float:
    """Returns the processor time of this process and of its ended children, in seconds."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def _throttled_s(membership: Path, root: Path) -> float | None:
    """Returns how long the quota of this process's own cgroup has held it back, in seconds."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in lines:
        base = root / "cpu" if "cpu" in controllers.split(",") else root
        words = _words(base / path.strip("/") / "cpu.stat", lines=99)
        counts = dict(zip(words[::2], words[1::2], strict=False))
        if "throttled_usec" in counts:
            return int(counts["throttled_usec"]) / 1e6
        if "throttled_time" in counts:
            return int(counts["throttled_time"]) / 1e9
    return None


def _all(folder: Path, pattern: str) -> list[list[str]]:
    return [words for file in sorted(folder.glob(pattern)) if (words := _words(file))]


def _words(file: Path, lines: int = 1) -> list[str]:
    try:
        return " ".join(file.read_text().splitlines()[:lines]).split()
    except OSError:
        return []

"""Cores and memory this process may actually use, read back from the kernel, and by what."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_GIB = 1024**3
_CGROUP = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_UNLIMITED_BYTES = 2**60  # cgroup v1 writes "no limit" as a number about this large

NOT_LIMITED = "not limited"


def granted_cores(root: Path = _CGROUP, membership: Path = _SELF) -> dict[str, Any]:
    """Returns cores present, cores granted, and what enforces that."""
    present = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    quota = cpu_quota(root, membership)
    granted = float(min(affinity, quota[0])) if quota else float(affinity)
    if quota and quota[0] <= affinity and quota[0] < present:
        enforced = quota[1]
    else:
        enforced = "affinity" if affinity < present else NOT_LIMITED
    return {"present": present, "granted": granted, "enforced_by": enforced}


def granted_memory(
    root: Path = _CGROUP, membership: Path = _SELF, meminfo: Path = _MEMINFO
) -> dict[str, Any]:
    """Returns GiB present, GiB granted, and what enforces that."""
    present = _total_memory(meminfo)
    limits = [limit for limit in (memory_limit(root, membership), *_rlimits()) if limit]
    limits = [limit for limit in limits if present is None or limit[0] < present]
    granted, enforced = min(limits, default=(present, NOT_LIMITED), key=lambda limit: limit[0] or 0)
    return {
        "present_gib": _gib(present),
        "granted_gib": _gib(granted),
        "enforced_by": enforced,
    }


def cpu_quota(root: Path, membership: Path) -> tuple[float, str] | None:
    """Returns the smallest CPU quota of this process's cgroups, in cores."""
    found = []
    for group in _groups(root, membership, ""):
        words = _words(group / "cpu.max")
        if len(words) == 2 and words[0] != "max":
            found.append((int(words[0]) / int(words[1]), "cgroup v2 cpu.max"))
    for group in _groups(root, membership, "cpu"):
        quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            found.append((int(quota[0]) / int(period[0]), "cgroup v1 cpu.cfs_quota_us"))
    return min(found, default=None)


def memory_limit(root: Path, membership: Path) -> tuple[int, str] | None:
    """Returns the smallest memory limit of this process's cgroups, in bytes."""
    found = []
    for group in _groups(root, membership, ""):
        words = _words(group / "memory.max")
        if words and words[0] != "max":
            found.append((int(words[0]), "cgroup v2 memory.max"))
    for group in _groups(root, membership, "memory"):
        words = _words(group / "memory.limit_in_bytes")
        if words and int(words[0]) < _UNLIMITED_BYTES:
            found.append((int(words[0]), "cgroup v1 memory.limit_in_bytes"))
    return min(found, default=None)


def _groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Yields the folders of this process's cgroup, from its own up to the root's.

    `controller` is empty for the one hierarchy of version 2.
    """
    base = root / controller if controller else root
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    path = ""
    for line in lines:
        _, controllers, where = line.split(":", 2)
        if controller in controllers.split(","):
            path = where.strip("/")
            break
    folder = base / path
    yield folder
    while folder != base:
        folder = folder.parent
        yield folder


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _rlimits() -> list[tuple[int, str]]:
    """Returns the limits on this process's own memory: all addresses, and what it may write."""
    named = ((resource.RLIMIT_AS, "RLIMIT_AS"), (resource.RLIMIT_DATA, "RLIMIT_DATA"))
    softs = [(resource.getrlimit(kind)[0], name) for kind, name in named]
    return [(soft, name) for soft, name in softs if soft != resource.RLIM_INFINITY]


def _total_memory(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / _GIB, 2)

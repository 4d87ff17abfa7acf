"""A control group of this process's own, with a processor quota and a memory limit.

Version 2 where its controllers can be had, else version 1. Either needs the right to
make groups: root, or a delegated subtree.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
PERIOD_US = 100_000

Make = Callable[[Path], None]


def confine(
    cores: float | None,
    memory_bytes: int | None,
    *,
    root: Path = ROOT,
    membership: Path = MEMBERSHIP,
    make: Make = Path.mkdir,
    pid: int | None = None,
) -> list[Path]:
    """Moves this process into groups with these limits; returns those that were made.

    What is not permitted is left out: read back what holds (granted.py).
    """
    pid = os.getpid() if pid is None else pid
    paths = _memberships(membership)
    made: list[Path] = []
    for controller, limits in _limits(cores, memory_bytes).items():
        version_2, version_1 = limits
        group = None
        if "" in paths:
            own = _below(root, paths[""])
            homes = [own] if own == root else [own, own.parent]
            group = next((g for home in homes if (g := _group(home, version_2, pid, make))), None)
        if group is None and controller in paths:
            group = _group(_below(root / controller, paths[controller]), version_1, pid, make)
        if group is not None and group not in made:
            made.append(group)
    return made


def remove(pid: int, root: Path = ROOT, membership: Path = MEMBERSHIP) -> None:
    """Removes the groups of a process that has ended without leaving them."""
    paths = _memberships(membership)
    homes = [_below(root / name, path) for name, path in paths.items()]
    homes += [home.parent for home in homes if home not in (root, *root.iterdir())]
    for home in dict.fromkeys(homes):
        with suppress(OSError):
            (home / f"outrider-{pid}").rmdir()


def leave(groups: list[Path], pid: int | None = None) -> None:
    """Moves this process out again, and removes what `confine` made, where that is allowed."""
    for group in groups:
        try:
            _write(group.parent / "cgroup.procs", str(os.getpid() if pid is None else pid))
            group.rmdir()
        except OSError:
            continue  # the group goes when its last process does, or stays empty


def _limits(
    cores: float | None, memory_bytes: int | None
) -> dict[str, tuple[Mapping[str, str], Mapping[str, str]]]:
    """Returns by controller what is written, in version 2 and in version 1."""
    limits: dict[str, tuple[Mapping[str, str], Mapping[str, str]]] = {}
    if cores is not None:
        quota = str(max(1000, round(cores * PERIOD_US)))
        limits["cpu"] = (
            {"cpu.max": f"{quota} {PERIOD_US}"},
            {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": quota},
        )
    if memory_bytes is not None:
        size = str(memory_bytes)
        limits["memory"] = ({"memory.max": size}, {"memory.limit_in_bytes": size})
    return limits


def _group(home: Path, limits: Mapping[str, str], pid: int, make: Make) -> Path | None:
    """Makes, or takes again, a group below `home` for `pid`; None where that is not permitted."""
    _sweep(home)
    group = home / f"outrider-{pid}"
    new = not group.exists()
    try:
        if new:
            make(group)
        if not all((group / name).exists() for name in limits):
            _enable(home, limits)
        for name, value in limits.items():
            if not (group / name).exists():
                raise FileNotFoundError(group / name)
            _write(group / name, value)
        _write(group / "cgroup.procs", str(pid))
    except OSError:
        if new and group.exists():
            try:
                group.rmdir()
            except OSError:
                return None
        return None
    return group


def _sweep(home: Path) -> None:
    """Removes empty groups whose processes were killed before they could leave."""
    for group in home.glob("outrider-*"):
        pid = group.name.rpartition("-")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            with suppress(OSError):
                group.rmdir()


def _enable(home: Path, limits: Mapping[str, str]) -> None:
    """Asks version 2 to hand a controller down, which it grants where `home` has no processes."""
    for controller in {name.partition(".")[0] for name in limits}:
        if (home / "cgroup.subtree_control").exists():
            _write(home / "cgroup.subtree_control", f"+{controller}")


def _memberships(membership: Path) -> dict[str, str]:
    """Returns this process's group by controller, that of version 2 under an empty name."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), path)
    return found


def _below(base: Path, path: str) -> Path:
    return base / path.strip("/") if path.strip("/") else base


def _write(file: Path, text: str) -> None:
    with file.open("w") as stream:
        stream.write(text)

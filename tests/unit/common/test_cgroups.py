"""Control groups against a file tree that answers as the kernel does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from common.machine.cgroups import confine, leave

GIB = 1024**3
V1 = {"cpu": ("cpu.cfs_period_us", "cpu.cfs_quota_us"), "memory": ("memory.limit_in_bytes",)}


class Kernel:
    """Is a mount of control groups: a new folder has the files of its controllers at once."""

    def __init__(self, root: Path, membership: str) -> None:
        self.root = root / "fs"
        self.root.mkdir()
        self.membership = root / "cgroup"
        self.membership.write_text(membership)
        self.forbidden = False
        self.handed: dict[str, tuple[str, ...]] = {}  # by folder, whatever is asked of it

    def group(self, path: str, *files: str) -> Path:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("cgroup.procs", *files):
            (folder / file).write_text("")
        return folder

    def make(self, path: Path) -> None:
        if self.forbidden:
            raise PermissionError(path)
        path.mkdir()
        (path / "cgroup.procs").write_text("")
        version_1 = V1.get(path.relative_to(self.root).parts[0])
        if version_1 is not None:
            files = version_1
        else:
            handed = self.handed.get(path.parent.relative_to(self.root).as_posix(), ())
            files = tuple(f"{name}.max" for name in handed)
        for file in files:
            (path / file).write_text("max")

    def confine(self, cores: float | None, memory: int | None) -> list[Path]:
        return confine(
            cores, memory, root=self.root, membership=self.membership, make=self.make, pid=7
        )


@pytest.fixture(autouse=True)
def _folders_with_files_can_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rmdir", shutil.rmtree)  # the kernel's files are no hindrance


def read(group: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in group.iterdir()}


def test_version_1_has_a_group_in_each_hierarchy(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "4:memory:/box\n1:cpu,cpuacct:/\n0::/\n")
    kernel.group("cpu")
    kernel.group("memory/box")
    cpu, memory = kernel.confine(1.5, 2 * GIB)
    assert cpu == kernel.root / "cpu/outrider-7"
    assert read(cpu) == {
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "150000",
        "cgroup.procs": "7",
    }
    assert read(memory) == {"memory.limit_in_bytes": str(2 * GIB), "cgroup.procs": "7"}
    assert memory == kernel.root / "memory/box/outrider-7"


def test_version_2_has_one_beside_the_process_s_own(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/slice/job\n")
    kernel.group("slice/job", "cgroup.subtree_control")
    kernel.handed = {"slice": ("cpu", "memory")}
    (group,) = kernel.confine(2, GIB)
    assert group == kernel.root / "slice/outrider-7"
    assert read(group) == {
        "cpu.max": "200000 100000",
        "memory.max": str(GIB),
        "cgroup.procs": "7",
    }
    assert [path.name for path in (kernel.root / "slice/job").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("membership", ["0::/a/b\n", "1:cpu:/a\n4:memory:/a\n", ""])
def test_where_it_is_not_permitted_nothing_is_left(tmp_path: Path, membership: str) -> None:
    kernel = Kernel(tmp_path, membership)
    for path in ("a/b", "cpu/a", "memory/a"):
        kernel.group(path)
    kernel.forbidden = True
    assert kernel.confine(1, GIB) == []
    assert not list(kernel.root.rglob("outrider-*"))


def test_a_controller_that_is_not_handed_down_is_left_out(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/job\n")
    kernel.group("job", "cgroup.subtree_control")
    kernel.handed = {".": ("memory",)}
    (group,) = kernel.confine(1, GIB)
    assert read(group) == {"memory.max": str(GIB), "cgroup.procs": "7"}


def test_leaving_gives_the_process_back_to_where_it_was(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "1:cpu:/box\n")
    box = kernel.group("cpu/box")
    groups = kernel.confine(1, None)
    leave(groups, pid=7)
    assert (box / "cgroup.procs").read_text() == "7"
    assert not groups[0].exists()


def test_groups_of_the_killed_are_swept_and_those_of_the_living_stay(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "4:cpu,cpuacct:/\n")
    kernel.group("cpu")
    killed, living = (kernel.group(f"cpu/outrider-{pid}") for pid in (2**30, os.getpid()))
    kernel.confine(1, None)
    assert not killed.exists()
    assert living.exists()

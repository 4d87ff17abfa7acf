from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from common.config import Config
from common.machine.granted import cpu_quota, granted_cores, granted_memory, memory_limit
from edge_client.experiments.environment import (
    ModelFacts,
    cpu_model,
    describe_environment,
    git_state,
)

GIB = 1024**3


def cgroup(folder: Path, membership: str, **files: str) -> tuple[Path, Path]:
    for name, text in files.items():
        file = folder / "fs" / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    member = folder / "cgroup"
    member.write_text(membership + "\n")
    return folder / "fs", member


def test_quota_of_version_2_is_the_smallest_up_to_the_root(tmp_path: Path) -> None:
    where = cgroup(
        tmp_path, "0::/a/b", a__b__cpu_DOT_max="max 100000", a__cpu_DOT_max="150000 100000"
    )
    assert cpu_quota(*where) == (1.5, "cgroup v2 cpu.max")


def test_quota_of_version_1(tmp_path: Path) -> None:
    where = cgroup(
        tmp_path,
        "3:cpu,cpuacct:/job",
        **{"cpu__job__cpu_DOT_cfs_quota_us": "200000", "cpu__job__cpu_DOT_cfs_period_us": "100000"},
    )
    assert cpu_quota(*where) == (2.0, "cgroup v1 cpu.cfs_quota_us")


def test_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(*cgroup(tmp_path, "0::/", cpu_DOT_max="max 100000")) is None
    assert cpu_quota(tmp_path / "none", tmp_path / "nothing") is None


def test_memory_limits(tmp_path: Path) -> None:
    where = cgroup(tmp_path, "0::/a", a__memory_DOT_max=str(2 * GIB), memory_DOT_max="max")
    assert memory_limit(*where) == (2 * GIB, "cgroup v2 memory.max")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8388608 kB\nMemFree: 1 kB\n")
    assert granted_memory(*where, meminfo) == {
        "present_gib": 8.0,
        "granted_gib": 2.0,
        "enforced_by": "cgroup v2 memory.max",
    }


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/", {"memory_DOT_max": str(16 * GIB)}),
        ("5:memory:/", {"memory__memory_DOT_limit_in_bytes": "9223372036854771712"}),
    ],
)
def test_a_limit_above_what_is_there_limits_nothing(
    membership: str, files: dict[str, str], tmp_path: Path
) -> None:
    where = cgroup(tmp_path, membership, **files)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8388608 kB\n")
    memory = granted_memory(*where, meminfo)
    assert (memory["granted_gib"], memory["enforced_by"]) == (8.0, "not limited")


def test_cores_granted_by_a_quota(tmp_path: Path) -> None:
    where = cgroup(tmp_path, "0::/", cpu_DOT_max="50000 100000")
    cores = granted_cores(*where)
    assert cores["granted"] == 0.5
    assert cores["enforced_by"] == "cgroup v2 cpu.max"


def test_cpu_model(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor: 0\nmodel name\t: A Fine Chip @ 2 GHz\n")
    assert cpu_model(file) == "A Fine Chip @ 2 GHz"


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e@x", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_git_state_is_that_of_the_repository_that_tracks_the_file(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("1\n")
    assert git_state(file) is None
    git(tmp_path, "init")
    (tmp_path / "other.txt").write_text("not ours\n")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-m", "w")
    assert git_state(file) is None  # a repository around an installed copy says nothing of it
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "-m", "x")
    state = git_state(file)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    file.write_text("2\n")
    changed = git_state(file)
    assert changed is not None
    assert changed["dirty"] is True


def test_the_environment_is_json_and_does_not_name_the_machine() -> None:
    environment = describe_environment(
        config=Config(),
        precision={"tf32": "off"},
        draft=ModelFacts("draft", "abc", "float32"),
        server=None,
    )
    text = json.dumps(environment)
    if len(socket.gethostname()) > 3:
        assert socket.gethostname() not in text
    assert environment["edge"]["versions"]["torch"]
    assert environment["edge"]["precision"] == {"tf32": "off"}
    assert environment["configuration"]["decoding"]["temperature"] == 0.0
    assert environment["target_model"] is None


@pytest.mark.parametrize("package", ["python", "torch", "transformers", "grpcio", "protobuf"])
def test_versions(package: str) -> None:
    environment = describe_environment(config=Config(), precision={}, draft=None, server=None)
    assert environment["edge"]["versions"][package]

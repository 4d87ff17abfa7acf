"""Limits on a process, as it finds them afterwards; what it used; what says that memory ran out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.config import SideLimits
from common.machine.limits import enforce, is_out_of_memory
from common.machine.usage import Usage, boot, package_energy_j, read_usage

PROGRAM = """
import json, os, resource
from common.config import SideLimits
from common.machine.granted import granted_cores, granted_memory
from common.machine.limits import enforce
enforce(SideLimits(cpu_cores=CORES, memory_gb=GB), from_the_end=END, confine=lambda *_: [])
try:
    bytearray(3 * 1024**3)
    refused = False
except MemoryError:
    refused = True
told = {"refused": refused, "cores": granted_cores(), "memory": granted_memory()}
print(json.dumps(told | {"processors": sorted(os.sched_getaffinity(0))}))
"""


def limited(cores: float | None, gb: float | None, end: bool = False) -> dict[str, Any]:
    """Runs a process that limits itself without control groups, and says what it then has."""
    program = PROGRAM.replace("CORES", repr(cores)).replace("GB)", f"{gb!r})")
    done = subprocess.run(
        [sys.executable, "-c", program.replace("END", repr(end))],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_without_control_groups_processors_and_memory_are_limited_all_the_same() -> None:
    here = sorted(os.sched_getaffinity(0))
    first, last = limited(0.5, 1), limited(1, None, end=True)
    assert first["processors"] == here[:1]
    assert first["cores"]["granted"] <= 1
    assert first["refused"] is True
    assert first["memory"]["granted_gib"] <= 1
    assert last["processors"] == here[-1:]
    assert last["refused"] is False


def test_no_limit_touches_nothing() -> None:
    def confine(*_: object) -> list[Path]:
        raise AssertionError

    enforce(SideLimits(), confine=confine)


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it


def test_usage_is_read_and_travels_as_words() -> None:
    used = read_usage()
    assert used.cpu_s is not None
    assert used.cpu_s > 0
    assert used.peak_rss_bytes is not None
    assert used.peak_rss_bytes > 10 * 1024**2
    assert used.gpu_memory_bytes is None
    assert Usage.from_texts(used.to_texts()) == used
    assert Usage.from_texts({"usage.cpu_s": "many", "torch": "2"}) == Usage()


def test_energy_is_that_of_whole_packages(tmp_path: Path) -> None:
    for zone, microjoules in (
        ("intel-rapl:0", 3_000_000),
        ("intel-rapl:0:0", 2_000_000),
        ("intel-rapl:1", 500_000),
    ):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{microjoules}\n")
    assert package_energy_j(tmp_path) == 3.5
    assert package_energy_j(tmp_path / "nothing") is None


def test_a_boot_is_told_without_its_name(tmp_path: Path) -> None:
    file = tmp_path / "boot_id"
    file.write_text("3f2a")
    told = boot(file)
    assert told is not None
    assert "3f2a" not in told
    assert told == boot(file)
    assert boot(tmp_path / "none") is None

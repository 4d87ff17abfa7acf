"""What is noticed of a machine that had other things to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge_client.experiments.machine_watch import MachineWatch, Reading, own_cpu_s, read_machine
from tests.unit.experiments.fakes import FakeClock

QUIET = Reading(
    cores=2,
    load=0.3,
    all_s=100,
    busy_s=40,
    stolen_s=0,
    ours_s=30,
    throttled_s=0,
    heat_events=3,
    clock_mhz=3000,
)
LATER = replace(QUIET, all_s=120, busy_s=50, ours_s=40)


def noticed(*readings: Reading) -> list[str]:
    clock = FakeClock()
    waiting = list(readings)
    watch = MachineWatch(lambda: waiting.pop(0), clock)
    for _ in readings:
        watch.sample("at some time")
        clock.advance_ms(10_000)
    told: list[str] = watch.told()["noticed"]
    return told


def test_a_quiet_machine_says_nothing() -> None:
    assert noticed(QUIET, LATER) == []
    assert noticed() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stolen_s": 1.0}, "the hypervisor took 5% of the processor between 0 and 10 s"),
        ({"busy_s": 65.0}, "other programs used 1.5 cores between 0 and 10 s"),
        ({"throttled_s": 2.0}, "the processor quota held this process back for 20% of the time"),
        ({"heat_events": 4}, "a core was throttled for its heat between 0 and 10 s"),
        ({"clock_mhz": 1500.0}, "the clock fell from 3000 to 1500 MHz between 0 and 10 s"),
    ],
)
def test_trouble_is_said_with_its_size(change: dict[str, float], said: str) -> None:
    (found,) = noticed(QUIET, replace(LATER, **change))  # type: ignore[arg-type]
    assert found.startswith(said)


def test_what_lasts_is_said_once_from_its_least_to_its_most() -> None:
    busy = [replace(QUIET, busy_s=40 + at, ours_s=30) for at in (0, 20, 32, 33, 50)]
    assert noticed(*busy) == [
        "other programs used 1.2 to 2.0 cores between 0 and 20 s",
        "other programs used 1.7 cores between 30 and 40 s",
    ]


def test_a_busy_start_is_said() -> None:
    (found,) = noticed(replace(QUIET, load=1.6))
    assert found == "busy before the run began: load average 1.6 on 2 cores"


def test_what_cannot_be_told_is_not_guessed() -> None:
    assert noticed(replace(QUIET, ours_s=None), replace(LATER, busy_s=999, ours_s=None)) == []
    assert noticed(Reading(cores=2), Reading(cores=2)) == []


def test_it_is_read_from_the_kernel_s_files(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/stat", "cpu  100 0 50 700 50 0 0 100 0 0\ncpu0 1 2 3\n")
    write("proc/loadavg", "1.25 1.00 0.50 2/100 12345\n")
    write("proc/self/cgroup", "0::/slice/me\n")
    write("sys/fs/cgroup/slice/me/cpu.stat", "usage_usec 7\nnr_throttled 2\nthrottled_usec 1500000")
    write("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "2000000\n")
    write("sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "3000000\n")
    write("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "4\n")
    read = read_machine(lambda: 5.0, proc=tmp_path / "proc", sys=tmp_path / "sys")
    assert (read.load, read.all_s, read.busy_s, read.stolen_s) == (1.25, 10.0, 1.5, 1.0)
    assert (read.throttled_s, read.heat_events, read.clock_mhz) == (1.5, 4, 2500)
    assert read.ours_s is not None
    assert 5.0 < read.ours_s <= 5.0 + own_cpu_s()
    write("proc/self/cgroup", "3:cpu,cpuacct:/old\n")
    write("sys/fs/cgroup/cpu/old/cpu.stat", "nr_periods 1\nthrottled_time 2500000000\n")
    assert read_machine(proc=tmp_path / "proc", sys=tmp_path / "sys").throttled_s == 2.5
    nothing = read_machine(proc=tmp_path / "no", sys=tmp_path / "no")
    assert nothing == Reading(cores=nothing.cores)

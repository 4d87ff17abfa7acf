"""Processor time, memory and energy of a run; an arm that runs out of memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from common.errors import OverloadedError
from common.machine.usage import Usage
from edge_client.arms import GenerationRequest
from edge_client.steps import Step
from tests.unit.experiments.test_runner import SCRIPTS, Bench

MIB = 1024**2


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_each_generation_has_what_was_used_since_the_one_before(bench: Bench) -> None:
    readings = iter(range(1, 1000))

    def usage() -> tuple[Usage, Usage | None]:
        n = next(readings)
        edge = Usage(cpu_s=0.01 * n, peak_rss_bytes=(100 + n) * MIB)
        return edge, Usage(cpu_s=0.03 * n, energy_j=2.0 * n, gpu_memory_bytes=5 * MIB)

    bench.run(limit=1, usage=usage)
    record = bench.records[0]
    assert record["edge_cpu_s"] == pytest.approx(0.01)
    assert record["cloud_cpu_s"] == pytest.approx(0.03)
    assert record["edge_peak_rss_mib"] == 102
    assert record["cloud_peak_rss_mib"] is None
    assert (record["cloud_energy_j"], record["edge_energy_j"]) == (2.0, None)
    arm = bench.summary["arms"]["cloud"]
    assert arm["edge_cpu_ms_per_token"]["value"] == pytest.approx(5)
    assert arm["cloud_cpu_ms_per_token"]["value"] == pytest.approx(15)
    assert arm["gpu_energy_j_per_token"] is None
    resources = bench.summary["resources"]
    assert resources["edge_cpu_s"] == pytest.approx(0.04)
    assert resources["edge_peak_rss_mib"] == 108
    assert resources["gpu_peak_memory_mib"] == 5


def test_a_server_that_began_anew_or_is_gone_leaves_nothing_false(bench: Bench) -> None:
    told: list[Usage | None] = [Usage(cpu_s=9.0), Usage(cpu_s=1.0), Usage(cpu_s=2.0), None]
    bench.run(limit=1, usage=lambda: (Usage(), told.pop(0) if told else None))
    assert {record["cloud_cpu_s"] for record in bench.records} == {None}


def test_without_a_reading_it_is_null(bench: Bench) -> None:
    result = bench.run(limit=1)
    assert bench.records[0]["edge_cpu_s"] is None
    assert set(bench.summary["resources"].values()) == {None}
    assert "CPU" not in result.table


REFUSED = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("no room"), "raise limits.edge.memory_gb, or ask for less (no room)"),
        (RuntimeError(REFUSED), f"raise limits.edge.memory_gb, or ask for less ({REFUSED})"),
        (OverloadedError("the engine ran out of memory: x; retry later"), "the engine ran out of"),
    ],
)
def test_running_out_of_memory_ends_the_arm_and_not_the_run(
    bench: Bench, error: Exception, said: str
) -> None:
    def greedy(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        if len(bench.arms["speculative"].requests) == 3:
            raise error
        return SCRIPTS["speculative"](request)

    result = bench.run(scripts={"speculative": greedy}, repeats=2)
    assert len(bench.records) == 32
    errors = [r["error"] for r in bench.records if r["arm"] == "speculative"]
    assert errors[0] is None
    assert errors[1].startswith("OUT_OF_MEMORY: ")
    assert said in errors[1]
    assert set(errors[2:]) == {"NOT_RUN: the arm speculative ran out of memory before"}
    assert len(bench.arms["speculative"].requests) == 3
    assert all(r["error"] is None for r in bench.records if r["arm"] != "speculative")
    assert "OUT_OF_MEMORY" in result.problems[0]
    assert result.exit_code == 0


def test_another_fault_is_still_raised(bench: Bench) -> None:
    def broken(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        if len(bench.arms["speculative"].requests) == 3:
            raise RuntimeError("shapes cannot be multiplied")
        return SCRIPTS["speculative"](request)

    with pytest.raises(RuntimeError, match="shapes"):
        bench.run(scripts={"speculative": broken})


def test_an_arm_that_ended_the_process_has_one_record_that_says_so(bench: Bench) -> None:
    result = bench.run(ended={"speculative": "the process was ended by SIGKILL"})
    errors = [r["error"] for r in bench.records if r["arm"] == "speculative"]
    assert errors == [
        "OUT_OF_MEMORY: the process was ended by SIGKILL",
        *["NOT_RUN: the arm speculative ran out of memory before"] * 3,
    ]
    assert bench.arms["speculative"].requests == []  # not even to warm it
    assert "OUT_OF_MEMORY" in result.problems[0]
    assert not (bench.out / "running").exists()

"""`make slurm-test`: the job files of deploy/slurm on a Slurm of two nodes, on this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.tests.slurm import Slurm, cluster

JOBS = "deploy/slurm"
SHORT = ("--limit", "1", "--max-new-tokens", "24")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(autouse=True)
def run(slurm: Slurm, tmp_path: Path) -> Path:
    slurm.environment["RUN"] = str(tmp_path / "run")
    slurm.environment["SBATCH_OUTPUT"] = str(tmp_path / "%x-%j.log")
    return tmp_path / "run"


@pytest.fixture
def cloud(slurm: Slurm) -> Iterator[str]:
    job = slurm.submit(f"{JOBS}/serve_cloud.sbatch")
    yield job
    slurm("scancel", job)
    slurm.wait(job, "CANCELLED", "COMPLETED", "FAILED")


def texts(folder: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["error"] is None
        found.setdefault(record["arm"], []).append(record["output_token_ids"])
    return found


def same_in_all_cloud_arms(found: dict[str, list[Any]]) -> bool:
    return found["speculative"] == found["cloud_optimized"] == found["cloud"] != []


def test_server_and_edge_are_two_jobs_on_two_nodes(slurm: Slurm, cloud: str, run: Path) -> None:
    edge = slurm.submit(f"{JOBS}/run_edge.sbatch", *SHORT)
    slurm.wait(edge, "COMPLETED")
    assert slurm.fields(cloud)["NodeList"] == "gpu-node"
    assert slurm.fields(edge)["NodeList"] == "cpu-node"
    assert same_in_all_cloud_arms(texts(run / f"edge-{edge}"))
    baseline = slurm.submit(f"{JOBS}/run_cloud_optimized_baseline.sbatch", *SHORT)
    slurm.wait(baseline, "COMPLETED")
    assert set(texts(run / f"baseline-{baseline}")) == {"cloud_optimized"}


def test_a_server_told_to_end_drains(slurm: Slurm, cloud: str, run: Path) -> None:
    slurm.wait(slurm.submit(f"{JOBS}/run_edge.sbatch", *SHORT, "--arms", "cloud"), "COMPLETED")
    slurm("scancel", "--batch", "--signal=TERM", cloud)
    slurm.wait(cloud, "COMPLETED")
    log = Path(slurm.fields(cloud)["StdOut"]).read_text()
    assert "draining" in log


def test_a_requeued_server_says_its_new_address(slurm: Slurm, cloud: str, run: Path) -> None:
    bench = ("--arms", "cloud_optimized")
    slurm.wait(slurm.submit(f"{JOBS}/run_edge.sbatch", *SHORT, *bench), "COMPLETED")
    before = (run / "address").read_text()
    slurm("scontrol", "requeue", cloud)
    slurm.wait(cloud, "PENDING")
    slurm("scontrol", "update", f"JobId={cloud}", "StartTime=now")  # else in two minutes
    slurm.wait(slurm.submit(f"{JOBS}/run_edge.sbatch", *SHORT, *bench), "COMPLETED")
    assert slurm.fields(cloud)["Restarts"] == "1"
    assert (run / "address").read_text() != before


def test_one_job_of_two_components_runs_all_arms(slurm: Slurm, run: Path) -> None:
    job = slurm.submit(f"{JOBS}/run_all_arms.sbatch", *SHORT)
    slurm.wait(job, "COMPLETED")
    components = slurm("scontrol", "show", "job", "--oneliner", job).splitlines()
    assert ["gpu-node" in components[0], "cpu-node" in components[1]] == [True, True]
    assert same_in_all_cloud_arms(texts(run / f"all-arms-{job}" / "bench"))
    assert "draining" in Path(slurm.fields(job)["StdOut"]).read_text()


def test_a_server_that_does_not_start_ends_the_job_of_both(slurm: Slurm, run: Path) -> None:
    job = slurm.submit("--export=ALL,MODEL=no/such/model", f"{JOBS}/run_all_arms.sbatch", *SHORT)
    slurm.wait(job, "FAILED")
    assert slurm.fields(job)["ExitCode"] == "2:0"
    log = Path(slurm.fields(job)["StdOut"]).read_text()
    assert "no/such/model" in log
    assert "the server ended before the bench" in log


def test_seeds_are_an_array_whose_results_are_put_together(
    slurm: Slurm, cloud: str, run: Path
) -> None:
    seeds = slurm.submit("--array=1-2", f"{JOBS}/run_seeds.sbatch", *SHORT)
    merged = slurm.submit(f"--dependency=afterok:{seeds}", f"{JOBS}/merge_seeds.sbatch")
    slurm.wait(merged, "COMPLETED")
    found = [texts(run / "seeds" / seed) for seed in ("1", "2")]
    assert all(map(same_in_all_cloud_arms, found))
    assert found[0] != found[1]
    assert "speculative" in (run / "seeds.txt").read_text()


def test_an_edge_without_a_server_says_what_it_waited_for(tmp_path: Path, slurm: Slurm) -> None:
    done = subprocess.run(
        ["deploy/slurm/edge.sh", str(tmp_path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=slurm.environment | {"WAIT_SECONDS": "0"},
        check=False,
    )
    assert done.returncode == 3
    assert f"no server wrote {tmp_path}/address in 0 s" in done.stderr

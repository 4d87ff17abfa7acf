"""`make compose-test`: both images, four arms through them, and a cloud container killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DEPLOY = Path(__file__).resolve().parents[1]
USER = 10001
PROMPT = ["--prompt", "Once upon a time", "--max-new-tokens", "400", "--ignore-eos"]


class Compose:
    """Is `docker compose` on this folder's file, with its output folder."""

    def __init__(self, out: Path) -> None:
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        program = ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]
        self.command = [*program, "-p", "outrider-test", "-f", str(DEPLOY / "compose.yaml")]
        self.environment = os.environ | {
            "OUT": str(out),
            "OUTRIDER_USER": f"{USER}:{USER}",
            "LIMIT": "4",
        }

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def generating(self) -> subprocess.Popen[str]:
        arguments = ["generate", "--server", "cloud:50051", "--draft", "/opt/outrider/demo/draft"]
        return subprocess.Popen(
            [*self.command, "run", "--rm", "-T", "edge", *arguments, *PROMPT],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def container(self, service: str) -> dict[str, Any]:
        (identity,) = self("ps", "-a", "-q", service).split()
        shown = subprocess.run(
            ["docker", "inspect", identity], check=True, capture_output=True, text=True
        )
        (container,) = json.loads(shown.stdout)
        return dict(container)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # so that the container's user gets there
    os.chown(folder, USER, USER)
    return folder


@pytest.fixture(scope="module")
def compose(out: Path) -> Iterator[Compose]:
    assert shutil.which("docker"), "docker is not here; install an engine and compose"
    composed = Compose(out)
    composed("build", "cloud", "edge")
    yield composed
    composed("down", "--volumes", "--remove-orphans", "--timeout", "40")


def test_the_bench_runs_four_arms_and_leaves_its_report(compose: Compose, out: Path) -> None:
    compose("up", "--no-build", "--exit-code-from", "edge", "edge")
    (summary_file,) = (out / "runs").glob("*/summary.json")
    summary = json.loads(summary_file.read_text())
    assert set(summary["arms"]) == {"edge", "cloud", "cloud_optimized", "speculative"}
    assert (summary_file.parent / "report.html").stat().st_size > 0
    texts: dict[str, dict[str, list[int]]] = {}
    for line in (summary_file.parent / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["error"] is None
        texts.setdefault(record["arm"], {})[record["prompt_id"]] = record["output_token_ids"]
    assert texts["speculative"] == texts["cloud_optimized"] == texts["cloud"]
    edge = summary["environment"]["edge"]
    assert (edge["cores"]["granted"], edge["memory"]["granted_gib"]) == (1.0, 2.0)


def test_each_container_is_confined(compose: Compose) -> None:
    for service in ("cloud", "edge"):
        container = compose.container(service)
        assert container["Config"]["User"] == f"{USER}:{USER}"
        assert container["HostConfig"]["ReadonlyRootfs"]
        assert container["HostConfig"]["CapDrop"] == ["ALL"]


@pytest.mark.parametrize("image", ["outrider-cloud", "outrider-edge"])
def test_no_tools_to_build_with_are_left(compose: Compose, image: str) -> None:
    look = "! command -v gcc && ! command -v make && ! python -m pip --version"
    done = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint", "sh", image, "-c", look],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_a_text_outlives_the_cloud_container(compose: Compose) -> None:
    compose("up", "-d", "--no-build", "cloud")
    with compose.generating() as undisturbed:
        whole, said = undisturbed.communicate(timeout=110)
    assert undisturbed.returncode == 0, said
    with compose.generating() as disturbed:
        assert disturbed.stdout is not None
        assert disturbed.stderr is not None
        written = disturbed.stdout.read(20)  # under way: some of it is here
        compose("kill", "cloud")
        assert disturbed.poll() is None
        compose("up", "-d", "--no-build", "cloud")
        written += disturbed.stdout.read()
        said = disturbed.stderr.read()
    assert disturbed.returncode == 0, said
    assert written == whole


def test_a_link_stands_between_them_where_it_is_asked_for(compose: Compose) -> None:
    compose("--profile", "link", "up", "-d", "--no-build", "link")
    ping = ["ping", "--server", "link:50061", "--count", "3"]
    assert "ms" in compose("run", "--rm", "-T", "edge", *ping)
    (identity,) = compose("--profile", "link", "ps", "-q", "link").split()
    compose("--profile", "link", "stop", "link")
    log = subprocess.run(["docker", "logs", identity], capture_output=True, text=True, check=True)
    assert "READY link=" in log.stdout
    assert re.search(r"[1-9]\d* bytes", log.stdout + log.stderr), log


def test_the_other_profiles_are_well_formed(compose: Compose) -> None:
    services = compose("--profile", "monitoring", "--profile", "link", "config", "--services")
    assert set(services.split()) >= {"cloud", "edge", "link", "prometheus", "grafana"}
    gpu = subprocess.run(
        [*compose.command, "-f", str(DEPLOY / "compose.gpu.yaml"), "config"],
        env=compose.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert gpu.returncode == 0, gpu.stderr
    assert "nvidia" in gpu.stdout

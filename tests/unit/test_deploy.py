"""What lies in deploy/ against what it speaks of: flags, keys, versions, schemas."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.unit.test_docs import _parse

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
KUBERNETES = "1.30"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def _documents(file: Path) -> list[Any]:
    return list(yaml.safe_load_all(file.read_text()))


def _containers() -> Iterator[dict[str, Any]]:
    for file in MANIFESTS:
        for document in _documents(file):
            template = document["spec"].get("template", {"spec": {"containers": []}})
            yield from template["spec"]["containers"]


def _services() -> dict[str, Any]:
    return dict(_documents(DEPLOY / "compose.yaml")[0]["services"])


def _plain(word: str) -> str:
    """Fills in a variable's default, as compose does."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_what_kubernetes_takes(manifest: Path) -> None:
    for document in _documents(manifest):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_containers_start_commands_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    started = [(c["image"].split(":")[0], c["args"]) for c in _containers()]
    started += [
        (name, service["command"]) for name in ("cloud", "edge") for service in [_services()[name]]
    ]
    assert len(started) == 4
    for image, arguments in started:
        program = image if image.startswith("outrider-") else f"outrider-{image}"
        _parse([program, *map(_plain, arguments)])


def test_the_gpu_s_command_is_the_other_s_and_its_device() -> None:
    plain = _services()["cloud"]["command"]
    gpu = _documents(DEPLOY / "compose.gpu.yaml")[0]["services"]["cloud"]["command"]
    assert [word for word in gpu if word != "--device=cuda"] == plain


def test_images_have_the_version_there_is_one_place_for() -> None:
    assert {c["image"].split(":")[1] for c in _containers()} == {VERSION}


def test_a_draining_container_is_given_the_time_it_takes() -> None:
    (pod,) = (
        document["spec"]["template"]["spec"]
        for document in _documents(DEPLOY / "kubernetes" / "cloud.yaml")
        if document["kind"] == "Deployment"
    )
    (container,) = pod["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    (drain,) = (
        float(word.partition("drain_seconds=")[2])
        for word in container["args"]
        if "drain_seconds" in word
    )
    assert pod["terminationGracePeriodSeconds"] > pause + drain


@pytest.mark.parametrize(
    "script", sorted([*DEPLOY.rglob("*.sh"), *DEPLOY.rglob("*.sbatch")]), ids=lambda p: p.name
)
def test_scripts_can_be_read_by_their_shell(script: Path) -> None:
    shell = script.read_text().splitlines()[0].removeprefix("#!")
    subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize(
    "unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name
)
def test_units_start_commands_there_are(unit: Path) -> None:
    text = unit.read_text().replace("\\\n", " ")
    start = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    assert len(start) == 1
    program, *arguments = shlex.split(start[0].replace("${", "").replace("}", ""))
    _parse([Path(program).name, *arguments])


def test_units_are_what_systemd_takes(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here; install systemd to check the units")
    for unit in sorted((DEPLOY / "systemd").glob("*.service")):
        text = re.sub(r"/opt/outrider/bin/[\w-]+", sys.executable, unit.read_text())
        (tmp_path / unit.name).write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", str(tmp_path / unit.name)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_alerts_speak_of_jobs_that_are_scraped() -> None:
    (prometheus,) = _documents(DEPLOY / "prometheus" / "prometheus.yml")
    scraped = {job["job_name"] for job in prometheus["scrape_configs"]}
    (pattern,) = prometheus["rule_files"]
    for rules in (DEPLOY / "prometheus").glob(Path(pattern).name):
        assert set(re.findall(r'job="([^"]+)"', rules.read_text())) <= scraped


def test_dashboards_are_mounted_where_grafana_looks_for_them() -> None:
    mounts = dict(mount.split(":")[:2] for mount in _services()["grafana"]["volumes"])
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    (provider,) = _documents(DEPLOY / "grafana" / "provisioning" / "dashboards" / "outrider.yml")[
        0
    ]["providers"]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]


def test_the_workflow_runs_what_ci_runs_and_targets_there_are() -> None:
    (workflow,) = _documents(ROOT / ".github" / "workflows" / "ci.yml")
    runs = {
        job: [step["run"] for step in steps["steps"] if "run" in step]
        for job, steps in workflow["jobs"].items()
    }
    assert "bash .ci/run" in runs["test"]
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = re.findall(r"\bmake ([a-z -]+)", "\n".join(runs["deploy"]))
    assert {target for line in made for target in line.split()} <= targets

"""The wheel: installed outside the repository, its commands and the bundled pair work."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from tests.integration.processes import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that holds the wheel alone, and borrows what it depends on.

    Dependencies are found through a .pth file, which leaves out those that are editable: the
    repository itself. `make wheel-test` installs them too.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    assert wheel.name == f"outrider-{VERSION}-py3-none-any.whl"
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    (packages,) = (folder / "env" / "lib").glob("*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return python.parent


def _run(command: list[str], cwd: Path) -> str:
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bundled_pair_runs_all_arms_outside_the_repository(
    installed: Path, tmp_path: Path
) -> None:
    here = Path(_run([str(installed / "outrider-demo"), "--path"], tmp_path).strip())
    assert here.is_relative_to(installed.parent)
    assert {path.name for path in here.iterdir()} >= {"target", "draft", "prompts.jsonl"}
    _run([str(installed / "outrider-demo"), "--limit", "1", "--out", "run"], tmp_path)
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    texts = {record["arm"]: record["output_token_ids"] for record in records}
    assert texts["speculative"] == texts["cloud_optimized"] == texts["cloud"] != []
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["environment"]["edge"]["versions"]["outrider"] == VERSION


@pytest.mark.parametrize("program", ["outrider-cloud", "outrider-edge", "outrider-link"])
def test_every_console_script_starts(installed: Path, tmp_path: Path, program: str) -> None:
    assert os.access(installed / program, os.X_OK)
    assert f"usage: {program}" in _run([str(installed / program), "--help"], tmp_path)

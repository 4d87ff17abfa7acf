"""What is wrong with a demonstration is said in one line, with the exit code of who says it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def demo(folder: Path, *flags: str) -> tuple[int, list[str]]:
    """Runs it in a folder; returns its exit code and what it said on stderr."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "demo" / "run.py"), *flags],
        capture_output=True, text=True, cwd=folder, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ("drafting: {lenght: 3}", "'drafting.length'")],
)
def test_an_unknown_experiment_or_setting_is_one_line(
    text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "experiment.yaml").write_text(text)
    code, (line,) = demo(tmp_path, "--config", "experiment.yaml")
    assert (code, line.startswith("outrider-demo: ")) == (2, True)
    assert message in line


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    code, (line,) = demo(tmp_path, "--target", "no/such/target")
    assert (code, line.startswith("outrider-demo: the server did not start: ")) == (2, True)
    assert "no/such/target" in line

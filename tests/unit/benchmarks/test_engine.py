"""What `make bench` leaves: the table with what was wanted, and its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.engine import deliver
from benchmarks.engine_arms import Row

ROWS = [Row("decode (theirs)", "1.00 ms", "2.50 ms", 2.5, "≥ 2.5")]


def test_the_table_is_printed_and_the_numbers_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = tmp_path / "new" / "bench.json"
    deliver(ROWS, None, numbers)
    assert "| decode (theirs) | 1.00 ms | 2.50 ms | 2.50 | ≥ 2.5 |" in capsys.readouterr().out
    (row,) = json.loads(numbers.read_text())
    assert row["ratio"] == 2.5
    assert row["wanted"] == "≥ 2.5"


def test_a_page_is_written_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "engine.md"
    deliver(ROWS, page, None)
    assert "| decode (theirs) |" in page.read_text()
    assert list(tmp_path.iterdir()) == [page]
    assert capsys.readouterr().out == ""

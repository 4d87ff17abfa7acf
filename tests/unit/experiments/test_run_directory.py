from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from common.errors import UsageError
from edge_client.experiments.manifest import Manifest
from edge_client.experiments.run_directory import RunDirectory, check_usable

THIS = Manifest("id", "2026-01-02T03:04:05+00:00", 1, {}, {})


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_usable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with RunDirectory(tmp_path / "run", THIS) as files:
        files.append('{"whole": 1}')
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
        with pytest.raises(UsageError, match="make room on the disk"):
            files.append('{"half": 2}')
    assert (tmp_path / "run" / "records.jsonl").read_text() == '{"whole": 1}\n'


def test_a_record_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        written.append(data)
        return real(fd, data)

    with RunDirectory(tmp_path / "run", THIS) as files:
        monkeypatch.setattr(os, "write", write)
        files.append("x" * 100_000)
    assert written == [b"x" * 100_000 + b"\n"]


def test_a_reader_sees_the_old_summary_or_the_new_one_never_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "run" / "summary.json"
    seen: list[object] = []
    real = os.fsync

    def looking(descriptor: int) -> None:
        real(descriptor)
        seen.append(json.loads(summary.read_text()))

    with RunDirectory(tmp_path / "run", THIS) as files:
        files.write_summary({"version": 1})
        monkeypatch.setattr(os, "fsync", looking)
        files.write_summary({"version": 2})
    assert seen == [{"version": 1}]
    assert json.loads(summary.read_text()) == {"version": 2}


def test_a_summary_that_fails_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory(tmp_path / "run", THIS) as files:
        files.write_summary({"version": 1})

        def broken(_: int) -> None:
            raise OSError("no room")

        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="no room"):
            files.write_summary({"version": 2})
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"version": 1}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "records.jsonl",
        "run.json",
        "summary.json",
    ]


def test_two_runs_never_write_in_one_directory(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path / "run", THIS),
        pytest.raises(UsageError, match="being written by another run"),
        RunDirectory(tmp_path / "run", THIS, kept=[]),
    ):
        pass

"""The directory of one run: claimed once, written so that a kill leaves whole lines.

A run that was interrupted is taken up in its own directory; two processes never write in one.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from common.errors import UsageError
from edge_client.experiments.manifest import MANIFEST, Manifest
from edge_client.guarded import RUNNING

RECORDS = "records.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"
MARKDOWN = "report.md"
ARMS = "arms.csv"
GENERATIONS = "generations.csv"
TRACE = "trace.json"


def check_usable(directory: Path) -> None:
    """Checks that a run can be written here, and leaves everything as it was.

    Raises UsageError when the directory holds anything or cannot be written.
    """
    try:
        if directory.exists():
            if any(directory.iterdir()):
                raise UsageError(
                    f"--out {directory} is not empty; runs are never mixed: "
                    f"name a new directory, or remove this one"
                )
            existing = directory
        else:
            existing = next(parent for parent in directory.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UsageError(
            f"--out {directory} cannot be written: {error.strerror}; name another directory"
        ) from None


class RunDirectory:
    """Owns a run's files; a context manager.

    `kept` None begins a run in a new directory; else the run there is taken up, and its records
    become these lines. Raises UsageError on entry when the directory cannot be used.
    """

    def __init__(self, path: Path, manifest: Manifest, kept: Sequence[str] | None = None) -> None:
        self.path = path
        self._manifest = manifest
        self._kept = kept
        self._records = self._lock = -1

    def __enter__(self) -> RunDirectory:
        if self._kept is None:
            check_usable(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self._claim()
            write_whole(self.path / MANIFEST, self._manifest.to_json())
            if self._kept is not None:
                self.replace_records(self._kept)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            flags |= os.O_EXCL if self._kept is None else 0
            self._records = os.open(self.path / RECORDS, flags, 0o644)
        except OSError as error:
            self.__exit__()
            raise UsageError(
                f"--out {self.path} cannot be written: {error.strerror}; name another directory"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        (self.path / RUNNING).unlink(missing_ok=True)
        for descriptor in (self._records, self._lock):
            if descriptor >= 0:
                os.close(descriptor)

    def _claim(self) -> None:
        """Keeps others out; the kernel lets go when this process ends, however it does."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UsageError(
                f"{self.path} is being written by another run; wait for it, or end it"
            ) from None

    def append(self, line: str) -> None:
        """Writes one record in one piece; on a full disk takes the piece back and raises."""
        data = line.encode("utf-8") + b"\n"
        size = os.fstat(self._records).st_size
        written = 0
        try:
            written = os.write(self._records, data)
            if written != len(data):
                raise UsageError(
                    f"{self.path / RECORDS}: only {written} of {len(data)} bytes could be "
                    f"written; make room on the disk"
                )
        except OSError as error:
            raise UsageError(f"{self.path / RECORDS}: {error.strerror}") from None
        finally:
            if 0 < written < len(data):
                os.ftruncate(self._records, size)

    def note_running(self, arm: str) -> None:
        """Names the arm in hand, for whoever finds that this process was ended in its middle."""
        (self.path / RUNNING).write_text(arm, encoding="utf-8")

    def replace_records(self, lines: Iterable[str]) -> Path:
        """Writes all records anew, whole or not at all; none is appended after that."""
        return write_whole(self.path / RECORDS, "".join(f"{line}\n" for line in lines))

    def write_summary(self, summary: Mapping[str, object]) -> Path:
        """Writes summary.json, whole or not at all."""
        text = json.dumps(summary, indent=2, allow_nan=False)
        return write_whole(self.path / SUMMARY, text + "\n")

    def write_trace(self, trace: Mapping[str, object]) -> Path:
        """Writes trace.json, whole or not at all."""
        text = json.dumps(trace, allow_nan=False, separators=(",", ":"))
        return write_whole(self.path / TRACE, text + "\n")

    def write_report(self, html: str) -> Path:
        """Writes report.html, whole or not at all."""
        return write_whole(self.path / REPORT, html)

    def write_exports(self, markdown: str, arms: str, generations: str) -> None:
        """Writes report.md, arms.csv and generations.csv, each whole or not at all."""
        for name, text in ((MARKDOWN, markdown), (ARMS, arms), (GENERATIONS, generations)):
            write_whole(self.path / name, text)


def write_whole(file: Path, text: str) -> Path:
    """Writes a file beside its place and moves it there."""
    beside = file.with_name(f".{file.name}.partial")
    try:
        with beside.open("w", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return file

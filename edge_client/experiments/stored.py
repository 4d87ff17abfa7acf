"""What an earlier process left of a run: records, and under what conditions they were made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UsageError
from edge_client.experiments.columns import StepColumns
from edge_client.experiments.records import Percentiles, Record
from edge_client.experiments.run_directory import SUMMARY
from edge_client.rule import Rule

_SPREADS = tuple(f.name for f in dataclasses.fields(Record) if "Percentiles" in str(f.type))


def read_records(file: Path) -> Iterator[Record]:
    """Yields the records of a file in order; a last line without its end was cut by a kill.

    Raises UsageError naming file and line for anything else that is no record.
    """
    try:
        *lines, _ = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}; check the path") from None
    for number, line in enumerate(lines, start=1):
        try:
            yield record_from_json(line.decode("utf-8"))
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{file}:{number}: not a record of this version ({error}); remove the line, "
                f"or measure anew"
            ) from None


def read_conditions(directory: Path) -> dict[str, Any]:
    """Returns what a run's summary says of the link and the machine meanwhile; {} without one."""
    try:
        told = json.loads((directory / SUMMARY).read_bytes())["environment"]
        return {name: told[name] for name in ("idle_rtt_ms", "machine")}
    except (OSError, ValueError, KeyError, TypeError):  # killed before it was written
        return {}


def record_from_json(line: str) -> Record:
    """Returns the record that `Record.to_json` made this line of."""
    values: dict[str, Any] = {name: _tuples(value) for name, value in json.loads(line).items()}
    for name in _SPREADS:
        values[name] = _made(Percentiles, values.get(name))
    values["verification"] = _made(Rule, values.get("verification"))
    values["steps"] = _made(StepColumns, values.get("steps"))
    return Record(**values)


def _made(kind: Any, fields: dict[str, Any] | None) -> Any:
    return None if fields is None else kind(**{n: _tuples(v) for n, v in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

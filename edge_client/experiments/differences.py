"""Nested settings as dotted names, and in which of them two descriptions differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ABSENT = "absent"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields nested settings as dotted names with their values in words."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", in_words(value)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (dotted name, value before, value now) of every setting that differs."""
    ours, theirs = dict(flatten(before)), dict(flatten(now))
    return [
        (name, ours.get(name, ABSENT), theirs.get(name, ABSENT))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name, ABSENT) != theirs.get(name, ABSENT)
    ]


def in_words(value: object) -> str:
    """Returns a setting as a person reads it."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple | dict):
        return ", ".join(map(str, value)) or "none"
    return str(value)

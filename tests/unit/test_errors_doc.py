"""docs/errors.md against the sources: it is what they say now, and leaves nothing out."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from common.errors import OutriderError, leaves
from tests import errors_table

_CELL = re.compile(r"(?<!\\)\|")


def _table() -> list[list[str]]:
    """Returns the rows of the one table with the columns, without its head."""
    lines = errors_table.TARGET.read_text(encoding="utf-8").splitlines()
    start = lines.index(f"| {' | '.join(errors_table.COLUMNS)} |")
    return [[cell.strip() for cell in _CELL.split(line)[1:-1]] for line in lines[start + 2 :]]


def test_it_is_what_the_sources_say_now() -> None:
    written = errors_table.TARGET.read_text(encoding="utf-8")
    assert written == errors_table.document(), f"write it again with `{errors_table.COMMAND}`"


def test_every_error_is_in_it_with_its_own_remedy() -> None:
    reasons = {row[3].split(",")[0] for row in _table()}
    for error in leaves(OutriderError):
        assert error.reason in reasons
        assert "remedy" in vars(error), error.__name__


def test_every_place_that_names_an_error_and_calls_it_is_read() -> None:
    """Counts by the letters alone, so that no walk over syntax can pass one by."""
    names = "|".join(error.__name__ for error in errors_table.tree())
    called = Counter(
        (name, source.count("\n", 0, found.start()) + 1)
        for name, source in errors_table.sources().items()
        for found in re.finditer(rf"(?<!class )\b(?:{names})\(", source)
    )
    read = Counter((s.module, s.line) for s in errors_table.sites() if s.by_name)
    assert called == read
    assert len(called) > 100


def test_no_cell_is_empty() -> None:
    for row in _table():
        assert len(row) == len(errors_table.COLUMNS)
        assert all(row), row


def test_no_row_is_there_twice() -> None:
    assert max(Counter((row[0], row[3]) for row in _table()).values()) == 1


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("raise ModelError(text)", "into MESSAGES"),
        ("raise ModelError(f'{a}: {b}')", "into MESSAGES"),
        ("raise ModelError", "named and not called"),
        ("TABLE = {1: (ModelError, 'what')}", "named and not called"),
        ("make(ModelError, 'what')", "named and not called"),
        ("class Other(ModelError): pass", "named and not called"),
        ("raise type(error)('what')", "into RECASTS"),
        ("raise error.__class__('what')", "into RECASTS"),
        ("raise ModelError()", "without a message"),
    ],
)
def test_what_cannot_be_read_stops_the_generator(source: str, complaint: str) -> None:
    with pytest.raises(errors_table.Unlisted, match=complaint):
        errors_table.sites({"common/made_up.py": source})


@pytest.mark.parametrize(
    ("source", "messages"),
    [
        ("raise ModelError('no' ' model')", ["no model"]),
        ("raise ModelError(f'{file!r}: {len(lines)} lines')", ["<file>: <number of lines> lines"]),
        ("raise errors.ModelError('file ' + f'{self.path}')", ["file <path>"]),
        ("LIMIT = 3\nraise ModelError(f'over {LIMIT}')", ["over 3"]),
        ("_TOLD = 'told'\ncallback(ModelError(_TOLD))", ["told"]),
        ("raise ModelError('one' if a else 'two')", ["one", "two"]),
        ("def _say(a):\n return f'{a} said'\nraise ModelError(_say(1))", ["<a> said"]),
        ("except_ = ModelError.reason\nisinstance(e, ModelError)", []),
        ("def f(a: type[ModelError]) -> ModelError: ...", []),
    ],
)
def test_what_can_be_read(source: str, messages: list[str]) -> None:
    found = errors_table.sites({"common/made_up.py": source})
    assert [message for site in found for _, message in site.made] == messages

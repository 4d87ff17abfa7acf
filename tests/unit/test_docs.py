"""The documents against the code: what they name exists, and what they show can be typed."""

from __future__ import annotations

import argparse
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import cloud_server.cli
import edge_client.cli
import edge_client.parser
from common import config as configuration

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "tests" / "README.md",
        ROOT / "deploy" / "README.md",
        ROOT / "demo" / "README.md",
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
PACKAGES = ("common", "cloud_server", "edge_client")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_SHELL = ("console", "bash", "sh")
_OPERATORS = frozenset({"|", "||", "&", "&&", ";", ">", ">>", "<"})
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
_SUFFIXES = (".py", ".md", ".toml", ".yaml", ".proto", ".svg", ".lock", ".jsonl")
_NOT_OURS = frozenset({"records.jsonl", "report.md", "bench_serving.py"})  # a run's; another's
_NO_KEYS = frozenset({"edge.cores", "edge.memory", "security.md"})  # fields of a summary; a file

Parsed = tuple[argparse.Namespace, configuration.Config]


class Found(NamedTuple):
    """Is something a document says, and where."""

    document: str
    said: str


def _name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def _text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def _prose(document: Path) -> str:
    return _FENCE.sub("", _text(document))


def _spans() -> Iterator[Found]:
    for document in DOCUMENTS:
        for span in _SPAN.findall(_prose(document)):
            yield Found(_name(document), span)


def _shell_lines() -> Iterator[Found]:
    """Yields what is to be typed: `$ ` lines of a console, all lines of a script."""
    for document in DOCUMENTS:
        for language, block in _FENCE.findall(_text(document)):
            if language not in _SHELL:
                continue
            for line in block.replace("\\\n", " ").splitlines():
                if language != "console":
                    yield Found(_name(document), line)
                elif line.startswith("$ "):
                    yield Found(_name(document), line[2:])


def _words(line: str) -> list[list[str]]:
    """Splits a shell line into its commands."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word in _OPERATORS:
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def _commands() -> list[Found]:
    """Returns the commands of ours, in fenced blocks and in prose with a sub-command."""
    lines = [*_shell_lines(), *(s for s in _spans() if s.said.startswith("outrider-"))]
    found = []
    for document, line in lines:
        for words in _words(line):
            program = Path(words[0]).name
            if program in ("outrider-cloud", "outrider-edge") and len(words) > 2:
                found.append(Found(document, shlex.join([program, *words[1:]])))
    return found


def _parse(words: list[str]) -> Parsed:
    """Parses as `main` does, up to where the command would run."""
    if words[0] == "outrider-cloud":
        options = cloud_server.cli._parser().parse_args(words[1:])
        return options, cloud_server.cli._configuration(options)
    options = edge_client.parser.build_parser().parse_args(words[1:])
    return options, edge_client.cli._configuration(options)


def _assert_none(wrong: list[Found]) -> None:
    assert not wrong, "\n".join(f"{document}: {said}" for document, said in wrong)


def _anchors(document: Path) -> set[str]:
    """Returns the anchors that the headings of a document get."""
    headings = _HEADING.findall(_prose(document))
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def test_every_relative_link_leads_somewhere() -> None:
    wrong = []
    for document in DOCUMENTS:
        for target in _LINK.findall(_prose(document)):
            if "://" in target or target.startswith("mailto:"):
                continue
            path, _, anchor = target.partition("#")
            there = (document.parent / path).resolve() if path else document
            if not there.exists() or (anchor and anchor not in _anchors(there)):
                wrong.append(Found(_name(document), target))
    _assert_none(wrong)


def _exists(document: str, said: str) -> bool:
    here = (ROOT / document).parent
    if (ROOT / said).exists() or (here / said).exists():
        return True
    return "/" not in said and any(
        path for folder in (*PACKAGES, "tests") for path in (ROOT / folder).rglob(said)
    )


def test_every_file_named_exists() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    wrong = []
    for document, span in _spans():
        said = span.split("::")[0]
        if not _FILE.fullmatch(said) or said in _NOT_OURS:
            continue
        is_path = "/" in said and said.split("/")[0] in folders - {"runs"}
        is_file = "/" not in said and said.endswith(_SUFFIXES)
        if (is_path or is_file) and not _exists(document, said):
            wrong.append(Found(document, said))
    _assert_none(wrong)


def test_every_test_named_exists() -> None:
    wrong = []
    for document, span in _spans():
        file, colons, function = span.partition("::")
        if colons and file.startswith("tests/") and (ROOT / file).is_file():
            text = _text(ROOT / file)
            if not re.search(rf"^(async )?def {re.escape(function)}\(", text, re.MULTILINE):
                wrong.append(Found(document, span))
    _assert_none(wrong)


@pytest.mark.parametrize("command", sorted({found.said for found in _commands()}))
def test_every_command_shown_is_accepted(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # --config names files from here
    try:
        options, _ = _parse(shlex.split(command))
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    assert callable(options.run)


def test_every_flag_named_exists() -> None:
    known = {"--help"}
    for file in (
        "cloud_server/cli.py",
        "edge_client/flags.py",
        "edge_client/parser.py",
        "edge_client/relay/cli.py",
        "edge_client/relay/netem.py",
        "demo/run.py",
        "demo/train.py",
    ):
        known |= set(re.findall(r'"(--[a-z-]+)"', _text(ROOT / file)))
    _assert_none(
        [f for f in _spans() if re.match("--[^-]", f.said) and f.said.split()[0] not in known]
    )


def test_every_program_shows_every_sub_command() -> None:
    """A command nobody documents is a command nobody knows."""
    shown = {tuple(shlex.split(found.said)[:2]) for found in _commands()}
    wanted = {("outrider-cloud", name) for name in ("serve", "check")}
    wanted |= {
        ("outrider-edge", name)
        for name in ("generate", "bench", "compare", "load", "ping", "plan", "check")
    }
    assert wanted <= shown


def test_every_configuration_key_named_exists() -> None:
    known = set(configuration.known_keys())
    sections = "|".join(configuration.Config.model_fields)
    key = re.compile(rf"(?<![\w./-])(?:{sections})\.[a-z_]+(?:\.[a-z_]+)?(?![\w./-])")
    wrong = [
        Found(_name(document), said)
        for document in DOCUMENTS
        for said in key.findall(_text(document))
        if said not in known | _NO_KEYS
    ]
    _assert_none(wrong)


def test_every_setting_refused_in_this_version_is_named() -> None:
    running = _text(ROOT / "docs" / "running.md")
    _assert_none(
        [Found("docs/running.md", key) for key in configuration._BUILT if f"`{key}" not in running]
    )


def test_every_make_target_named_exists() -> None:
    makefile = _text(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    wrong = []
    for document, line in [*_shell_lines(), *_spans()]:
        words = [word for word in line.split() if "=" not in word]
        if words[:1] == ["make"]:
            wrong += [Found(document, word) for word in words[1:] if word not in targets]
    _assert_none(wrong)


def test_what_is_not_run_says_why() -> None:
    """A mark stands right before a block for the shell, or it marks nothing."""
    for document in DOCUMENTS:
        marks = re.findall(r"<!-- not run: (.*) -->\n(.*)\n", _text(document))
        assert _text(document).count("<!-- not run") == len(marks)
        assert all(reason and after == "```console" for reason, after in marks), document


def test_the_module_list_is_whole() -> None:
    listed = re.findall(r"^- `([\w/]+\.py)`: ", _prose(ROOT / "docs" / "architecture.md"), re.M)
    modules = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    ]
    assert sorted(listed) == sorted(modules)


def test_every_metric_named_is_counted_and_every_one_counted_is_named() -> None:
    from prometheus_client import generate_latest

    from cloud_server.metrics import Metrics
    from edge_client.experiments.metrics import ClientMetrics
    from tests.unit.edge.pair import server_info

    metrics = Metrics()
    metrics.describe(server_info(), lambda: 0)
    text = "".join(generate_latest(m.registry).decode() for m in (metrics, ClientMetrics()))
    counted = {
        line.split()[2]
        for line in text.splitlines()
        if line.startswith("# TYPE") and not line.split()[2].endswith("_created")
    }
    named = {span for _, span in _spans() if re.fullmatch(r"outrider_\w+", span)} - {"outrider_"}
    assert named == counted


def test_the_table_has_its_place_in_the_readme() -> None:
    before, _, rest = _text(ROOT / "README.md").partition("<!-- table -->\n")
    table, _, after = rest.partition("<!-- /table -->\n")
    assert before
    assert after
    assert table.startswith("```\n")
    assert "identical to cloud" in table


def test_the_picture_is_well_formed_and_needs_nothing_else() -> None:
    picture = ROOT / "docs" / "flow.svg"
    root = ElementTree.parse(picture).getroot()
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    text = _text(picture)
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"<script|href=|url\((?!#)", text)

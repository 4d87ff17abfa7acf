"""Writes docs/errors.md: every error of the tree that the sources make, one a row.

    python -m tests.errors_table

Reads the syntax trees of the packages. What cannot be read off them (a message in a
variable, a class out of a table) is listed here by hand, each with its reason; what is
neither read nor listed, and what is listed and no longer there, stops the generator.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

from common import errors
from common.errors import OutriderError
from edge_client import patience

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "edge_client", "cloud_server")
TARGET = ROOT / "docs" / "errors.md"
COMMAND = "make errors-doc"
TREE_MODULE = "common/errors.py"

_CALL_TEMPLATE = "error.code().name"


class Listed(NamedTuple):
    """Is what a message is when the source does not say it in place, and why it is here.

    `texts` are messages, or names of the module's constants that hold them.
    """

    texts: tuple[str, ...]
    because: str


class Table(NamedTuple):
    """Is a table of (class, text) from which a call takes both.

    `text` and `key` are the expressions that stand for the entry's text and for its key in
    the message of that call; a table whose keys are no part of it gives `key_is` instead.
    """

    call: str
    text: str
    key: str
    key_is: str | None


class Recast(NamedTuple):
    """Is a call that makes an error of the class of another one."""

    classes: tuple[type[OutriderError], ...]
    because: str


class Site(NamedTuple):
    """Is a place where errors are made."""

    module: str
    line: int
    made: tuple[tuple[type[OutriderError], str], ...]
    by_name: bool  # the class is called by its name


class Row(NamedTuple):
    """Is a row of the table, before it is written as Markdown."""

    message: str
    error: type[OutriderError]
    modules: tuple[str, ...]


class Unlisted(Exception):
    """Says what the generator can neither read nor find in its lists."""


MESSAGES: Mapping[tuple[str, str], Listed] = {
    ("common/config.py", "_explain(error)"): Listed(
        (
            "unknown configuration key <key>; the nearest known one is <near>",
            "configuration key <key> = <input>: <what pydantic says of it>",
        ),
        "it joins one sentence for each problem that pydantic found",
    ),
    ("cloud_server/admission.py", "self.closed"): Listed(
        ("this server is draining; ask another one",),
        "cloud_server/app.py sets it when the server drains",
    ),
    ("cloud_server/authentication.py", "message"): Listed(
        ("_NO_TOKEN", "_UNKNOWN_TOKEN"), "its caller chooses one of the two"
    ),
    ("cloud_server/servicer.py", "<type of error>: <error>"): Listed(
        ("<type of error>: <what any exception in the server says>",),
        "it passes on what was not foreseen",
    ),
    ("cloud_server/interceptors.py", "<type of error>: <error>"): Listed(
        ("<type of error>: <what any exception in the server says>",),
        "it passes on what was not foreseen",
    ),
    ("edge_client/experiments/prompts.py", "<where>: <error>"): Listed(
        ("<file>:<line>: <what is wrong with the text of the prompt>",),
        "it puts the place before a message of edge_client/text.py",
    ),
    ("edge_client/relay/profiles.py", "<file>: <what the system says>"): Listed(
        ("<file>: <what the system says, or: not a trace>",), "it passes on what the system says"
    ),
    ("edge_client/experiments/run_directory.py", "<path/records>: <what the system says>"): (
        Listed(
            ("<directory>/records.jsonl: <what the system says, such as No space left on device>",),
            "it passes on what the system says",
        )
    ),
}
"""(module, expression), or (module, message) for one that is nothing but placeholders."""

TABLES: Mapping[tuple[str, str], Table] = {
    ("edge_client/faults.py", "BY_CODE"): Table("kind", "advice", _CALL_TEMPLATE, None),
    ("edge_client/faults.py", "TLS_FAULTS"): Table("kind", "advice", _CALL_TEMPLATE, "UNAVAILABLE"),
}
"""(module, name of the table)."""

RECASTS: Mapping[tuple[str, str], Recast] = {
    ("edge_client/patience.py", "type(error)"): Recast(
        (
            *(e for e in errors.leaves(errors.ServiceError) if getattr(e, "passing", False)),
            *patience._MISFITS,
            errors.InternalError,
        ),
        "attempts go on for what may pass, and with several servers for what another may not have",
    ),
}
"""(module, expression that is called)."""

NOT_MADE: Mapping[tuple[str, str], str] = {
    ("common/wire/errors.py", "_BY_REASON"): "rebuilds what a server made, which has its own row",
    ("edge_client/patience.py", "_MISFITS"): "is compared with, and part of RECASTS",
    ("cloud_server/metrics.py", "leaves"): "counts errors by reason",
    ("edge_client/bench.py", "suppress"): "leaves out who cannot say",
}
"""Where classes are named and none is made by it: (module, name assigned, or called with it)."""

HEAD = f"""# Errors

Every error that the commands show, and what to do about it. This file is generated from the
sources; after a change there, write it again with `{COMMAND}`.

How to read it: the last line on stderr is the name of the program, a colon and the message. Words
in &lt;angle brackets&gt; stand for what the message fills in. A client puts `server HOST:PORT:`
before what a server said; `bench` keeps the reason and the message in its records. Where one
message has several rows, the class differs, and the exit code may.

| exit code | means |
|---|---|
| 1 | a fault of our own |
| 2 | to be asked differently: usage, configuration, prompt or model; or two ends do not fit |
| 3 | the other end, or the way to it: not there, full, late, or not trusted |

All exit codes: [running.md](running.md#exit-codes). Flags that do not exist, and values that are no
numbers, are refused before anything runs, with the usage and exit code 2. Ctrl-C says
`interrupted`, exit code 130. A message that begins with the name of a Python exception and ends in
`(run with --debug for more)` is a fault of our own, exit code 1. With `--debug` the traceback
stands before any of them.

The column *error* is the reason, the gRPC status and the exit code. A server sends the reason in
the details of the status (`google.rpc.ErrorInfo`), so that other clients need not read messages:
[protocol.md](protocol.md).

"""

COLUMNS = ("what you see", "why", "what to do", "error", "where")


def tree(root: type[OutriderError] = OutriderError) -> list[type[OutriderError]]:
    """Returns the errors of the tree, each after those below it."""
    below = [e for child in root.__subclasses__() for e in tree(child)]
    return [e for e in [*below, root] if e.__module__ == errors.__name__]


_TREE = {error.__name__: error for error in tree()}


# --- what an expression says ---------------------------------------------------------------


_OPERATORS: Mapping[type[ast.operator], str] = {
    ast.Add: " + ", ast.Sub: " - ", ast.Mult: " * ", ast.Div: "/", ast.FloorDiv: "/",
}  # fmt: skip
_SAME = ("value", "__name__")  # attributes that say the same as what they belong to
_SYSTEM = "what the system says"
_GAP = re.compile(r"<[^<>]*>")


def _placeholder(node: ast.expr) -> str:
    """Names in a word or two what an f-string fills in."""
    match node:
        case ast.Name(name):
            return name.strip("_").lower()
        case ast.Attribute(of, attribute) if attribute in _SAME:
            return _placeholder(of)
        case ast.Attribute(of, "name"):
            return f"{_placeholder(of)} name"
        case ast.Attribute(_, "strerror"):
            return _SYSTEM
        case ast.Attribute(_, attribute):
            return attribute.strip("_")
        case ast.Call(ast.Name("len"), [of]):
            return f"number of {_placeholder(of)}"
        case ast.Call(ast.Name("type"), [of]):
            return f"type of {_placeholder(of)}"
        case ast.Call(ast.Name("max" | "min" as which), [of]):
            return f"{'largest' if which == 'max' else 'smallest'} of {_placeholder(of)}"
        case ast.Call(ast.Name("getattr"), [of, ast.Constant(str(attribute)), *_]):
            return _placeholder(ast.Attribute(of, attribute))
        case ast.Call(ast.Attribute(of, "removesuffix" | "removeprefix" | "strip")):
            return _placeholder(of)
        case ast.Call(ast.Attribute(ast.Constant(), "join"), [of]) | ast.Call(ast.Name(), [of, *_]):
            return _placeholder(of)
        case ast.Call(called):
            return _placeholder(called)
        case ast.Subscript(_, ast.Constant(str(key))):
            return key
        case ast.Subscript(of) | ast.Starred(of) | ast.BoolOp(_, [of, *_]):
            return _placeholder(of)
        case ast.IfExp(_, then):
            return _placeholder(then)
        case ast.BinOp(left, operator, right) if type(operator) in _OPERATORS:
            return _placeholder(left) + _OPERATORS[type(operator)] + _placeholder(right)
        case ast.DictComp(_, of) | ast.ListComp(of) | ast.GeneratorExp(of) | ast.SetComp(of):
            return _placeholder(of)
        case ast.Constant(value):
            return str(value)
    return re.sub(r"[<>|]", "", ast.unparse(node))


class Module:
    """Is one source: its tree, its constants, and the functions that make its messages."""

    def __init__(self, name: str, source: str, constants: Mapping[str, Mapping[str, str]]) -> None:
        self.name = name
        self.tree = ast.parse(source)
        self.constants = dict(constants.get(name, {}))
        self.functions: dict[str, ast.FunctionDef] = {}
        self.used: set[tuple[str, str]] = set()
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            if isinstance(node, ast.ImportFrom) and node.module:
                there = constants.get(node.module.replace(".", "/") + ".py", {})
                for alias in node.names:
                    if alias.name in there:
                        self.constants[alias.asname or alias.name] = there[alias.name]

    def messages(self, node: ast.expr, filled: Mapping[str, str]) -> list[str]:
        """Returns what an expression may say; what it cannot tell must be in MESSAGES."""
        found = self._read(node, filled)
        if found and all(re.search(r"[A-Za-z]{3}", _GAP.sub("", text)) for text in found):
            return [" ".join(text.split()) for text in found]
        key = (self.name, found[0] if found else ast.unparse(node))
        if key not in MESSAGES:
            raise Unlisted(f"{self.name}:{node.lineno}: put {key} into MESSAGES, with its reason")
        self.used.add(key)
        return [self.constants.get(text, text) for text in MESSAGES[key].texts]

    def _read(self, node: ast.expr, filled: Mapping[str, str]) -> list[str] | None:
        said = ast.unparse(node)
        if said in filled:
            return [filled[said]]
        match node:
            case ast.Constant(str(text)):
                return [text]
            case ast.JoinedStr(pieces):
                return self._join([self._piece(piece, filled) for piece in pieces])
            case ast.BinOp(left, ast.Add(), right):
                return self._join([self._read(left, filled), self._read(right, filled)])
            case ast.IfExp(_, then, other):
                either = (self._read(then, filled), self._read(other, filled))
                return None if None in either else [t for texts in either for t in texts or ()]
            case ast.Name(name) if name in self.constants:
                return [self.constants[name]]
            case ast.Call(ast.Name(name)) if name in self.functions:
                returned = [
                    self._read(statement.value, filled)
                    for statement in ast.walk(self.functions[name])
                    if isinstance(statement, ast.Return) and statement.value is not None
                ]
                if None in returned:
                    return None
                return [text for texts in returned for text in texts or ()] or None
        return None

    def _piece(self, piece: ast.expr, filled: Mapping[str, str]) -> list[str]:
        if isinstance(piece, ast.Constant):
            return [str(piece.value)]
        assert isinstance(piece, ast.FormattedValue)
        said = ast.unparse(piece.value)
        if said in filled:
            return [filled[said]]
        if isinstance(piece.value, ast.Name) and said in self.constants:
            return [self.constants[said]]
        return [f"<{_placeholder(piece.value)}>"]

    @staticmethod
    def _join(parts: list[list[str] | None]) -> list[str] | None:
        if None in parts:
            return None
        return ["".join(pieces) for pieces in product(*(part or () for part in parts))]


# --- where errors are made -----------------------------------------------------------------


def sources() -> dict[str, str]:
    """Returns the sources of the packages, but for the tree itself."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != ROOT / TREE_MODULE
    }


def _constants(source: str) -> dict[str, str]:
    """Returns the texts and numbers that a module names."""
    found = {}
    for node in ast.parse(source).body:
        match node:
            case ast.Assign([ast.Name(name)], ast.Constant(str() | int() as value)) | ast.AnnAssign(
                ast.Name(name), _, ast.Constant(str() | int() as value)
            ):
                found[name] = str(value)
    return found


def _class(node: ast.expr) -> type[OutriderError] | None:
    """Returns the error that an expression names."""
    match node:
        case ast.Name(name) | ast.Attribute(ast.Name("errors"), name):
            return _TREE.get(name)
    return None


def _message(module: Module, call: ast.Call) -> ast.expr:
    named = [word.value for word in call.keywords if word.arg == "message"]
    for message in [*call.args[:1], *named]:
        return message
    raise Unlisted(f"{module.name}:{call.lineno}: an error without a message")


def _assigned(node: ast.AST) -> tuple[str, ast.expr] | None:
    match node:
        case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value):
            return (name, value) if value is not None else None
    return None


class _Walk:
    """Finds in one module all that makes errors, and what names a class for no known purpose."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.sites: list[Site] = []
        self.used: set[tuple[str, str]] = set()
        self._called: set[str] = set()
        self._entries: dict[str, list[tuple[type[OutriderError], dict[str, str], int]]] = {}
        for statement in module.tree.body:
            assigned = _assigned(statement)
            if assigned and (module.name, assigned[0]) in TABLES:
                self._table(*assigned)
        self._visit(module.tree, "")

    def _table(self, name: str, value: ast.expr) -> None:
        key = (self.module.name, name)
        table = TABLES[key]
        self.used.add(key)
        if not isinstance(value, ast.Dict):
            raise Unlisted(f"{self.module.name}:{value.lineno}: {name} is no table to be read")
        for label, entry in zip(value.keys, value.values, strict=True):
            match entry:
                case ast.Tuple([kind, text]) if (error := _class(kind)) and label is not None:
                    said = table.key_is or ast.unparse(label).rpartition(".")[2]
                    for message in self.module.messages(text, {}):
                        filled = {table.text: message, table.key: said}
                        entries = self._entries.setdefault(table.call, [])
                        entries.append((error, filled, entry.lineno))
                case _:
                    raise Unlisted(
                        f"{self.module.name}:{entry.lineno}: an entry to be read by hand"
                    )

    def _visit(self, node: ast.AST, inside: str) -> None:
        """Goes down; `inside` is the name assigned, or called, around the node."""
        assigned = _assigned(node)
        inside = assigned[0] if assigned else inside
        if (self.module.name, inside) in TABLES:
            return  # read already
        match node:
            case ast.Call(called):
                self._call(node)
                if _class(called) is None:
                    self._visit(called, inside)
                    if not isinstance(called, ast.Attribute):
                        inside = ast.unparse(called)
                if inside not in ("isinstance", "issubclass"):
                    for argument in (*node.args, *(word.value for word in node.keywords)):
                        self._visit(argument, inside)
                return
            case ast.Attribute(of) if _class(of) and _class(node) is None:
                return  # a class's own reason, status or exit code
            case ast.Name() | ast.Attribute() if _class(node):
                self._mention(node, inside)
                return
        for field, child in ast.iter_fields(node):
            if field in ("annotation", "returns", "slice"):
                continue  # types
            if isinstance(node, ast.ExceptHandler) and field == "type":
                continue
            for below in child if isinstance(child, list) else [child]:
                if isinstance(below, ast.AST):
                    self._visit(below, inside)

    def _mention(self, node: ast.expr, inside: str) -> None:
        key = (self.module.name, inside)
        if key not in NOT_MADE:
            raise Unlisted(
                f"{self.module.name}:{node.lineno}: {ast.unparse(node)} is named and not called; "
                f"put {key} into TABLES or NOT_MADE"
            )
        self.used.add(key)

    def _call(self, call: ast.Call) -> None:
        error, said = _class(call.func), ast.unparse(call.func)
        key = (self.module.name, said)
        if error is not None:
            message = _message(self.module, call)
            made = [(error, text) for text in self.module.messages(message, {})]
        elif said in self._entries:
            self._called.add(said)
            message = _message(self.module, call)
            for error, filled, line in self._entries[said]:
                texts = self.module.messages(message, filled)
                self._site(line, [(error, text) for text in texts], by_name=False)
            return
        elif said.startswith("type(") or said.endswith(".__class__"):
            if key not in RECASTS:
                raise Unlisted(f"{self.module.name}:{call.lineno}: put {key} into RECASTS")
            self.used.add(key)
            texts = self.module.messages(_message(self.module, call), {})
            made = [(kind, text) for kind in RECASTS[key].classes for text in texts]
        else:
            return
        self._site(call.lineno, made, by_name=error is not None)

    def _site(
        self, line: int, made: list[tuple[type[OutriderError], str]], *, by_name: bool
    ) -> None:
        self.sites.append(Site(self.module.name, line, tuple(made), by_name))

    def check(self) -> None:
        """Raises Unlisted for a table whose call was not found."""
        uncalled = sorted(self._entries.keys() - self._called)
        if uncalled:
            raise Unlisted(f"{self.module.name}: nothing calls {', '.join(uncalled)}")


def sites(given: Mapping[str, str] | None = None) -> list[Site]:
    """Returns every place where an error is made; raises Unlisted for one it cannot read.

    `given` are sources instead of the packages': then the lists need not be used up.
    """
    read = sources() if given is None else given
    constants = {name: _constants(source) for name, source in read.items()}
    found: list[Site] = []
    used: set[tuple[str, str]] = set()
    for name, source in read.items():
        walk = _Walk(Module(name, source, constants))
        walk.check()
        found += walk.sites
        used |= walk.used | walk.module.used
    stale = {*MESSAGES, *TABLES, *RECASTS, *NOT_MADE} - used
    if given is None and stale:
        raise Unlisted(f"listed here and no longer in the sources: {sorted(stale)}")
    return found


# --- the document --------------------------------------------------------------------------


def rows() -> Iterator[Row]:
    """Yields the rows in the order of the tree, what is most specific first, then by module."""
    made: dict[tuple[type[OutriderError], str], list[str]] = {}
    for site in sites():
        for error, message in site.made:
            made.setdefault((error, message), []).append(site.module)
    order = tree()
    ordered = sorted(made.items(), key=lambda row: (order.index(row[0][0]), min(row[1])))
    for (error, message), modules in ordered:
        yield Row(message, error, tuple(sorted(set(modules))))


def why(error: type[OutriderError]) -> str:
    """Returns the first sentence of what the class says of itself."""
    first = " ".join((error.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", first)[0]


def _escaped(text: str) -> str:
    """Writes a text so that Markdown shows it as it is; code between backticks stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    for place, part in enumerate(parts):
        if not part.startswith("`"):
            part = part.replace("\\", "\\\\").replace("&", "&amp;")
            part = part.replace("<", "&lt;").replace(">", "&gt;")
            part = re.sub(r"[*\[\]`]|(?<!\w)_|_(?!\w)", r"\\\g<0>", part)
        parts[place] = part.replace("|", "\\|")
    return "".join(parts)


def cells(row: Row) -> tuple[str, ...]:
    """Returns the cells of a row, in the order of COLUMNS."""
    error = row.error
    return (
        _escaped(row.message),
        _escaped(why(error)),
        _escaped(error.remedy),
        f"{error.reason}, {error.status}, {error.exit_code}",
        ", ".join(f"`{module}`" for module in row.modules),
    )


def document() -> str:
    """Returns the text of docs/errors.md."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(cells(row) for row in rows())]
    return HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")

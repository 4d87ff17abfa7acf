"""The commands of `outrider-edge` and their flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from edge_client.arms import ARM_NAMES, DEFAULT_ARMS
from edge_client.commands import (
    bench_command,
    check_command,
    compare_command,
    generate_command,
    load_command,
    ping_command,
    plan_command,
)
from edge_client.flags import (
    arms,
    decoding_flags,
    draft_flags,
    natural,
    positive,
    server_flags,
    shared_flags,
)

PROGRAM = "outrider-edge"
DESCRIPTION = "Generate, compare the arms, measure the link, plan, check the precision."

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser; a command's options name in `run` what runs it."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_generate,
        _add_bench,
        _add_compare,
        _add_load,
        _add_ping,
        _add_plan,
        _add_check,
    ):
        add(commands)
    return parser


def _add_generate(commands: Commands) -> None:
    generate = commands.add_parser(
        "generate",
        parents=[shared_flags(), server_flags(), draft_flags(), decoding_flags()],
        help="write on from a prompt",
    )
    generate.add_argument("--prompt", required=True, metavar="TEXT")
    generate.add_argument(
        "--chat", action="store_true", help="take the prompt as a user's turn in a chat"
    )
    generate.add_argument(
        "--arm", choices=ARM_NAMES, default="speculative", help="default: %(default)s"
    )
    generate.add_argument("--json", action="store_true", help="print one JSON object instead")
    generate.set_defaults(run=generate_command)


def _add_bench(commands: Commands) -> None:
    bench = commands.add_parser(
        "bench",
        parents=[shared_flags(), server_flags(), draft_flags(required=False), decoding_flags()],
        help="run the arms over a file of prompts and compare them",
    )
    bench.add_argument(
        "--prompts", type=Path, metavar="FILE.jsonl", help="default: experiment.prompts"
    )
    bench.add_argument(
        "--arms",
        type=arms,
        metavar="A,B,...",
        help=f"of {','.join(ARM_NAMES)}; default: {','.join(DEFAULT_ARMS)} (experiment.arms)",
    )
    bench.add_argument(
        "--limit", type=positive, metavar="N", help="default: all prompts (experiment.limit)"
    )
    bench.add_argument(
        "--repeats", type=positive, metavar="R", help="default: 1 (experiment.repeats)"
    )
    where = bench.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="DIR", help="default: runs/ and the time of day")
    where.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="take up a run that was interrupted, by its own command; what is whole is kept",
    )
    bench.add_argument(
        "--score",
        action="store_true",
        help="ask the target how probable it finds every text (always done where the rule "
        "of verification allows another text than its own)",
    )
    bench.add_argument(
        "--link",
        metavar="PROFILE",
        help="put a relay with this link between the ends (outrider-link --help lists them)",
    )
    bench.add_argument(
        "--trace", action="store_true", help="write trace.json too, for Perfetto (first repeat)"
    )
    bench.add_argument(
        "--self-check",
        action="append",
        default=[],
        choices=ARM_NAMES,
        metavar="ARM",
        help="run this arm under a second name too: the two must come out alike; may be repeated",
    )
    bench.set_defaults(run=bench_command, ended={})


def _add_compare(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare", parents=[shared_flags()], help="set runs of bench side by side"
    )
    compare.add_argument(
        "runs", nargs="+", type=Path, metavar="DIR", help="what bench wrote; the first is the base"
    )
    compare.add_argument("--json", action="store_true", help="print one JSON object instead")
    compare.set_defaults(run=compare_command)


def _add_load(commands: Commands) -> None:
    load = commands.add_parser(
        "load",
        parents=[shared_flags(), server_flags(), draft_flags(), decoding_flags()],
        help="put a server under load by many clients at once",
    )
    load.add_argument("--prompts", required=True, type=Path, metavar="FILE.jsonl")
    load.add_argument(
        "--arm", choices=ARM_NAMES[1:], default="speculative", help="default: %(default)s"
    )
    load.add_argument(
        "--clients",
        type=positive,
        default=4,
        metavar="N",
        help="each has one conversation at a time; default: %(default)s",
    )
    load.add_argument(
        "--rate",
        type=float,
        metavar="R",
        help="conversations begin at so many a second, at random (Poisson), whatever the server "
        "does; default: each client begins the next one as soon as it is done",
    )
    load.add_argument(
        "--requests", type=positive, metavar="N", help="conversations; default: each prompt once"
    )
    load.add_argument("--out", type=Path, metavar="DIR", help="default: runs/ and the time of day")
    load.add_argument("--json", action="store_true", help="print load.json instead of a table")
    load.set_defaults(run=load_command)


def _add_ping(commands: Commands) -> None:
    ping = commands.add_parser(
        "ping", parents=[shared_flags(), server_flags()], help="measure idle round trips"
    )
    ping.add_argument(
        "--count", type=positive, default=100, metavar="N", help="default: %(default)s"
    )
    ping.add_argument(
        "--payload-bytes", type=natural, default=0, metavar="B", help="default: %(default)s"
    )
    ping.add_argument("--json", action="store_true", help="print one JSON object instead")
    ping.set_defaults(run=ping_command)


def _add_plan(commands: Commands) -> None:
    plan = commands.add_parser(
        "plan",
        parents=[shared_flags()],
        help="predict each arm's speed, and where it pays",
    )
    plan.add_argument(
        "--records", type=Path, metavar="DIR|FILE", help="take the numbers from a bench's records"
    )
    for flag, name, meaning in (
        ("--draft-ms", "X", "the draft model's time for a token"),
        ("--target-ms", "X", "the target's time for a request"),
        ("--target-token-ms", "X", "and for each token in it; default: 0"),
        ("--acceptance", "A,...", "how likely a guess is right, from 0 to 1"),
        ("--rtt-ms", "X,...", "round trips of the network; default: 0 to 200"),
        ("--lengths", "N,...", "draft lengths; default: 1 to 32"),
        ("--tokens", "N", "of a text; default: as in the records, else without an end"),
    ):
        plan.add_argument(flag, metavar=name, help=meaning)
    plan.add_argument("--json", action="store_true", help="print one JSON object instead")
    plan.add_argument("--out", type=Path, metavar="FILE.html|svg", help="draw a heat map")
    plan.set_defaults(run=plan_command)


def _add_check(commands: Commands) -> None:
    check = commands.add_parser(
        "check",
        parents=[shared_flags(), draft_flags()],
        help="run one audited forward and name its precisions",
    )
    check.set_defaults(run=check_command)

"""`outrider-edge`: generate, compare the arms, measure the link, plan, check the precision."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from common import config as configuration
from common.config import Config
from common.errors import OutriderError
from edge_client.arms import ARM_NAMES, DEFAULT_ARMS

PROGRAM = "outrider-edge"
INTERRUPTED = 130  # what shells report after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (0, 1, 2 or 3; see common/errors.py).

    130 after Ctrl-C. The last line on stderr says what was wrong and what to do.
    """
    options = _parser().parse_args(argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its notices would stand among our lines
    try:
        return int(options.run(options, _configuration(options)))
    except OutriderError as error:
        return _fail(options, error.exit_code, str(error))
    except KeyboardInterrupt:
        return _fail(options, INTERRUPTED, "interrupted")
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(options, 1, "whoever read the output went away")
    except Exception as error:
        return _fail(options, 1, f"{type(error).__name__}: {error} (run with --debug for more)")


def _fail(options: argparse.Namespace, code: int, message: str) -> int:
    if options.debug:
        traceback.print_exc()
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return code


# torch takes seconds to import, so each command brings in what it needs itself.


def _generate(options: argparse.Namespace, config: Config) -> int:
    from edge_client.generate import GenerateOptions, generate

    return generate(
        GenerateOptions(
            draft=options.draft,
            servers=options.server,
            prompt=options.prompt,
            arm=options.arm,
            chat=options.chat,
            as_json=options.json,
        ),
        config,
    )


def _bench(options: argparse.Namespace, config: Config) -> int:
    from edge_client.bench import BenchOptions, bench

    return bench(
        BenchOptions(
            draft=options.draft,
            servers=options.server,
            prompts=options.prompts,
            arms=options.arms,
            limit=options.limit,
            repeats=options.repeats,
            out=options.out,
            score=options.score,
            link=options.link,
            trace=options.trace,
        ),
        config,
    )


def _ping(options: argparse.Namespace, config: Config) -> int:
    from edge_client.ping import ping

    return ping(
        config,
        servers=options.server,
        count=options.count,
        payload=options.payload_bytes,
        as_json=options.json,
    )


def _plan(options: argparse.Namespace, config: Config) -> int:
    from edge_client.plan import PlanOptions, plan

    return plan(
        PlanOptions(
            records=options.records,
            draft_ms=options.draft_ms,
            target_ms=options.target_ms,
            target_token_ms=options.target_token_ms,
            acceptance=options.acceptance,
            rtt_ms=options.rtt_ms,
            lengths=options.lengths,
            tokens=options.tokens,
            as_json=options.json,
            out=options.out,
        ),
        config,
    )


def _check(options: argparse.Namespace, config: Config) -> int:
    from edge_client.check import check

    return check(config, draft=options.draft)


def _configuration(options: argparse.Namespace) -> Config:
    """Builds the configuration; a flag of its own wins over --set and --config."""
    files = {"security.tls_ca": "tls_ca", "security.token_file": "token_file"}
    said = [
        f"{key}={_yaml(value)}"
        for key, flag in files.items()
        if (value := getattr(options, flag, None)) is not None
    ]
    said += [
        f"decoding.{key}={_yaml(value)}"
        for key in Config().decoding.__class__.model_fields
        if (value := getattr(options, key, None)) is not None
    ]
    if (deadline := getattr(options, "deadline", None)) is not None:
        said.append(f"network.deadline_s={_yaml(deadline)}")
    return configuration.load(options.config, [*options.set, *said])


def _yaml(value: object) -> str:
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")  # YAML 1.1 takes 1e-05 for a string
    return json.dumps(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser(
        "generate",
        parents=[_shared(), _server(), _draft(), _decoding()],
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
    generate.set_defaults(run=_generate)

    bench = commands.add_parser(
        "bench",
        parents=[_shared(), _server(), _draft(), _decoding()],
        help="run the arms over a file of prompts and compare them",
    )
    bench.add_argument("--prompts", required=True, type=Path, metavar="FILE.jsonl")
    bench.add_argument(
        "--arms",
        type=_arms,
        default=DEFAULT_ARMS,
        metavar="A,B,...",
        help=f"default: {','.join(DEFAULT_ARMS)}; of {','.join(ARM_NAMES)}",
    )
    bench.add_argument("--limit", type=_positive, metavar="N", help="default: all prompts")
    bench.add_argument(
        "--repeats", type=_positive, default=1, metavar="R", help="default: %(default)s"
    )
    bench.add_argument("--out", type=Path, metavar="DIR", help="default: runs/ and the time of day")
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
    bench.set_defaults(run=_bench)

    ping = commands.add_parser(
        "ping", parents=[_shared(), _server()], help="measure idle round trips"
    )
    ping.add_argument(
        "--count", type=_positive, default=100, metavar="N", help="default: %(default)s"
    )
    ping.add_argument(
        "--payload-bytes", type=_natural, default=0, metavar="B", help="default: %(default)s"
    )
    ping.add_argument("--json", action="store_true", help="print one JSON object instead")
    ping.set_defaults(run=_ping)

    plan = commands.add_parser(
        "plan", parents=[_shared()], help="predict each arm's speed and cost, and where it pays"
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
    plan.set_defaults(run=_plan)

    check = commands.add_parser(
        "check",
        parents=[_shared(), _draft()],
        help="run one audited forward and name its precisions",
    )
    check.set_defaults(run=_check)
    return parser


def _shared() -> argparse.ArgumentParser:
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument("--config", type=Path, metavar="FILE", help="YAML configuration")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.key=value",
        help="override one configuration key; may be repeated",
    )
    group.add_argument("--debug", action="store_true", help="show tracebacks")
    return group


def _server() -> argparse.ArgumentParser:
    group = argparse.ArgumentParser(add_help=False)
    listen = Config().cloud.listen
    group.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="may be repeated: when one fails, the text goes on at the next; "
        f"default: {listen} (cloud.listen); `edge` needs none",
    )
    group.add_argument(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="for one whole text; default: as long as it takes (network.deadline_s)",
    )
    group.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="PEM of the authorities to trust, or the word system; turns TLS on (security.tls_ca)",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help="the first token in it is sent with every call (security.token_file)",
    )
    return group


def _draft() -> argparse.ArgumentParser:
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument("--draft", required=True, metavar="PATH_OR_HUB_ID", help="draft model")
    return group


def _decoding() -> argparse.ArgumentParser:
    """Holds the flags named like the keys of the section `decoding`, which has their defaults."""
    group = argparse.ArgumentParser(add_help=False)
    default = Config().decoding

    def help_for(key: str, meaning: str) -> str:
        return f"{meaning} (default: {getattr(default, key)}; decoding.{key})"

    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=help_for("max_new_tokens", "at most so many"),
    )
    group.add_argument(
        "--temperature", type=float, metavar="T", help=help_for("temperature", "0 is greedy")
    )
    group.add_argument("--top-p", type=float, metavar="P", help=help_for("top_p", "1 is all"))
    group.add_argument("--top-k", type=int, metavar="K", help=help_for("top_k", "0 is all"))
    group.add_argument("--min-p", type=float, metavar="P", help=help_for("min_p", "0 is all"))
    for kind, what in (
        ("repetition", "over prompt and output, 1 is none"),
        ("presence", "over the output, once a token, 0 is none"),
        ("frequency", "over the output, each time, 0 is none"),
    ):
        key = f"{kind}_penalty"
        group.add_argument(f"--{kind}-penalty", type=float, metavar="X", help=help_for(key, what))
    group.add_argument(
        "--seed", type=int, metavar="S", help="default: drawn and reported (decoding.seed)"
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before this text; may be repeated (decoding.stop)",
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        default=None,
        help="go on after an end-of-sequence token (decoding.ignore_eos)",
    )
    return group


def _arms(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in ARM_NAMES:
            raise argparse.ArgumentTypeError(
                f"there is no arm {name!r}; choose from {','.join(ARM_NAMES)}"
            )
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)

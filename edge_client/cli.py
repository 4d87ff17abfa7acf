"""`outrider-edge`: generate, compare the arms, measure the link, plan, check the precision."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from common import config as configuration
from common.config import Config
from common.errors import OutriderError
from common.machine.limits import enforce, is_out_of_memory
from edge_client.commands import bench_command
from edge_client.guarded import guarded
from edge_client.parser import PROGRAM, build_parser

INTERRUPTED = 130  # what shells report after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (0, 1, 2 or 3; see common/errors.py).

    130 after Ctrl-C. The last line on stderr says what was wrong and what to do.
    """
    options = build_parser().parse_args(argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its notices would stand among our lines
    return _told(options, lambda: _start(options, _configuration(options)))


def _start(options: argparse.Namespace, config: Config) -> int:
    """Runs the command; a bench under a memory limit in a child, see guarded.py."""
    if options.run is not bench_command or config.limits.edge.memory_gb is None:
        return _limited(options, config)
    resume = options.resume is not None
    directory = options.resume or options.out or default_directory()

    def run(ended: Mapping[str, str], again: bool) -> int:
        options.ended = ended
        options.resume, options.out = (directory, None) if again else (None, directory)
        return _told(options, lambda: _limited(options, config))

    return guarded(run, directory, resume=resume)


def _limited(options: argparse.Namespace, config: Config) -> int:
    enforce(config.limits.edge)  # before torch is imported, which counts its processors
    return int(options.run(options, config))


def _told(options: argparse.Namespace, run: Callable[[], int]) -> int:
    """Runs something and says what went wrong; returns the exit code."""
    try:
        return run()
    except OutriderError as error:
        return _fail(options, error.exit_code, str(error))
    except KeyboardInterrupt:
        return _fail(options, INTERRUPTED, "interrupted")
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(options, 1, "whoever read the output went away")
    except Exception as error:
        if is_out_of_memory(error):
            return _fail(options, 2, f"out of memory ({error}); raise limits.edge.memory_gb")
        return _fail(options, 1, f"{type(error).__name__}: {error} (run with --debug for more)")


def _fail(options: argparse.Namespace, code: int, message: str) -> int:
    if options.debug:
        traceback.print_exc()
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return code


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


def default_directory() -> Path:
    """Returns where a run goes that was given no directory: runs/ and the time in UTC."""
    return Path("runs") / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")

"""`outrider-cloud`: serve the target model, or check that it runs in the precision it should."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from cloud_server.logs import log_to_stderr
from common import config as configuration
from common.errors import OutriderError, PrecisionError
from common.machine.limits import enforce, is_out_of_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (0, 1, 2 or 3; see common/errors.py)."""
    options = _parser().parse_args(argv)
    log_to_stderr()
    try:
        config = _configuration(options)
        # Before torch is imported, which counts its processors.
        enforce(config.limits.cloud, from_the_end=True)
        return int(options.run(options, config))
    except OutriderError as error:
        return _fail(options, error.exit_code, str(error))
    except KeyboardInterrupt:
        return _fail(options, 130, "interrupted")
    except ModuleNotFoundError as error:
        return _fail(options, 2, f"{error}; install a server's with pip install 'outrider[cloud]'")
    except Exception as error:
        if is_out_of_memory(error):
            return _fail(options, 2, f"out of memory ({error}); raise limits.cloud.memory_gb")
        return _fail(options, 1, f"{type(error).__name__}: {error} (run with --debug for more)")


def _fail(options: argparse.Namespace, code: int, message: str) -> int:
    if options.debug:
        traceback.print_exc()
    print(f"outrider-cloud: {message}", file=sys.stderr)
    return code


def _serve(options: argparse.Namespace, config: configuration.Config) -> int:
    from cloud_server import app

    app.serve(options.model, config, options.draft_model)
    return 0


def _check(options: argparse.Namespace, config: configuration.Config) -> int:
    from cloud_server.model import load_target
    from common.lm.check import check_precision

    model = load_target(options.model, config)
    found = check_precision(model, model.precision)
    print(found.text)
    if not found.passed:
        raise PrecisionError(
            f"{options.model} does not run in {config.cloud.dtype} throughout; "
            "the list above says where"
        )
    return 0


def _configuration(options: argparse.Namespace) -> configuration.Config:
    flags = {
        "cloud.listen": options.listen,
        "cloud.metrics_listen": options.metrics_listen,
        "cloud.device": options.device,
        "security.insecure": options.insecure,
    }
    said = [f"{key}={value!r}" for key, value in flags.items() if value is not None]
    return configuration.load(options.config, [*options.set, *said])


def _parser() -> argparse.ArgumentParser:
    defaults = configuration.Config().cloud
    parser = argparse.ArgumentParser(prog="outrider-cloud", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--model", required=True, metavar="PATH_OR_HUB_ID", help="target model")
    shared.add_argument("--device", metavar="auto|cpu|cuda[:N]", help=f"default: {defaults.device}")
    shared.add_argument("--config", metavar="FILE", help="YAML configuration")
    shared.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.key=value",
        help="override one configuration key; may be repeated",
    )
    shared.add_argument("--debug", action="store_true", help="show tracebacks")

    serve = commands.add_parser("serve", parents=[shared], help="serve the target model")
    serve.add_argument("--listen", metavar="HOST:PORT", help=f"default: {defaults.listen}")
    serve.add_argument(
        "--metrics-listen", metavar="HOST:PORT", help=f"default: {defaults.metrics_listen}"
    )
    serve.add_argument(
        "--draft-model",
        metavar="PATH_OR_HUB_ID",
        help="a draft model beside the target, for the arm cloud_assisted",
    )
    serve.add_argument(
        "--insecure",
        action="store_true",
        default=None,
        help="listen beyond loopback without TLS, or without knowing who comes",
    )
    serve.set_defaults(run=_serve)

    check = commands.add_parser(
        "check", parents=[shared], help="run one audited forward and name its precisions"
    )
    check.set_defaults(run=_check, listen=None, metrics_listen=None, insecure=None)
    return parser

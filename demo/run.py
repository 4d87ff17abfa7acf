"""`make demo`, `outrider-demo`: a cloud and an edge, two processes, on the bundled pair.

`make experiment NAME=all_arms` is the same with a file of configs/experiments.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common import config as configuration
from common.errors import ConfigError

DEMO = Path(os.path.relpath(Path(__file__).parent))  # as the report repeats it


@contextmanager
def cloud_server(log: Path, target: str, settings: Sequence[str]) -> Iterator[str]:
    """Runs the server on free ports and yields its address; drains it afterwards.

    `settings` are flags that both ends understand.

    Raises SystemExit with the server's exit code, after its last words, when it does not come up.
    """
    command = [sys.executable, "-m", "cloud_server", "serve", "--model", target]
    command += settings
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as server,
    ):
        assert server.stdout is not None
        ready = server.stdout.readline()
        if not ready.startswith("READY "):
            code = server.wait()
            said = log.read_text(encoding="utf-8").splitlines() or [f"it left nothing in {log}"]
            print(f"outrider-demo: the server did not start: {said[-1]}", file=sys.stderr)
            sys.exit(code or 1)
        try:
            yield ready.split()[1].removeprefix("grpc=")
        finally:
            server.send_signal(signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the cloud, runs the edge's bench against it, and returns the bench's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the records go; default: runs/<time>")
    parser.add_argument("--limit", type=int, help="how many of the prompts; default: all")
    parser.add_argument("--config", type=Path, help="an experiment of configs/experiments")
    parser.add_argument("--target", help="target model; default: experiment.target, or the bundled")
    parser.add_argument("--draft", help="draft model; default: experiment.draft, or the bundled")
    parser.add_argument(
        "--path",
        action="store_true",
        help="only print where target, draft and prompts.jsonl of the bundled pair are",
    )
    options = parser.parse_args(argv)
    if options.path:
        print(DEMO.resolve())
        return 0
    try:
        asked = configuration.load(options.config).experiment
    except ConfigError as error:
        print(f"outrider-demo: {error}", file=sys.stderr)
        return error.exit_code
    target = options.target or asked.target or str(DEMO / "target")
    draft = options.draft or asked.draft or str(DEMO / "draft")
    settings = [] if options.config is None else ["--config", str(options.config)]
    with cloud_server(Path("runs/demo-cloud.log"), target, settings) as address:
        print(f"cloud: {address}, one process; edge: another", file=sys.stderr)
        command = [sys.executable, "-m", "edge_client", "bench", "--server", address]
        prompts = asked.prompts or str(DEMO / "prompts.jsonl")
        command += ["--draft", draft, "--prompts", prompts, *settings]
        if options.out is not None:
            command += ["--out", str(options.out)]
        if options.limit is not None:
            command += ["--limit", str(options.limit)]
        try:
            return subprocess.run(command, check=False).returncode
        except KeyboardInterrupt:
            return 130  # the edge has had the same signal, and has said what it kept


if __name__ == "__main__":
    sys.exit(main())

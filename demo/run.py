"""`make demo`, `outrider-demo`: a cloud and an edge, two processes, on the bundled pair."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DEMO = Path(__file__).resolve().parent


@contextmanager
def cloud_server(log: Path) -> Iterator[str]:
    """Runs the server on free ports and yields its address; drains it afterwards.

    Raises SystemExit, naming the log, when it does not come up.
    """
    command = [sys.executable, "-m", "cloud_server", "serve", "--model", str(DEMO / "target")]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as server,
    ):
        assert server.stdout is not None
        ready = server.stdout.readline()
        if not ready.startswith("READY "):
            server.wait()
            sys.exit(f"the cloud server did not start; its last words are in {log}")
        try:
            yield ready.split()[1].removeprefix("grpc=")
        finally:
            server.send_signal(signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the cloud, runs the edge's bench against it, and returns the bench's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the records go; default: runs/<time>")
    parser.add_argument("--limit", type=int, help="how many of the prompts; default: all")
    parser.add_argument(
        "--path",
        action="store_true",
        help="only print where target, draft and prompts.jsonl of the bundled pair are",
    )
    options = parser.parse_args(argv)
    if options.path:
        print(DEMO)
        return 0
    with cloud_server(Path("runs/demo-cloud.log")) as address:
        print(f"cloud: {address}, one process; edge: another", file=sys.stderr)
        command = [sys.executable, "-m", "edge_client", "bench", "--server", address]
        command += ["--draft", str(DEMO / "draft"), "--prompts", str(DEMO / "prompts.jsonl")]
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
